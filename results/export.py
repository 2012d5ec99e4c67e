"""Exports: files that other tools load, each proven by loading it again before it counts.

``spec`` is our own folder (structure.json + modules.safetensors), ``peft`` a PEFT adapter
folder. What PEFT cannot express is refused by name.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor

from sparsearch.errors import ExportError
from sparsearch.results.peft_adapter import AdapterPlan, fill, make_config, plan_adapter
from sparsearch.results.values import Best
from sparsearch.spaces.attach import attach, detach, load_weights
from sparsearch.spaces.backbone import base_of, load_model, locate, positions_of
from sparsearch.spaces.positions import find
from sparsearch.spaces.structure import Structure

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["FORMATS", "ExportReport", "check_target", "export", "write_spec"]

FORMATS = ("spec", "peft")
TOLERANCE = 1e-5
"""Largest allowed difference of a logit after the round trip, relative to the largest logit if that is above 1."""


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The folder.
        files: Names in it.
        notes: What a user of the files should know.
        max_difference: Of the logits, before and after the round trip.
    """

    path: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]
    max_difference: float


def export(best: Best, weights: bytes, to: str, out: str | Path) -> ExportReport:
    """Write a trained structure and prove it: load what was written and compare names, counts and logits.

    Args:
        best: The trial to export, as a query gives it.
        weights: Its trained weights, as the store gives them.
        to: ``spec`` or ``peft``.
        out: A folder that does not exist yet, or is empty.

    Raises:
        ExportError: If the folder cannot be written, PEFT cannot express the structure, or the
            round trip differs. Nothing is
            left behind.
    """
    if to not in FORMATS:
        raise ExportError(f"unknown format {to!r}; known: {', '.join(FORMATS)}")
    if to == "spec":
        return write_spec(best.structure, weights, out)
    return _into(Path(out), lambda folder: _write_peft(best.structure, weights, folder))


def write_spec(structure: Structure, weights: bytes, out: str | Path) -> ExportReport:
    """Write and prove the ``spec`` format, see ``export``."""
    return _into(Path(out), lambda folder: _write_spec(structure, weights, folder))


def check_target(out: Path) -> None:
    """Refuse a target that could not be written, before any work.

    Raises:
        ExportError: If it exists and is not an empty folder, or its parent cannot be written to.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ExportError(f"{out} exists and is not an empty folder", "choose another --out")
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(out, error) from error
    if not os.access(out.parent, os.W_OK):
        raise ExportError(f"cannot write {out}: its folder is read-only", "choose another --out")


def _into(out: Path, write: Callable[[Path], tuple[tuple[str, ...], float]]) -> ExportReport:
    """Write into a hidden folder beside the target and move it there only when it is proven."""
    check_target(out)
    try:
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise _cannot_write(out, error) from error
    try:
        notes, difference = write(partial)
        files = tuple(sorted(f.name for f in partial.iterdir()))
        partial.chmod(0o755)
        os.replace(partial, out)
    except OSError as error:
        raise _cannot_write(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ExportReport(out, files, notes, difference)


def _cannot_write(out: Path, error: OSError) -> ExportError:
    return ExportError(f"cannot write {out}: {error.strerror or error}", "choose another --out")


def _fresh_model(structure: Structure, weights: bytes) -> PreTrainedModel:
    """The backbone from disk, with a head of the exported width."""
    path = locate(structure.backbone.path)
    classes = _classes(weights)
    return load_model(path, revision=structure.backbone.revision, num_labels=len(classes) or 1)


def _classes(weights: bytes) -> list[str]:
    """Class names from the metadata of a safetensors file: 8 bytes of length, then a JSON header."""
    size = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + size])
    classes: list[str] = json.loads(header["__metadata__"]["classes"])
    return classes


@torch.no_grad()
def _logits(model: torch.nn.Module) -> Tensor:
    """Logits of three fixed token sequences in float32."""
    model.eval()
    config = model.config
    generator = torch.Generator().manual_seed(0)
    found = []
    for length in (4, 9, 16):
        ids = torch.randint(5, config.vocab_size, (1, length), generator=generator)  # type: ignore[union-attr, arg-type]
        if config.model_type == "t5":  # type: ignore[union-attr]
            ids[:, -1] = config.eos_token_id  # type: ignore[union-attr, assignment]
        found.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
    return torch.cat(found)


def _reference(structure: Structure, weights: bytes) -> Tensor:
    """Logits of the structure with the stored weights."""
    model = _fresh_model(structure, weights)
    attach(model, structure)
    load_weights(model, safetensors.torch.load(weights))
    return _logits(model)


def _compare(expected: Tensor, found: Tensor) -> float:
    difference = float((expected - found).abs().max())
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:
        raise ExportError(
            f"the export does not survive its round trip: logits differ by {difference:.2e} (allowed {allowed:.0e})"
        )
    return difference


def _write_spec(
    structure: Structure, weights: bytes, folder: Path
) -> tuple[tuple[str, ...], float]:
    (folder / "structure.json").write_text(structure.to_json(), encoding="utf-8")
    (folder / "modules.safetensors").write_bytes(weights)
    if Structure.load(folder).hash != structure.hash:
        raise ExportError("the written structure is not the one that was exported")
    model = attach(_fresh_model(structure, weights), folder)
    trained = sum(p.numel() for n, p in model.named_parameters() if n.startswith("sparsearch."))
    positions = positions_of(
        model
    )  # where heads are cut by a factor, modules keep their rows on them
    counted = sum(
        structure.kind(c.kind).params(find(positions, c.position), c.size)
        for c in structure.candidates
    )
    if trained != counted:
        raise ExportError(f"{trained} parameters are attached, the structure counts {counted}")
    note = "load it with sparsearch.attach(model, folder), or train it with `sparsearch train`"
    return (note,), _compare(_reference(structure, weights), _logits(model))


def _write_peft(
    structure: Structure, weights: bytes, folder: Path
) -> tuple[tuple[str, ...], float]:
    import peft

    tensors = safetensors.torch.load(weights)
    model = _fresh_model(structure, weights)
    positions = positions_of(model)
    prefix = next(name for name, module in model.named_modules() if module is base_of(model))
    plan = plan_adapter(structure, positions, tensors, f"{prefix}." if prefix else "")
    expected = _reference(structure, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(detach(model), make_config(plan, structure))
        fill(adapted, plan)
        adapted.save_pretrained(folder)
        again = peft.PeftModel.from_pretrained(_fresh_model(structure, weights), folder)
    _check_names(again, plan)
    return plan.notes, _compare(expected, _logits(again))


def _check_names(model: torch.nn.Module, plan: AdapterPlan) -> None:
    """The reloaded adapter touches exactly the planned modules, with the planned ranks."""
    adapted = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "active_adapters") and hasattr(module, "base_layer")
    }
    planned = {m.path for m in plan.modules}
    if set(adapted) != planned:
        raise ExportError(
            f"PEFT adapts other modules than planned: {sorted(set(adapted) ^ planned)[:4]}"
        )
    for module in plan.modules:
        rank = getattr(adapted[module.path], "r", {}).get("default")
        if module.rank and rank != module.rank:
            raise ExportError(f"PEFT gives {module.path} rank {rank}, planned {module.rank}")
