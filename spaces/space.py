"""The space: the ordered list of candidates for one backbone, each with its exact integer costs."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sparsearch.errors import ConfigError
from sparsearch.spaces.backbone.parameters import count_with_pooler, family_name, positions_of
from sparsearch.spaces.backbone.state import check_state
from sparsearch.spaces.conflicts import conflicts
from sparsearch.spaces.families.generic import GuessedFamilyWarning, describe_guess
from sparsearch.spaces.families.position import Position, find, matching
from sparsearch.spaces.families.registry import FAMILIES
from sparsearch.spaces.kinds import KINDS, Kind, make_kind
from sparsearch.spaces.kinds.base import FULL_BITS
from sparsearch.spaces.kinds.precision import read_bits, split_bits

if TYPE_CHECKING:
    from torch import nn
from sparsearch.config.presets import read_preset
from sparsearch.spaces.candidate import (
    Candidate,
    count_bytes,
    count_trainable,
    make_candidate,
)

__all__ = [
    "Space",
    "build_space",
    "list_space",
    "choice_bytes",
]


def choice_bytes(offered: int) -> int:
    """Bytes of a choice among so many candidates, as a bitmap.

    >>> choice_bytes(488)
    61
    """
    return -(-offered // 8)


@dataclass(frozen=True)
class Space:
    """Everything that may be chosen for one backbone.

    Equal candidates (the rank units of one LoRA) stand next to each other. Relative budgets are shares of
    ``backbone_params``. ``guessed`` says what was guessed of a family that is not in the table, "" of others.
    """

    candidates: tuple[Candidate, ...]
    kinds: Mapping[str, Kind]
    positions: tuple[Position, ...]
    backbone_params: int
    guessed: str = ""

    @cached_property
    def trainable_params(self) -> int:
        """Parameters of all candidates together."""
        return count_trainable(self.candidates)

    @property
    def choice_bytes(self) -> int:
        """Bytes of any choice from the space, as a bitmap."""
        return choice_bytes(len(self.candidates))

    @cached_property
    def stored_bytes(self) -> int:
        """What all candidates together cost to keep, which of them were chosen included."""
        return count_bytes(self.candidates) + self.choice_bytes

    @cached_property
    def by_kind(self) -> dict[str, dict[str, int]]:
        """Count, parameters and tensors' bytes of each kind."""
        groups: dict[str, list[Candidate]] = {}
        for c in self.candidates:
            groups.setdefault(c.kind, []).append(c)
        return {
            kind: {
                "candidates": len(group),
                "trainable_params": count_trainable(group),
                "bytes": count_bytes(group),
            }
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
            if c.role == "mask":
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
        return self._named.get(name) or find(self.positions, name)

    @cached_property
    def _named(self) -> dict[str, Position]:
        return {p.name: p for p in self.positions}


def build_space(
    model: nn.Module,
    *,
    preset: str | None = None,
    kinds: Mapping[str, Mapping[str, Any]] | None = None,
) -> Space:
    """Scan a model and list its candidates: kinds in the registry's order, positions in the backbone's.

    Args:
        model: Any transformers model; the meta device will do. Where its family is not in the table, its positions
            are guessed by the type and shape of its modules, and a ``GuessedFamilyWarning`` says so.
        preset: Name of a preset.
        kinds: Kind -> its options; ``on``, the patterns of positions to use; and ``bits``, in which trained values
            are stored: each number makes candidates of its own.

    Raises:
        ConfigError: If a kind, an option or a preset is unknown, a pattern matches nothing, or kinds
            cannot be chosen together.
        BackboneError: If the family is not in the table and no linear or norm is found.
        ModelStateError: If the model is in a state where nothing can be attached, see ``model_state``.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> model = BertModel(BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        ...                              intermediate_size=128, vocab_size=100))
        >>> build_space(model, kinds={"bitfit": {"on": ["*.attn.q"]}}).trainable_params
        128
    """
    space = list_space(model, preset=preset, kinds=kinds)
    if space.guessed:
        warnings.warn(space.guessed, GuessedFamilyWarning, stacklevel=2)
    return space


def list_space(
    model: nn.Module,
    *,
    preset: str | None = None,
    kinds: Mapping[str, Mapping[str, Any]] | None = None,
) -> Space:
    """The same as ``build_space`` for callers that show ``Space.guessed`` themselves: nothing is warned of."""
    check_state(model, allow={"attached", "bitsandbytes", "dispatched", "meta"})
    if (preset is None) == (kinds is None):
        raise ConfigError(["a space is given by either a preset or kinds, not both"])
    chosen = read_preset(preset)["kinds"] if preset is not None else (kinds or {})
    positions, family = positions_of(model), family_name(model)
    guessed = "" if family in FAMILIES else describe_guess(positions, family)
    candidates: list[Candidate] = []
    built: dict[str, Kind] = {}
    places: dict[Kind, Sequence[Position]] = {}
    problems: list[str] = []
    unknown = [name for name in chosen if name not in KINDS]
    for name in [*(kind for kind in KINDS if kind in chosen), *unknown]:
        options = dict(chosen[name])
        patterns: Sequence[str] | None = options.pop("on", None)
        try:
            if name not in KINDS:
                make_kind(split_bits(name)[0], {})
                problems.append(
                    f"space.kinds.{name}: bits are an option of the kind, bits: [32, 8, 4]"
                )
                continue
            bits = read_bits(name, options.pop("bits", FULL_BITS))
            precisions = [
                make_kind(name if b == FULL_BITS else f"{name}@{b}", options) for b in bits
            ]
        except ConfigError as error:
            problems.extend(error.problems)
            continue
        kind = precisions[0]
        built |= {one.name: one for one in precisions}
        on = kind.default_on if patterns is None else patterns
        if guessed and (patterns is None or preset is not None):
            on = ("*",)  # patterns that the user did not write are of canonical names
        found = [p for p in matching(positions, on) if kind.accepts(p)]
        places[kind] = found
        for pattern in patterns or ():
            if preset is None and not any(map(kind.accepts, matching(positions, [pattern]))):
                problems.append(
                    f"space.kinds.{name}.on: {pattern!r} matches no position that {name} accepts "
                    f"(positions are named like {positions[:2][-1].name!r})"
                )
        candidates += [
            make_candidate(kind, p, size, (i,) if kind.role == "remove" else ())
            for kind in precisions
            for p in found
            for i, size in enumerate(kind.sizes(p))
        ]
    problems += conflicts(places)
    if not problems and not candidates:
        problems.append("the space is empty: no kind finds a position in this model")
    if problems:
        raise ConfigError(problems)
    return Space(tuple(candidates), built, positions, count_with_pooler(model), guessed)
