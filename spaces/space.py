"""The space: the ordered list of candidates for one backbone, each with its exact integer costs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from sparsearch.errors import ConfigError
from sparsearch.spaces.backbone import count_with_pooler, positions_of
from sparsearch.spaces.conflicts import conflicts
from sparsearch.spaces.kinds import KINDS, Kind, make_kind
from sparsearch.spaces.model_state import check_state
from sparsearch.spaces.positions import Position, find, matching

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "BYTES_PER_PARAM",
    "Candidate",
    "Space",
    "build_space",
    "count_trainable",
    "linear_weights",
    "make_candidate",
    "narrow",
    "overlaps",
    "preset_names",
    "recount",
    "together",
]

BYTES_PER_PARAM = 4


@dataclass(frozen=True)
class Candidate:
    """One thing that may be attached or cut at one position.

    Attributes:
        position: Canonical name.
        kind: Name of the kind.
        size: Rank, bottleneck width, heads or neurons; 1 for a kind that has no size.
        params: Trainable parameters.
        flops_per_token: FLOPs per token as attached.
        merged_flops_per_token: FLOPs per token that remain at inference after merging; negative for what is cut.
        frozen_bytes: Bytes of what is stored with it but not trained, also of what has no gradient beside a cut.
        flops_per_pair: The same per token and token of the sequence.
        which: Numbers of the heads or of the blocks of neurons that are cut; empty for what is attached.
        pruned_weights: Weights of the backbone that it sets to zero; FLOPs count them all the same. Where heads or
            neurons are cut too, those of what is left of the matrix, as expected.
    """

    position: str
    kind: str
    size: int
    params: int
    flops_per_token: int
    merged_flops_per_token: int
    frozen_bytes: int = 0
    flops_per_pair: int = 0
    which: tuple[int, ...] = ()
    pruned_weights: int = 0

    @property
    def masks(self) -> bool:
        """Whether it sets weights to zero."""
        return self.pruned_weights > 0

    @property
    def removes(self) -> bool:
        """Whether it takes something away from the backbone, so that the dense model is the one without it."""
        return bool(self.which) or self.masks

    @property
    def compensates(self) -> bool:
        """Whether something stored stands in for what it cuts."""
        return bool(self.which) and self.frozen_bytes > 0

    def inference_flops(self, tokens: int) -> int:
        """FLOPs per token after merging, in sequences of so many tokens."""
        return self.merged_flops_per_token + tokens * self.flops_per_pair

    @property
    def bytes(self) -> int:
        """Stored size in bytes."""
        return BYTES_PER_PARAM * self.params + self.frozen_bytes


def make_candidate(
    kind: Kind, position: Position, size: int, which: tuple[int, ...] = ()
) -> Candidate:
    """A candidate with its costs."""
    flops = kind.flops_per_token(position, size)
    return Candidate(
        position.name,
        kind.name,
        size,
        kind.params(position, size),
        flops,
        0 if kind.mergeable else flops,
        kind.frozen_bytes(position, size),
        kind.flops_per_pair(position, size),
        which,
        kind.pruned_weights(position, size),
    )


def narrow(
    positions: Sequence[Position], candidates: Iterable[Candidate], *, trained: bool = False
) -> tuple[Position, ...]:
    """The positions of a backbone from which some candidates have been cut.

    Linears that feed a head or a neuron lose outputs, and the one that reads it inputs.

    Args:
        positions: Those of the whole backbone.
        candidates: Those that cut, among any others.
        trained: While units train under the cut: where something stands in for what is cut, they read it too.
    """
    narrower: Counter[tuple[str, int]] = Counter()
    shorter: Counter[str] = Counter()
    for candidate in candidates:
        if candidate.which:
            cut = find(positions, candidate.position)
            for feed in cut.feeds:
                narrower[feed.module, feed.start] += candidate.size * feed.rows // cut.units
            if not (trained and candidate.compensates):
                shorter[cut.module] += candidate.size * cut.in_features // cut.units
    return tuple(
        replace(
            p,
            in_features=p.in_features - shorter[p.module],
            out_features=p.out_features - narrower[p.module, p.start],
        )
        if p.role == "linear"
        else p
        for p in positions
    )


def linear_weights(positions: Iterable[Position]) -> int:
    """Weights of the linears: what can be pruned."""
    return sum(p.in_features * p.out_features for p in positions if p.role == "linear")


def count_trainable(candidates: Sequence[Candidate]) -> int:
    """Trainable parameters of candidates together: the scores of a masked matrix count once."""
    masks = {c.position: c.params for c in candidates if c.masks}
    return sum(masks.values()) + sum(c.params for c in candidates if not c.masks)


def overlaps(space: Space) -> Iterator[tuple[int, int, float, float]]:
    """(i, j, parameters and pruned weights that candidate i loses where j is cut), for all pairs that meet."""
    at: dict[str, list[int]] = {}
    for i, c in enumerate(space.candidates):
        at.setdefault(c.position, []).append(i)
    for name in dict.fromkeys(space.candidates[j].position for j in space.removals):
        cut = [j for j in at[name] if space.candidates[j].which]
        first = space.candidates[cut[0]]
        narrowed = narrow(space.positions, [first], trained=True)
        for old, new in zip(space.positions, narrowed, strict=True):
            for i in at.get(old.name, ()) if old != new else ():
                c = space.candidates[i]
                left = recount(c, space.kinds[c.kind], narrowed)
                lost = c.params - left.params, c.pruned_weights - left.pruned_weights
                for j in cut if any(lost) else ():
                    share = space.candidates[j].size / first.size
                    yield i, j, lost[0] * share, lost[1] * share


def recount(candidate: Candidate, kind: Kind, narrowed: Sequence[Position]) -> Candidate:
    """A whole candidate's costs on a backbone from which something was cut; what is cut costs what it did.

    It is stored whole: what no longer trains of it becomes frozen bytes.
    """
    if candidate.which:
        return candidate
    left = make_candidate(kind, find(narrowed, candidate.position), candidate.size)
    return replace(left, frozen_bytes=candidate.bytes - BYTES_PER_PARAM * left.params)


@dataclass(frozen=True)
class Space:
    """Everything that may be chosen for one backbone.

    Equal candidates (the rank units of one LoRA) stand next to each other. Relative budgets are shares of
    ``backbone_params``.
    """

    candidates: tuple[Candidate, ...]
    kinds: Mapping[str, Kind]
    positions: tuple[Position, ...]
    backbone_params: int

    @cached_property
    def trainable_params(self) -> int:
        """Parameters of all candidates together."""
        return count_trainable(self.candidates)

    @cached_property
    def by_kind(self) -> dict[str, dict[str, int]]:
        """Count and parameters of each kind."""
        groups: dict[str, list[Candidate]] = {}
        for c in self.candidates:
            groups.setdefault(c.kind, []).append(c)
        return {
            kind: {"candidates": len(group), "trainable_params": count_trainable(group)}
            for kind, group in groups.items()
        }

    @cached_property
    def removals(self) -> tuple[int, ...]:
        """Indices of the candidates that are cut out of the backbone."""
        return tuple(i for i, c in enumerate(self.candidates) if c.which)

    @cached_property
    def bands(self) -> dict[str, tuple[int, ...]]:
        """Position of each matrix that can be masked -> indices of its bands, the smallest weights first."""
        found: dict[str, tuple[int, ...]] = {}
        for i, c in enumerate(self.candidates):
            if c.masks:
                found[c.position] = (*found.get(c.position, ()), i)
        return found

    @cached_property
    def fingerprint(self) -> str:
        """Equal for spaces whose rankings mean the same: SHA-256 of the candidates in order, and of their kinds."""
        return self.fingerprint_with(
            {c.kind: self.kinds[c.kind].set_options for c in self.candidates}
        )

    def fingerprint_with(self, options: Mapping[str, Mapping[str, Any]]) -> str:
        """The fingerprint where kinds are described by these options."""
        listed = [[c.position, c.kind, c.size, c.params, c.which] for c in self.candidates]
        return hashlib.sha256(json.dumps([listed, options], sort_keys=True).encode()).hexdigest()

    def position(self, name: str) -> Position:
        """The position of that name; an unknown one is an error that lists the nearest."""
        return find(self.positions, name)


def together(space: Space, chosen: Iterable[Candidate]) -> list[Candidate]:
    """What candidates add up to: one for each position and kind, with its own costs."""
    parts: dict[tuple[str, str], list[Candidate]] = {}
    for c in chosen:
        parts.setdefault((c.position, c.kind), []).append(c)
    found = []
    for (position, kind), group in parts.items():
        which = tuple(sorted(i for c in group for i in c.which))
        size = sum(c.size for c in group)
        found.append(make_candidate(space.kinds[kind], space.position(position), size, which))
    return found


def preset_names() -> tuple[str, ...]:
    """Names of the presets that ship."""
    folder = resources.files("sparsearch.spaces").joinpath("presets")
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir()))


def _preset(name: str) -> dict[str, dict[str, Any]]:
    if name not in preset_names():
        raise ConfigError([f"unknown preset {name!r}; known: {', '.join(preset_names())}"])
    text = resources.files("sparsearch.spaces").joinpath("presets", f"{name}.yaml").read_text()
    kinds: dict[str, dict[str, Any]] = yaml.safe_load(text)["kinds"]
    return kinds


def build_space(
    model: nn.Module,
    *,
    preset: str | None = None,
    kinds: Mapping[str, Mapping[str, Any]] | None = None,
) -> Space:
    """Scan a model and list its candidates: kinds in the registry's order, positions in the backbone's.

    Args:
        model: A model of a supported family; the meta device will do.
        preset: Name of a preset.
        kinds: Kind -> its options, and ``on``, the patterns of positions to use.

    Raises:
        ConfigError: If a kind, an option or a preset is unknown, a pattern matches nothing, or kinds
            cannot be chosen together.
        BackboneError: If the family is unknown.
        ModelStateError: If the model is in a state where nothing can be attached, see ``model_state``.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        ...                              intermediate_size=128, vocab_size=100))
        >>> build_space(model, kinds={"bitfit": {"on": ["*.attn.q"]}}).trainable_params
        128
    """
    check_state(model, allow={"attached", "meta"})
    if (preset is None) == (kinds is None):
        raise ConfigError(["a space is given by either a preset or kinds, not both"])
    chosen = _preset(preset) if preset is not None else (kinds or {})
    positions = positions_of(model)
    candidates: list[Candidate] = []
    built: dict[str, Kind] = {}
    places: dict[Kind, Sequence[Position]] = {}
    problems: list[str] = []
    unknown = [name for name in chosen if name not in KINDS]
    for name in [*(kind for kind in KINDS if kind in chosen), *unknown]:
        options = dict(chosen[name])
        patterns: Sequence[str] | None = options.pop("on", None)
        try:
            kind = make_kind(name, options)
        except ConfigError as error:
            problems.extend(error.problems)
            continue
        built[name] = kind
        on = kind.default_on if patterns is None else patterns
        found = [p for p in matching(positions, on) if kind.accepts(p)]
        places[kind] = found
        for pattern in patterns or ():
            if preset is None and not any(map(kind.accepts, matching(positions, [pattern]))):
                problems.append(
                    f"space.kinds.{name}.on: {pattern!r} matches no position that {name} accepts "
                    f"(positions are named like {positions[1].name!r})"
                )
        candidates += [
            make_candidate(kind, p, size, (i,) if kind.removes else ())
            for p in found
            for i, size in enumerate(kind.sizes(p))
        ]
    problems += conflicts(places)
    if not problems and not candidates:
        problems.append("the space is empty: no kind finds a position in this model")
    if problems:
        raise ConfigError(problems)
    return Space(tuple(candidates), built, positions, count_with_pooler(model))
