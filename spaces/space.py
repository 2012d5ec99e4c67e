"""The space: the ordered list of candidates for one backbone, each with its exact integer costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import yaml
from torch import nn

from sparsearch.errors import ConfigError
from sparsearch.spaces.backbone import count_params, positions_of
from sparsearch.spaces.kinds import Kind, make_kind
from sparsearch.spaces.positions import Position, find, matching

__all__ = [
    "BYTES_PER_PARAM",
    "Candidate",
    "Space",
    "build_space",
    "make_candidate",
    "preset_names",
]

BYTES_PER_PARAM = 4


@dataclass(frozen=True)
class Candidate:
    """One thing that may be attached at one position.

    Attributes:
        position: Canonical name.
        kind: Name of the kind.
        size: Rank or bottleneck width; 1 for a kind that has no size.
        params: Trainable parameters.
        flops_per_token: FLOPs per token as attached.
        merged_flops_per_token: FLOPs per token that remain at inference after merging.
        frozen_bytes: Bytes of what is stored with it but not trained.
    """

    position: str
    kind: str
    size: int
    params: int
    flops_per_token: int
    merged_flops_per_token: int
    frozen_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Stored size in bytes."""
        return BYTES_PER_PARAM * self.params + self.frozen_bytes


def make_candidate(kind: Kind, position: Position, size: int) -> Candidate:
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
    )


@dataclass(frozen=True)
class Space:
    """Everything that may be chosen for one backbone.

    Equal candidates (the rank units of one LoRA) stand next to each other.
    """

    candidates: tuple[Candidate, ...]
    kinds: Mapping[str, Kind]
    positions: tuple[Position, ...]
    backbone_params: int

    @cached_property
    def trainable_params(self) -> int:
        """Parameters of all candidates together."""
        return sum(c.params for c in self.candidates)

    @cached_property
    def by_kind(self) -> dict[str, dict[str, int]]:
        """Count and parameters of each kind."""
        table: dict[str, dict[str, int]] = {}
        for c in self.candidates:
            row = table.setdefault(c.kind, {"candidates": 0, "trainable_params": 0})
            row["candidates"] += 1
            row["trainable_params"] += c.params
        return table

    def position(self, name: str) -> Position:
        """The position of that name; an unknown one is an error that lists the nearest."""
        return find(self.positions, name)


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
    """Scan a model and list its candidates, kind by kind, in the backbone's order.

    Args:
        model: A model of a supported family; the meta device will do.
        preset: Name of a preset.
        kinds: Kind -> its options, and ``on``, the patterns of positions to use.

    Raises:
        ConfigError: If a kind, an option or a preset is unknown, or a pattern matches nothing.
        BackboneError: If the family is unknown.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        ...                              intermediate_size=128, vocab_size=100))
        >>> build_space(model, kinds={"bitfit": {"on": ["*.attn.q"]}}).trainable_params
        128
    """
    if (preset is None) == (kinds is None):
        raise ConfigError(["a space is given by either a preset or kinds, not both"])
    chosen = _preset(preset) if preset is not None else (kinds or {})
    positions = positions_of(model)
    candidates: list[Candidate] = []
    built: dict[str, Kind] = {}
    problems: list[str] = []
    for name, spec in chosen.items():
        options = dict(spec)
        patterns: Sequence[str] | None = options.pop("on", None)
        try:
            kind = make_kind(name, options)
        except ConfigError as error:
            problems.extend(error.problems)
            continue
        built[name] = kind
        found = [p for p in matching(positions, patterns or kind.default_on) if kind.accepts(p)]
        for pattern in patterns or ():
            if preset is None and not any(map(kind.accepts, matching(positions, [pattern]))):
                problems.append(
                    f"space.kinds.{name}.on: {pattern!r} matches no position that {name} accepts "
                    f"(positions are named like {positions[1].name!r})"
                )
        candidates += [make_candidate(kind, p, size) for p in found for size in kind.sizes(p)]
    if not problems and not candidates:
        problems.append("the space is empty: no kind finds a position in this model")
    if problems:
        raise ConfigError(problems)
    return Space(tuple(candidates), built, positions, count_params(model))
