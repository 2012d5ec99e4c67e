"""The PEFT model of a plan: its configuration, and the trained tensors written into it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparsearch.config.tasks.types import facts_of
from sparsearch.results.export.adapters.peft_parameters import fill_parameters
from sparsearch.results.export.peft import AdaptedModule, AdapterPlan, saved_module
from sparsearch.spaces.backbone.folder import split_gguf
from sparsearch.spaces.backbone.loading import locate
from sparsearch.spaces.structure import Structure

if TYPE_CHECKING:
    import peft

__all__ = ["fill", "make_config", "save_adapter"]

_MAGNITUDE = "lora_magnitude_vector"


def _pattern(path: str) -> str:
    return f"^{re.escape(path)}"


def make_config(plan: AdapterPlan, structure: Structure) -> peft.PeftConfig:
    """The PEFT configuration of a plan."""
    import peft

    facts = facts_of(structure.task_type)
    common = {
        "task_type": facts.peft_type if plan.head or not facts.has_head else None,
        "base_model_name_or_path": split_gguf(locate(structure.backbone.path))[0],
        "revision": structure.backbone.revision,
        "target_modules": [m.path for m in plan.modules]
        if plan.named
        else f"^(?:{'|'.join(re.escape(m.path) for m in plan.modules)})$",
        "modules_to_save": plan.saved,
    }
    if plan.method == "beft":
        return peft.BeftConfig(**common)
    if plan.method == "ia3":
        inputs = [re.escape(m.path) for m in plan.modules if m.feed_forward]
        pattern = f"^(?:{'|'.join(inputs)})$" if inputs else []
        return peft.IA3Config(**common, feedforward_modules=pattern)
    first = plan.adapted[0].rank
    ranks = {_pattern(m.path): m.rank for m in plan.adapted}
    if {*ranks.values()} == {first}:  # servers that know one rank refuse patterns
        ranks = {}
    return peft.LoraConfig(
        **common,
        r=first,
        lora_alpha=plan.scale * first,
        rank_pattern=ranks,
        alpha_pattern={name: plan.scale * rank for name, rank in ranks.items()},
        target_parameters=[p.path for p in plan.parameters] or None,
        lora_dropout=0.0,
        bias="none",
        lora_bias=plan.with_bias,
        use_dora=plan.method == "dora",
    )


@torch.no_grad()
def fill(model: nn.Module, plan: AdapterPlan) -> None:
    """Write the trained tensors into a fresh PEFT model of this plan."""
    modules = {n.removeprefix("base_model.model."): m for n, m in model.named_modules()}
    for m in plan.modules:
        layer = modules[m.path]
        if plan.low_rank:
            _fill_lora(layer, m, plan.scale)
        else:
            vector = m.factor if plan.method == "ia3" else m.bias
            own = layer.ia3_l if plan.method == "ia3" else layer.beft_bias
            assert vector is not None, "every module of these methods has a vector"
            own["default"].copy_(vector.reshape(own["default"].shape))
    fill_parameters(modules, [*plan.parameters])
    for m in plan.norms:
        _fill_norm(modules[m.path].modules_to_save["default"], m)
    for name, value in plan.head.items():
        top = saved_module(name)
        saved = modules[top].modules_to_save["default"]
        saved.get_parameter(name.removeprefix(f"{top}.")).copy_(value)


def _fill_lora(layer: Any, m: AdaptedModule, scale: float) -> None:
    down, up = layer.lora_A["default"], layer.lora_B["default"]
    for target, value in ((down.weight, m.A), (up.weight, m.B)):
        if value is None:
            target.zero_()
        else:
            target.copy_(value)
    if m.bias is not None:
        up.bias.copy_(m.bias / scale)
    if m.magnitude is not None:  # PEFT's are the lengths of the weight's rows
        layer.lora_magnitude_vector["default"].weight += m.magnitude


def _fill_norm(norm: nn.Module, m: AdaptedModule) -> None:
    if m.gain is not None:
        norm.weight += m.gain  # type: ignore[operator]
    if m.bias is not None:
        norm.bias += m.bias  # type: ignore[operator]


def save_adapter(adapted: peft.PeftModel, folder: Path) -> None:
    """Write an adapter's folder.

    PEFT stores DoRA's magnitudes under the name of their module and reads either name; transformers reads that of the
    parameter alone, and would leave them as they were.

    Args:
        adapted: The filled PEFT model.
        folder: Exists.
    """
    adapted.save_pretrained(str(folder))
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    names = {n: f"{n}.weight" for n in tensors if n.endswith(f".{_MAGNITUDE}")}
    if names:
        save_file({names.get(n, n): t for n, t in tensors.items()}, file, {"format": "pt"})
