"""What can be named in a study: what ships, and what installed packages register as entry points.

A package registers its own in its ``pyproject.toml``::

    [project.entry-points."sparsearch.strategies"]
    mine = "my_package.mine:Mine"
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeAlias

from sparsearch.errors import ConfigError

__all__ = [
    "FAMILIES",
    "HEAD_ALONE",
    "KINDS",
    "LIMITS",
    "STRATEGIES",
    "TRANSFER",
    "Registry",
    "StrategyFamily",
    "StrategyRegistry",
    "read_limits",
]

StrategyFamily: TypeAlias = Literal[
    "search", "probe", "random", "uniform", "reference", "transfer", "other"
]
"""How reports group strategies. References have no budget; a search's rankings can be transferred."""

HEAD_ALONE = "head"
"""The reference that trains the task's head and nothing else."""

_BITS = ("32", "16", "8", "4", "2")
"""Of values, as a strategy's name says them."""

TRANSFER = "transfer"
"""The strategy that takes a ranking which another study made."""


class Registry(Mapping[str, Any]):
    """Plug-ins by name, as a mapping; each is imported when it is first asked for.

    Args:
        what: Names one of them, for messages.
        group: Of the entry points that add to it.
        built_in: Name -> ``module:attribute``; nothing is imported before it is asked for.
    """

    def __init__(self, what: str, group: str, built_in: Mapping[str, str]) -> None:
        self.what, self.group, self._built_in = what, group, dict(built_in)

    def names(self) -> tuple[str, ...]:
        """All names, those that ship first.

        Raises:
            ConfigError: If a package registers a name that is taken.
        """
        return (*self._built_in, *self._outside())

    def __iter__(self) -> Iterator[str]:
        """All names."""
        return iter(self.names())

    def __len__(self) -> int:
        """How many there are."""
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        """Whether a name is registered; nothing is imported."""
        return name in self.names()

    def __getitem__(self, name: str) -> Any:
        """What is registered under a name.

        Raises:
            KeyError: If there is nothing of that name.
            ConfigError: If it cannot be imported.
        """
        if name not in self:
            raise KeyError(name)
        return self.load(name)

    def load(self, name: str) -> Any:
        """What is registered under a name.

        Raises:
            ConfigError: If there is nothing of that name, it cannot be imported, or it calls itself otherwise.
        """
        if name in self._built_in:
            module, attribute = self._built_in[name].split(":")
            return getattr(importlib.import_module(module), attribute)
        outside = self._outside()
        if name not in outside:
            raise ConfigError(
                [f"{name!r} is no {self.what}; there are: {', '.join(self.names())}"]
            )
        where = outside[name].value
        try:
            found = outside[name].load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                [f"{self.what} {name!r} cannot be imported from {where}: {error}"]
            ) from error
        if (
            own := getattr(found, "name", name)
        ) != name:  # stored under one, looked up by the other
            raise ConfigError(
                [f"{self.what} {name!r} of {where} calls itself {own!r}: give both one name"]
            )
        return found

    def _outside(self) -> Mapping[str, EntryPoint]:
        found = installed(self.group)
        if taken := sorted(self._built_in.keys() & found):
            where = found[taken[0]].value
            raise ConfigError(
                [f"{self.group}: the name {taken[0]!r} of {where} is taken by one that ships"]
            )
        return found


@functools.cache
def installed(group: str) -> Mapping[str, EntryPoint]:
    """Entry points of a group, by name; read once.

    Raises:
        ConfigError: If two packages register one name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise ConfigError(
                [f"{group}: {point.name!r} is registered twice, {other.value} and {point.value}"]
            )
    return found


class StrategyRegistry(Registry):
    """Strategies, with the family of each.

    Args:
        built_in: Name -> (family, ``module:class`` under ``sparsearch.search.strategies``).
    """

    def __init__(self, built_in: Mapping[str, tuple[StrategyFamily, str]]) -> None:
        homes = {n: f"sparsearch.search.strategies.{home}" for n, (_, home) in built_in.items()}
        super().__init__("strategy", "sparsearch.strategies", homes)
        self._families = {name: family for name, (family, _) in built_in.items()}

    def __contains__(self, name: object) -> bool:
        """Whether a strategy is registered, or a uniform one that ships in so many bits, as ``lora-qv@4``."""
        pattern, _, bits = str(name).partition("@")
        uniform = self._families.get(pattern) == "uniform"
        return super().__contains__(name) or (uniform and bits in _BITS)

    def load(self, name: str) -> Any:
        """The strategy of a name; a uniform one may say in which bits its values are, see ``Uniform.in_bits``."""
        pattern, at, bits = name.partition("@")
        if at and name in self:
            return super().load(pattern).in_bits(int(bits))
        return super().load(name)

    def family(self, name: str) -> StrategyFamily:
        """How reports group a strategy; of one that is not installed any more ``other``."""
        name = name.partition("@")[0]
        if name not in self._families and name not in self.names():
            return "other"
        known = self._families.get(name)
        family: StrategyFamily = self.load(name).family if known is None else known
        return family

    def of_family(self, family: StrategyFamily) -> tuple[str, ...]:
        """All strategies of a family."""
        return tuple(name for name in self.names() if self.family(name) == family)


STRATEGIES = StrategyRegistry(
    {
        "s3pet": ("search", "s3pet:S3PET"),
        "probe": ("probe", "probe:Probe"),
        "linearised": ("other", "linearised.strategy:Linearised"),
        "random": ("random", "scoreless:Random"),
        "slimming": ("other", "network_slimming:NetworkSlimming"),
        "even": ("other", "scoreless:Even"),
        "magnitude": ("other", "scoreless:Magnitude"),
        "surgeon": ("other", "optimal_brain_surgeon:OptimalBrainSurgeon"),
        "update-magnitude": ("other", "update_magnitude:UpdateMagnitude"),
        TRANSFER: ("transfer", "transfer:Transfer"),
        "lora": ("uniform", "uniform:LoRA"),
        "lora-qv": ("uniform", "uniform:LoRAOnQueryAndValue"),
        "lora-mlp": ("uniform", "uniform:LoRAOnFeedForward"),
        "lora-xs": ("uniform", "uniform:LoRAXS"),
        "vera": ("uniform", "uniform:Vera"),
        "ia3": ("uniform", "uniform:IA3"),
        "spectral": ("uniform", "uniform:Spectral"),
        "bitfit": ("uniform", "uniform:BitFit"),
        "lnfit": ("uniform", "uniform:LNFit"),
        "adapter": ("uniform", "uniform:Adapter"),
        HEAD_ALONE: ("reference", "references:Head"),
        "full": ("reference", "references:Full"),
    }
)

KINDS = Registry(
    "kind",
    "sparsearch.kinds",
    {
        name: f"sparsearch.spaces.kinds.{home}"
        for name, home in {
            "spectral": "spectral.spec:Spectral",
            "lora": "lora.spec:Lora",
            "dora": "dora.spec:Dora",
            "lora_xs": "lora_xs.spec:LoraXS",
            "vera": "vera.spec:Vera",
            "sparse_delta": "sparse_delta.spec:SparseDelta",
            "bitfit": "bitfit.spec:BitFit",
            "lnfit": "lnfit.spec:LNFit",
            "low_rank_adapter": "low_rank_adapter.spec:LowRankAdapter",
            "adapter": "adapter.spec:Adapter",
            "compacter": "compacter.spec:Compacter",
            "ia3": "ia3.spec:IA3",
            "prefix": "prefix.spec:Prefix",
            "heads": "prunable.heads:Heads",
            "neurons": "prunable.neurons:Neurons",
            "weight_mask": "weight_mask.spec:WeightMask",
        }.items()
    },
)
"""Kinds, in the order in which a space lists them."""

FAMILIES = Registry(
    "family",
    "sparsearch.families",
    {
        name: f"sparsearch.spaces.families.architectures.{home}"
        for name, home in {
            "albert": "albert:ALBERT",
            "bart": "opt:BART",
            "bert": "bert:BERT",
            "bloom": "gpt_neox:BLOOM",
            "camembert": "bert:ROBERTA",
            "clip": "vision:CLIP",
            "clip_text_model": "vision:CLIP_TEXT",
            "clip_vision_model": "vision:CLIP_VISION",
            "deberta-v2": "deberta_v2:DEBERTA_V2",
            "dinov2": "vision:DINOV2",
            "distilbert": "distilbert:DISTILBERT",
            "electra": "bert:ELECTRA",
            "falcon": "gpt_neox:FALCON",
            "gemma": "llama:LLAMA",
            "gemma2": "llama:GEMMA2",
            "gemma3_text": "llama:GEMMA3",
            "gemma4_text": "experts.gemma4:GEMMA4",
            "gpt2": "gpt2:GPT2",
            "gpt_neox": "gpt_neox:GPT_NEOX",
            "gpt_oss": "experts.mixtral:GPT_OSS",
            "granite": "llama:LLAMA",
            "llama": "llama:LLAMA",
            "mbart": "opt:BART",
            "mistral": "llama:LLAMA",
            "mixtral": "experts.mixtral:MIXTRAL",
            "modernbert": "modernbert:MODERNBERT",
            "mpnet": "bert:MPNET",
            "mt5": "t5:T5",
            "olmo": "llama:OLMO",
            "olmo2": "llama:OLMO2",
            "opt": "opt:OPT",
            "phi3": "llama:PHI3",
            "qwen2": "llama:LLAMA",
            "qwen3": "llama:QWEN3",
            "qwen3_moe": "experts.mixtral:QWEN3_MOE",
            "qwen3_next": "experts.qwen3_next:QWEN3_NEXT",
            "roberta": "bert:ROBERTA",
            "siglip": "vision:SIGLIP",
            "siglip_text_model": "vision:SIGLIP_TEXT",
            "siglip_vision_model": "vision:SIGLIP_VISION",
            "smollm3": "llama:LLAMA",
            "stablelm": "llama:STABLELM",
            "t5": "t5:T5",
            "vit": "vision:VIT",
            "whisper": "opt:WHISPER",
            "xlm-roberta": "bert:ROBERTA",
        }.items()
    },
)
"""Families of transformers, by ``config.model_type``."""

LIMITS = Registry(
    "limit",
    "sparsearch.limits",
    {
        name: f"sparsearch.spaces.limits:{home}"
        for name, home in {
            "max_trainable_params": "TrainableParams",
            "max_bytes": "StoredBytes",
            "max_inference_flops": "InferenceFlops",
            "min_weight_sparsity": "WeightSparsity",
        }.items()
    },
)
"""What a budget may limit, in the order in which budgets list it."""


def read_limits(texts: Sequence[str], given: Mapping[str, str] = {}) -> dict[str, str]:
    """What was given, and limits written as ``NAME=VALUE`` beside it.

    Raises:
        ConfigError: If one is written in another way, if its name is unknown, or if it is given twice.

    >>> read_limits(["max_bytes=20000"], {"task": "trec"})
    {'task': 'trec', 'max_bytes': '20000'}
    """
    asked = dict(given)
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in LIMITS:
            raise ConfigError(
                [f"limit {text}: no limit of a budget"],
                f"write NAME=VALUE, with one of {', '.join(LIMITS)}",
            )
        if name in asked:
            raise ConfigError([f"limit {text}: this limit is given twice"])
        asked[name] = value
    return asked
