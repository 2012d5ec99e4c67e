"""A slot: one unit at one position of a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.elsewhere import check_complete, check_here, is_hooked
from sparsearch.spaces.families.position import Position, weight_at
from sparsearch.spaces.kinds import Kind
from sparsearch.spaces.kinds.module_base import LowRankUnit, Unit
from sparsearch.spaces.kinds.prunable.module import RemovalUnit
from sparsearch.spaces.kinds.weight_mask.module import WeightMaskUnit

__all__ = ["AttachedUnit"]


class AttachedUnit:
    """One unit at one position; ``gate`` is set while a supernet runs."""

    def __init__(self, unit: Unit, position: Position, kind: Kind) -> None:
        self.unit = unit
        self.kind = kind
        self.position = position
        self.gate: Tensor | None = None
        self.idle = False
        self.start = position.start
        self.width = position.out_features
        self.runs = position.runs
        self.seen: Tensor | None = None

    @property
    def key(self) -> str:
        """Name of the unit among the attached ones."""
        return f"{self.position.name.replace('.', '/')}:{self.kind.name}"

    @property
    def removal(self) -> RemovalUnit | None:
        """The module, where it removes heads or neurons."""
        return self.unit if isinstance(self.unit, RemovalUnit) else None

    @property
    def mask(self) -> WeightMaskUnit | None:
        """The module, where it masks weights."""
        return self.unit if isinstance(self.unit, WeightMaskUnit) else None

    @property
    def low_rank(self) -> LowRankUnit | None:
        """The module, where its change is a product of thin matrices."""
        return self.unit if isinstance(self.unit, LowRankUnit) else None

    @property
    def changes_weight(self) -> bool:
        """Whether the unit, beside a linear, is one with a change of its weight."""
        return self.kind.mergeable and not self.unit.constant

    @property
    def hooked(self) -> bool:
        """Whether something runs around the unit's forward; nothing else of it may then be relied on."""
        return is_hooked(self.unit)

    @property
    def learnt(self) -> str:
        """What the unit's parameters are, in a message."""
        return f"what {self.kind.name} at {self.position.name} has learnt"

    def check_here(self) -> None:
        """Refuse to read the unit's parameters outside its forward while another library keeps them elsewhere."""
        for parameter in self.unit.parameters():
            check_here(parameter, self.learnt)

    def run(self, *inputs: Tensor | None) -> Tensor:
        """The unit's forward; parameters that are elsewhere are brought in by its hooks, or it is refused."""
        check_complete(self.unit, self.learnt)
        result: Tensor = self.unit(*inputs)
        return result

    def delta(self, x: Tensor, *host: Tensor) -> Tensor:
        """The unit's change; ``host`` is what ``seen_of`` gave."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(next(self.unit.parameters()).dtype)
        return self.run(x, self.gate, *host)

    def seen_of(self, module: nn.Module, output: Tensor) -> tuple[Tensor, ...]:
        """What the unit reads of its linear: weight, and output without the bias; nothing if it reads none of that."""
        if not self.unit.reads_host:
            return ()
        weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
        check_here(weight, f"the weight at {self.position.name}, which {self.kind.name} reads,")
        own = self.part_of(output)
        return weight_at(self.position, module), own if bias is None else own - bias[
            self.position.rows
        ]

    def dense(self, weight: Tensor) -> Tensor:
        """The unit's change as one of its host's weight (out, in), which gives type and device."""
        if self.hooked:  # by its forward, for each input feature
            return Unit.dense(self.unit, weight, self.gate)
        self.check_here()
        return self.unit.dense(weight, self.gate)

    def add_to(self, y: Tensor, x: Tensor, *host: Tensor) -> Tensor:
        """Y plus the unit's change, on the unit's slice of a fused output; ``host`` is what ``seen_of`` gave."""
        self._check_width(y)
        change = self.delta(x, *host).to(y.dtype)
        if self.width < y.shape[-1]:
            own, period = self.width // self.runs, y.shape[-1] // self.runs
            around = self.start, period - self.start - own
            runs = change.reshape(*change.shape[:-1], self.runs, own)
            change = nn.functional.pad(runs, around).flatten(-2)
        return y + change

    def part_of(self, y: Tensor) -> Tensor:
        """The unit's slice of a fused output."""
        self._check_width(y)
        return _slice(y, self.start, self.width, self.runs)

    def see_queries(self, y: Tensor) -> None:
        """Keep an attention's queries, a slice of a linear's output or all of a norm's, until the heads are done.

        Their linear may run again in the same pass, on relative positions: the first run counts.
        """
        queries = self.position.queries
        if queries is not None and self.seen is None:
            self.seen = _slice(y, queries.start, queries.features, queries.runs)

    def attend(self, heads: Tensor) -> Tensor:
        """What the heads put out (..., features) plus the unit's change, by the queries that it saw."""
        queries, seen = self.position.queries, self.seen
        assert queries is not None and seen is not None, "queries come before what they find"
        self._check_features(heads, queries.features)
        self.seen = None
        if queries.heads_first:
            seen = seen.transpose(-3, -2)
        if seen.dim() > heads.dim() and seen.shape[-3] != heads.shape[-2]:
            raise StructureError(
                f"{self.kind.name} at {self.position.name}: queries come heads before tokens, {tuple(seen.shape)}",
                "leave this kind out (on:), or give the family norms_by_head: docs/plugins.md",
            )
        return heads + self.delta(seen.reshape(heads.shape)).to(heads.dtype)

    def _check_width(self, y: Tensor) -> None:
        """Refuse an output with fewer features than the unit needs."""
        self._check_features(y, max(self.start + self.width, self.runs * self.position.period))

    def _check_features(self, y: Tensor, least: int) -> None:
        if y.shape[-1] < least:
            raise StructureError(
                f"{self.kind.name} at {self.position.name} needs {least} output features, "
                f"and there are {y.shape[-1]}: the linear's output is split, as by tensor parallelism",
                "merge(model) before its layers are split, or run them whole",
            )


def _slice(y: Tensor, start: int, width: int, runs: int) -> Tensor:
    """Features of a fused output that lie in so many equal runs, the first of them at ``start``."""
    end = start + width // runs
    return y.reshape(*y.shape[:-1], runs, -1)[..., start:end].flatten(-2)
