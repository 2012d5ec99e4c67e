"""A structure as a PEFT adapter: anchored, escaped, fully qualified names, and nothing dropped.

- ``lora``: LoRA with ``rank_pattern`` and ``alpha_pattern``; parts of a fused projection share one.
- ``spectral``: LoRA too, the values folded into ``lora_B``; its directions would then train as well.
- ``bitfit`` on a linear: the bias of ``lora_B``, beside a zero rank-1 unit where there is no LoRA.
- ``lnfit``, ``bitfit`` on a norm: the norm in ``modules_to_save``; LN tuning where only norms are chosen.
- ``ia3``: IA3, alone: PEFT saves no adapter of mixed types.
- ``adapter``, ``low_rank_adapter``, ``sparse_delta``, ``heads``, ``neurons``,
  ``weight_mask``: refused, PEFT has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsearch.errors import ExportError
from sparsearch.spaces.kinds.ia3 import IA3
from sparsearch.spaces.kinds.lora import Lora
from sparsearch.spaces.positions import Position, find
from sparsearch.spaces.structure import Structure
from sparsearch.spaces.weights_file import HEAD

if TYPE_CHECKING:
    import peft

__all__ = ["AdaptedModule", "AdapterPlan", "fill", "make_config", "plan_adapter"]

_REFUSED = {
    "adapter": "PEFT has no such adapter",
    "low_rank_adapter": "PEFT has no such adapter",
    "heads": "PEFT cuts nothing out of a backbone",
    "neurons": "PEFT cuts nothing out of a backbone",
    "sparse_delta": "PEFT has no adapter of any number of single entries; SHiRA fixes it by a rank",
    "weight_mask": "PEFT does not change the backbone's weights",
}
"""Kinds that PEFT lacks, and why."""

_NAMED = 4


@dataclass
class AdaptedModule:
    """One backbone module that the adapter changes; tensors of all its units, joined.

    Attributes:
        path: Full name in the model.
        width: Output features of the whole module, parts of a fused one together.
        A: (rank, in) and ``B`` (out, rank): the low-rank update B A, without its scale.
        bias: (out) added to the output.
        gain: (features) added to a norm's gain.
        factor: (features) IA3's 1 + scale.
        feed_forward: Whether IA3 rescales the module's input.
    """

    path: str
    width: int
    A: Tensor | None = None
    B: Tensor | None = None
    bias: Tensor | None = None
    gain: Tensor | None = None
    factor: Tensor | None = None
    feed_forward: bool = False
    is_norm: bool = False

    @property
    def rank(self) -> int:
        """Rank of the PEFT adapter; a linear with a bias alone carries a zero unit of rank 1."""
        if self.A is not None:
            return int(self.A.shape[0])
        return 1 if self.bias is not None and not self.is_norm else 0


@dataclass(frozen=True)
class AdapterPlan:
    """What the adapter consists of.

    Attributes:
        method: ``lora``, ``ia3`` or ``ln_tuning``.
        modules: Those that get an adapter layer.
        saved: Norms that are saved whole, beside an adapter of method ``lora``.
        head: Tensor name -> trained value of the task head.
        scale: Of every LoRA unit.
        prefix: Of the base model inside the model.
        notes: What a user of the adapter should know.
    """

    method: str
    modules: list[AdaptedModule]
    saved: list[AdaptedModule]
    head: dict[str, Tensor]
    scale: float
    prefix: str
    notes: tuple[str, ...] = field(default=())

    @property
    def with_bias(self) -> bool:
        """Whether any linear has a trained bias."""
        return any(m.bias is not None for m in self.modules if not m.is_norm)


def plan_adapter(
    structure: Structure, positions: Sequence[Position], tensors: Mapping[str, Tensor], prefix: str
) -> AdapterPlan:
    """Join a structure's tensors module by module.

    Args:
        structure: What to express.
        positions: Of the backbone.
        tensors: Trained weights by file name.
        prefix: Of the base model inside the model ("bert.").

    Raises:
        ExportError: If PEFT cannot express it; the message counts what it cannot, by kind and reason.
    """
    _refuse(structure, positions)
    modules: dict[str, AdaptedModule] = {}
    scale = next((k.alpha for k in structure.kinds if isinstance(k, Lora)), 1.0)
    for candidate in structure.candidates:
        position = find(positions, candidate.position)
        width = max(p.start + p.out_features for p in positions if p.module == position.module)
        module = modules.setdefault(
            position.module,
            AdaptedModule(prefix + position.module, width, is_norm=position.role == "norm"),
        )
        name = f"{candidate.position}:{candidate.kind}."
        unit = {n.removeprefix(name): t for n, t in tensors.items() if n.startswith(name)}
        if candidate.kind == "spectral":
            unit = _as_lora(unit, scale)
        _join(module, position, candidate.kind, unit)
    head = {n.removeprefix(HEAD): t for n, t in tensors.items() if n.startswith(HEAD)}
    norms = [m for m in modules.values() if m.is_norm]
    linears = [m for m in modules.values() if not m.is_norm]
    if any(c.kind == "ia3" for c in structure.candidates):
        return AdapterPlan("ia3", linears, [], head, scale, prefix)
    if not linears:
        return AdapterPlan("ln_tuning", norms, [], head, scale, prefix, _norm_notes(norms))
    notes = (*_norm_notes(norms), *_bias_notes(linears), *_basis_notes(structure))
    return AdapterPlan("lora", linears, norms, head, scale, prefix, notes)


def _as_lora(unit: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Spectral as LoRA: the right directions are A, the left ones times the values are B."""
    return {"A": unit["right"], "B": unit["left"] * unit["values"].flatten() / scale}


def _basis_notes(structure: Structure) -> tuple[str, ...]:
    if not any(c.kind == "spectral" for c in structure.candidates):
        return ()
    return (
        "PEFT has no spectral units: they are written as LoRA of the same rank, all of which would train",
    )


def _bias_notes(linears: Sequence[AdaptedModule]) -> tuple[str, ...]:
    phantom = [m.path for m in linears if m.A is None]
    notes = []
    if phantom:
        notes.append(
            f"PEFT has no bias-only adapter: {len(phantom)} linears carry their bias on a zero rank-1 "
            "LoRA, which stays zero in training"
        )
    if any(m.bias is not None for m in linears) and len(phantom) < len(linears):
        notes.append("PEFT sets lora_bias for the whole adapter: every adapted linear has a bias")
    return tuple(notes)


def _norm_notes(norms: Sequence[AdaptedModule]) -> tuple[str, ...]:
    if not norms:
        return ()
    return (
        f"PEFT saves whole norms: {len(norms)} norms carry gain and bias, though one may be untouched",
    )


def _refuse(structure: Structure, positions: Sequence[Position]) -> None:
    """Raise for everything that PEFT cannot express: each kind once, with its reason and where it is."""
    kinds = {c.kind for c in structure.candidates}
    refused: dict[tuple[str, str], list[str]] = {}
    for candidate in structure.candidates:
        position = find(positions, candidate.position)
        if candidate.kind in _REFUSED:
            reason = _REFUSED[candidate.kind]
        elif candidate.kind == "ia3" and kinds != {"ia3"}:
            reason = "PEFT saves no mix of IA3 with others"
        elif position.role == "norm" and candidate.kind == "bitfit" and not position.has_bias:
            reason = "this norm has no bias"
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


def _some(positions: Sequence[str]) -> str:
    more = len(positions) - _NAMED
    return ", ".join(positions[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _join(
    module: AdaptedModule, position: Position, kind: str, unit: Mapping[str, Tensor]
) -> None:
    """Add one unit's tensors, at its rows of a fused projection."""
    rows = slice(position.start, position.start + position.out_features)
    if kind in ("lora", "spectral"):
        wide = torch.zeros(module.width, unit["B"].shape[1])
        wide[rows] = unit["B"]
        module.A = unit["A"] if module.A is None else torch.cat([module.A, unit["A"]])
        module.B = wide if module.B is None else torch.cat([module.B, wide], dim=1)
    elif kind == "bitfit":
        module.bias = torch.zeros(module.width) if module.bias is None else module.bias
        module.bias[rows] += unit["bias"]
    elif kind == "lnfit":
        module.gain = unit["gain"]
    else:
        module.feed_forward = IA3().stage(position) == "input"
        if module.feed_forward:
            module.factor = 1 + unit["scale"]
        else:
            module.factor = torch.ones(module.width) if module.factor is None else module.factor
            module.factor[rows] += unit["scale"]


def _saved_module(name: str, prefix: str) -> str:
    """The module that holds a head's tensor: the model's child, or the base model's (a new pooler)."""
    inside = prefix if prefix and name.startswith(prefix) else ""
    return inside + name.removeprefix(inside).split(".")[0]


def _pattern(path: str) -> str:
    return f"^{re.escape(path)}"


def make_config(plan: AdapterPlan, structure: Structure) -> peft.PeftConfig:
    """The PEFT configuration of a plan."""
    import peft

    heads = sorted({_saved_module(name, plan.prefix) for name in plan.head})
    common = {
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": structure.backbone.path,
        "revision": structure.backbone.revision,
        "target_modules": f"^(?:{'|'.join(re.escape(m.path) for m in plan.modules)})$",
        "modules_to_save": heads + [m.path for m in plan.saved],
    }
    if plan.method == "ln_tuning":
        return peft.LNTuningConfig(**common)
    if plan.method == "ia3":
        inputs = [re.escape(m.path) for m in plan.modules if m.feed_forward]
        pattern = f"^(?:{'|'.join(inputs)})$" if inputs else []
        return peft.IA3Config(**common, feedforward_modules=pattern)
    ranks = {_pattern(m.path): m.rank for m in plan.modules}
    first = plan.modules[0].rank
    return peft.LoraConfig(
        **common,
        r=first,
        lora_alpha=plan.scale * first,
        rank_pattern=ranks,
        alpha_pattern={name: plan.scale * rank for name, rank in ranks.items()},
        lora_dropout=0.0,
        bias="none",
        lora_bias=plan.with_bias,
    )


@torch.no_grad()
def fill(model: nn.Module, plan: AdapterPlan) -> None:
    """Write the trained tensors into a fresh PEFT model of this plan."""
    modules = {n.removeprefix("base_model.model."): m for n, m in model.named_modules()}
    for m in plan.modules:
        layer = modules[m.path]
        if plan.method == "lora":
            _fill_lora(layer, m, plan)
        elif plan.method == "ia3":
            assert m.factor is not None
            parameter = layer.ia3_l["default"]
            parameter.copy_(m.factor.reshape(parameter.shape))
        else:
            _fill_norm(layer.ln_tuning_layers["default"], m)
    for m in plan.saved:
        _fill_norm(modules[m.path].modules_to_save["default"], m)
    for name, value in plan.head.items():
        top = _saved_module(name, plan.prefix)
        rest = name.removeprefix(f"{top}.")
        saved = modules[top].modules_to_save["default"]
        saved.get_parameter(rest).copy_(value)


def _fill_lora(layer: Any, m: AdaptedModule, plan: AdapterPlan) -> None:
    down, up = layer.lora_A["default"], layer.lora_B["default"]
    for target, value in ((down.weight, m.A), (up.weight, m.B)):
        if value is None:
            target.zero_()
        else:
            target.copy_(value)
    if m.bias is not None:
        up.bias.copy_(m.bias / plan.scale)


def _fill_norm(norm: nn.Module, m: AdaptedModule) -> None:
    if m.gain is not None:
        norm.weight += m.gain  # type: ignore[operator]
    if m.bias is not None:
        norm.bias += m.bias  # type: ignore[operator]
