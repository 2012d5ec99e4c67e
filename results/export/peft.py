"""A structure as a PEFT adapter: anchored, escaped, fully qualified names, and nothing dropped.

- ``lora``: LoRA with ``rank_pattern`` and ``alpha_pattern``; parts of a fused projection share one.
- ``spectral``, ``lora_xs``, ``vera``: LoRA too, what trained folded into ``lora_B``; all would then train.
- ``dora``: LoRA with ``use_dora``, beside no ``lora``: PEFT turns it on for an adapter as a whole.
- ``bitfit`` on a linear: BEFT where nothing else is on linears and PEFT merges that; else the bias of ``lora_B``,
  beside a zero rank-1 unit where there is no LoRA.
- ``lnfit``, ``bitfit`` on a norm: the norm in ``modules_to_save``. LN tuning is not used: unloading it leaves the
  head in its wrapper, so that a merged model's file does not fit the model.
- ``ia3``: IA3, alone: PEFT saves no adapter of mixed types.
- any other kind is refused: PEFT has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsearch.errors import ExportError
from sparsearch.results.export.adapters.peft_parameters import (
    AdaptedParameter,
    adapted_parameter,
    not_as_parameter,
    parameter_notes,
)
from sparsearch.spaces.attachment.weights_file import HEAD
from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.families.position import Position, find, widths
from sparsearch.spaces.kinds import KINDS, Kind
from sparsearch.spaces.kinds.base import FULL_BITS
from sparsearch.spaces.kinds.dora.spec import Dora
from sparsearch.spaces.kinds.ia3.spec import IA3
from sparsearch.spaces.kinds.lora.spec import Lora
from sparsearch.spaces.structure import Structure

__all__ = ["AdaptedModule", "AdapterPlan", "plan_adapter", "saved_module", "with_one_rank"]

Method = Literal["lora", "dora", "ia3", "beft"]

_SAVED_BY_PEFT = ("classifier", "score")
"""Ends of the names of modules that PEFT saves whole with every sequence classifier, unasked."""
_NAMED = 4


@dataclass
class AdaptedModule:
    """One backbone module that the adapter changes; tensors of all its units, joined.

    Attributes:
        path: Full name in the model.
        width: Output features of the whole module, parts of a fused one together.
        A: (rank, in) and ``B`` (out, rank): the low-rank update B A, without its scale.
        magnitude: (out) added to DoRA's magnitudes.
        bias: (out) added to the output.
        gain: (features) added to a norm's gain.
        factor: (features) IA3's 1 + scale.
        feed_forward: Whether IA3 rescales the module's input.
        has_bias: Whether the module has a bias of its own.
        least_rank: Of the zero unit that stands where there is no LoRA.
    """

    path: str
    width: int
    A: Tensor | None = None
    B: Tensor | None = None
    magnitude: Tensor | None = None
    bias: Tensor | None = None
    gain: Tensor | None = None
    factor: Tensor | None = None
    feed_forward: bool = False
    is_norm: bool = False
    has_bias: bool = False
    least_rank: int = 1

    @property
    def rank(self) -> int:
        """Rank of its LoRA; a linear without one carries a zero unit."""
        return self.least_rank if self.A is None else int(self.A.shape[0])

    def padded(self, rank: int) -> AdaptedModule:
        """With rows of zeros in A and columns of zeros in B, up to a rank."""
        if self.A is None or self.B is None:
            return replace(self, least_rank=rank)
        more = rank - self.rank
        return replace(self, A=F.pad(self.A, (0, 0, 0, more)), B=F.pad(self.B, (0, more)))


@dataclass(frozen=True)
class AdapterPlan:
    """What the adapter consists of.

    Attributes:
        method: Of PEFT.
        modules: Linears that get an adapter layer.
        norms: Those that are saved whole.
        parameters: Of experts and routers, which get a LoRA each.
        named: Whether PEFT is told the modules by their names: of a model with experts it takes a pattern apart.
        head: Tensor name -> trained value of the task head.
        scale: Of every LoRA unit.
        notes: What a user of the adapter should know.
        unmergeable: Why PEFT cannot merge the adapter; empty if it can.
    """

    method: Method
    modules: list[AdaptedModule]
    norms: list[AdaptedModule]
    head: dict[str, Tensor]
    scale: float
    notes: tuple[str, ...] = field(default=())
    unmergeable: str = ""
    parameters: tuple[AdaptedParameter, ...] = ()
    named: bool = False

    @property
    def low_rank(self) -> bool:
        """Whether PEFT's type is LoRA."""
        return self.method in ("lora", "dora")

    @property
    def adapted(self) -> tuple[AdaptedModule | AdaptedParameter, ...]:
        """All that gets a layer of PEFT."""
        return *self.modules, *self.parameters

    @property
    def with_bias(self) -> bool:
        """Whether any linear has a trained bias."""
        return any(m.bias is not None for m in self.modules)

    @property
    def saved(self) -> list[str]:
        """Modules that are saved whole: those of the head, and the norms."""
        return sorted({saved_module(name) for name in self.head}) + [m.path for m in self.norms]


def plan_adapter(
    model: nn.Module, structure: Structure, tensors: Mapping[str, Tensor]
) -> AdapterPlan:
    """Join a structure's tensors module by module.

    Args:
        model: The structure's backbone, with its head.
        structure: What to express.
        tensors: Trained values by file name, as ``weights_file.values_of`` gives them.

    Raises:
        ExportError: If PEFT cannot express it; the message counts what it cannot, by kind and reason.
    """
    positions, base = positions_of(model), base_of(model)
    _refuse(structure, positions, base)
    scale = next((k.alpha for k in structure.kinds if isinstance(k, Lora | Dora)), 1.0)
    paths = {module: name for name, module in model.named_modules()}
    modules: dict[str, AdaptedModule] = {}
    parameters: dict[str, AdaptedParameter] = {}
    for candidate in structure.candidates:
        position = find(positions, candidate.position)
        if position.in_weight:
            if position.host not in parameters:
                module_path = paths[base.get_submodule(position.module)]
                parameters[position.host] = adapted_parameter(
                    base, position, module_path, AdaptedModule
                )
            module = parameters[position.host].matrices[position.expert or 0]
        else:
            if position.module not in modules:
                modules[position.module] = _adapted(model, position, paths)
            module = modules[position.module]
        name = f"{candidate.position}:{candidate.kind}."
        unit = {n.removeprefix(name): t for n, t in tensors.items() if n.startswith(name)}
        name = candidate.base_kind
        if (product := structure.kind(candidate.kind).low_rank(unit)) is not None:
            name, unit = "lora", {"A": product[0], "B": product[1] / scale}
        _join(module, position, name, unit)
    head = {n.removeprefix(HEAD): t for n, t in tensors.items() if n.startswith(HEAD)}
    norms = [m for m in modules.values() if m.is_norm]
    linears = [m for m in modules.values() if not m.is_norm]
    notes = _norm_notes(norms)
    if not linears and not parameters:  # PEFT takes no adapter that adapts nothing
        first = next(p for p in positions if p.role == "linear")
        linears = [_adapted(model, first, paths)]
        notes += (
            f"PEFT wants an adapted linear: {linears[0].path} carries a zero rank-1 LoRA, which stays zero in training",
        )
    if any(c.bits < FULL_BITS for c in structure.candidates):
        notes += ("PEFT stores 32 bits a value, and trains on without rounding",)
    method = _method(model, linears, head)
    notes += _bias_notes(method, linears) + _basis_notes(structure)
    found = tuple(parameters.values())
    notes += parameter_notes(found)
    plan = AdapterPlan(method, linears, norms, head, scale, notes)
    plan = replace(plan, parameters=found, named=any(p.in_weight for p in positions))
    return replace(plan, unmergeable=_unmergeable(plan, structure))


def with_one_rank(plan: AdapterPlan) -> AdapterPlan:
    """The same adapter, all LoRA of which have the largest rank: some servers know one alone.

    Raises:
        ExportError: If it is no plain LoRA.
    """
    if plan.method != "lora":
        raise ExportError(
            f"one rank is of LoRA, and this adapter is PEFT's {plan.method.upper()}",
            "export it with --to peft",
        )
    rank = max(m.rank for m in plan.adapted)
    padded = sum(m.rank < rank for m in plan.adapted)
    note = (
        f"all LoRA have rank {rank}: {padded} of {len(plan.adapted)} are filled up with zeros, which stay zero in "
        "training"
    )
    modules = [m.padded(rank) for m in plan.modules]
    parameters = tuple(p.padded(rank) for p in plan.parameters)
    return replace(plan, modules=modules, parameters=parameters, notes=(*plan.notes, note))


def _adapted(
    model: nn.Module,
    position: Position,
    paths: Mapping[nn.Module, str],
) -> AdaptedModule:
    module = base_of(model).get_submodule(position.module)
    return AdaptedModule(
        paths[module],
        width=widths(module)[1],
        is_norm=position.role == "norm",
        has_bias=getattr(module, "bias", None) is not None,
    )


def _method(
    model: nn.Module, linears: Sequence[AdaptedModule], head: Mapping[str, Tensor]
) -> Method:
    if any(m.factor is not None for m in linears):
        return "ia3"
    if any(m.magnitude is not None for m in linears):
        return "dora"
    biases_alone = bool(linears) and all(m.A is None and m.bias is not None for m in linears)
    plain = all(isinstance(model.get_submodule(m.path), nn.Linear) for m in linears)
    return "beft" if biases_alone and plain and not _composite(head) else "lora"


def _unmergeable(plan: AdapterPlan, structure: Structure) -> str:
    if structure.backbone.quantisation is not None:
        return (
            "the base model is quantised, and what was trained would be rounded with its weights"
        )
    without = sum(not m.has_bias for m in plan.modules) if plan.with_bias else 0
    if without:
        return f"{without} of the adapted linears have no bias that could take the trained one"
    if plan.method == "ia3" and (composite := _composite(plan.head)):
        return f"it unloads an IA3 adapter only where each saved module is one layer; {composite[0]} is several"
    return ""


def _composite(head: Mapping[str, Tensor]) -> list[str]:
    """Saved modules of the head that are made of several layers; LoRA alone unloads them."""
    return [saved for name in head if (saved := saved_module(name)) != name.rpartition(".")[0]]


def _basis_notes(structure: Structure) -> tuple[str, ...]:
    kinds = {c.base_kind for c in structure.candidates}
    return tuple(
        f"PEFT has no {name} units: they are written as LoRA of the same rank, all of which would train"
        for name in KINDS
        if name in kinds and name != "lora" and _is_lora(name)
    )


def _bias_notes(method: Method, linears: Sequence[AdaptedModule]) -> tuple[str, ...]:
    if not any(m.bias is not None for m in linears):
        return ()
    if method == "beft":
        return ("a bias-only adapter: PEFT's method is BEFT, which needs peft 0.21 or newer",)
    alone = [m for m in linears if m.A is None]
    if not alone:
        return ("PEFT sets lora_bias for the whole adapter: every adapted linear has a bias",)
    return (
        f"PEFT has no bias-only layer here: {len(alone)} linears carry their bias on a zero rank-1 "
        "LoRA, which stays zero in training",
        "PEFT sets lora_bias for the whole adapter: every adapted linear has a bias",
    )


def _norm_notes(norms: Sequence[AdaptedModule]) -> tuple[str, ...]:
    if not norms:
        return ()
    return (
        f"PEFT saves whole norms: {len(norms)} norms carry gain and bias, though one may be untouched",
    )


def _refuse(structure: Structure, positions: Sequence[Position], base: nn.Module) -> None:
    """Raise for everything that PEFT cannot express: each kind once, with its reason and where it is."""
    kinds = {c.base_kind for c in structure.candidates}
    reasons = {kind.name: kind.not_in_peft for kind in structure.kinds}
    refused: dict[tuple[str, str], list[str]] = {}
    experts = any(p.in_weight for p in positions)
    in_bytes = bool((structure.backbone.quantisation or {}).get("load_in_8bit"))
    in_weight = any(find(positions, c.position).in_weight for c in structure.candidates)
    for candidate in structure.candidates:
        position = find(positions, candidate.position)
        if reasons[candidate.kind]:
            reason = reasons[candidate.kind]
        elif candidate.base_kind == "ia3" and kinds != {"ia3"}:
            reason = "PEFT saves no mix of IA3 with others"
        elif candidate.base_kind == "dora" and any(map(_is_lora, kinds)):
            reason = "PEFT makes either all LoRA of an adapter DoRA, or none"
        elif candidate.base_kind == "dora" and in_bytes:
            reason = "PEFT 0.21 loses the scales of weights in 8 bits at the first pass of a DoRA"
        elif candidate.base_kind == "bitfit" and position.role == "linear" and "dora" in kinds:
            reason = "PEFT has no bias beside DoRA"
        elif candidate.base_kind == "bitfit" and position.role == "linear" and in_weight:
            reason = "PEFT has no bias beside LoRA of experts and routers"
        elif position.role == "norm" and candidate.base_kind == "bitfit" and not position.has_bias:
            reason = "this norm has no bias"
        elif position.in_weight and not _is_lora(candidate.base_kind):
            reason = "PEFT changes experts and routers by LoRA alone"
        elif position.in_weight and (
            other := not_as_parameter(position, base.get_submodule(position.module))
        ):
            reason = other
        elif experts and any(map(_is_lora, kinds)) and _taken_for_expert(position):
            reason = "beside experts, PEFT takes a linear of this name for one of theirs"
        else:
            continue
        refused.setdefault((candidate.kind, reason), []).append(candidate.position)
    if refused:
        lines = (f"  - {len(at)} {k} ({why}): {_some(at)}" for (k, why), at in refused.items())
        raise ExportError(
            "PEFT cannot express:\n" + "\n".join(lines),
            "export --to spec holds everything, --to checkpoint is a merged model; for PEFT search with lora, "
            "bitfit and lnfit, bitfit only on norms that have a bias",
        )


def _is_lora(kind: str) -> bool:
    """Whether units of a kind are written as LoRA."""
    return kind == "lora" or KINDS[kind].low_rank is not Kind.low_rank


def _taken_for_expert(position: Position) -> bool:
    """Whether PEFT 0.21 turns the module's name into that of a tensor of experts: a shared expert, or a dense layer."""
    return position.module.rpartition(".")[2] in ("gate_proj", "up_proj", "down_proj")


def _some(positions: Sequence[str]) -> str:
    more = len(positions) - _NAMED
    return ", ".join(positions[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _join(
    module: AdaptedModule, position: Position, kind: str, unit: Mapping[str, Tensor]
) -> None:
    """Add one unit's tensors, at its rows of a fused projection."""
    rows = position.rows
    if kind in ("lora", "dora"):
        wide = torch.zeros(module.width, unit["B"].shape[1])
        wide[rows] = unit["B"]
        module.A = unit["A"] if module.A is None else torch.cat([module.A, unit["A"]])
        module.B = wide if module.B is None else torch.cat([module.B, wide], dim=1)
        if kind == "dora":
            module.magnitude = _added(module.magnitude, unit["magnitude"], module.width, rows)
    elif kind == "bitfit":
        module.bias = _added(module.bias, unit["bias"], module.width, rows)
    elif kind == "lnfit":
        module.gain = unit["gain"]
    elif kind == "ia3":
        module.feed_forward = IA3().stage(position) == "input"
        if module.feed_forward:
            module.factor = 1 + unit["scale"]
        else:
            module.factor = torch.ones(module.width) if module.factor is None else module.factor
            module.factor[rows] += unit["scale"]


def _added(vector: Tensor | None, change: Tensor, width: int, rows: slice | list[int]) -> Tensor:
    """A vector (width) with a change at its rows; of zeros where there is none yet."""
    vector = torch.zeros(width) if vector is None else vector
    vector[rows] += change
    return vector


def saved_module(name: str) -> str:
    """The module that is saved for a tensor of the head: its own, or the one around it that PEFT saves anyway."""
    path = name.split(".")[:-1]
    for depth, part in enumerate(path, 1):
        if part.endswith(_SAVED_BY_PEFT):
            return ".".join(path[:depth])
    return ".".join(path)
