"""Exports: files that other tools load, each proven by loading it again before it counts.

``spec`` is our own folder (structure.json + modules.safetensors), ``peft`` a PEFT adapter
folder, ``checkpoint`` a merged and physically smaller model. What PEFT cannot express, or what cannot be
merged exactly, is refused by name.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch

from sparsearch.errors import ExportError
from sparsearch.results.checkpoint_folder import write_checkpoint
from sparsearch.results.peft_adapter import AdapterPlan, fill, make_config, plan_adapter
from sparsearch.results.round_trip import (
    classes_of,
    compare,
    fresh_model,
    is_whole,
    logits_of,
    reference,
)
from sparsearch.results.serving import check_serving, write_serving
from sparsearch.results.values import Best
from sparsearch.spaces.attach import attach, detach
from sparsearch.spaces.backbone import base_of, positions_of
from sparsearch.spaces.positions import Position, find
from sparsearch.spaces.structure import Structure

__all__ = ["FORMATS", "ExportReport", "check_target", "export", "write_spec"]

FORMATS = ("spec", "peft", "checkpoint")


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


def export(
    best: Best, weights: bytes, to: str, out: str | Path, also: Sequence[str] = ()
) -> ExportReport:
    """Write a trained structure and prove it: load what was written and compare names, counts and logits.

    Args:
        best: The trial to export, as a query gives it.
        weights: Its trained weights, as the store gives them.
        to: ``spec``, ``peft`` or ``checkpoint``.
        out: A folder that does not exist yet, or is empty.
        also: Serving files to write beside a checkpoint: ``onnx``, ``torch``.

    Raises:
        ExportError: If the folder cannot be written, PEFT cannot express the structure, it cannot be merged, or
            the round trip differs. Nothing is left behind; only where a serving file cannot be
            made, the checkpoint itself stays.
    """
    if to not in FORMATS:
        raise ExportError(f"unknown format {to!r}; known: {', '.join(FORMATS)}")
    if also and to != "checkpoint":
        raise ExportError(f"serving files go with a checkpoint, not with {to}", "--to checkpoint")
    check_serving(also)
    classes_of(weights)
    if to != "checkpoint" and is_whole(weights):
        raise ExportError(
            f"what this structure leaves of the backbone was fine-tuned as a whole; {to} holds attached modules",
            "export it with --to checkpoint",
        )
    if to == "spec":
        return write_spec(best.structure, weights, out)
    write = _write_peft if to == "peft" else write_checkpoint
    report = _into(Path(out), lambda folder: write(best, weights, folder))
    for name in dict.fromkeys(also):
        report = _add_serving(report, name)
    return report


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


def _write_spec(
    structure: Structure, weights: bytes, folder: Path
) -> tuple[tuple[str, ...], float]:
    (folder / "structure.json").write_text(structure.to_json(), encoding="utf-8")
    (folder / "modules.safetensors").write_bytes(weights)
    if Structure.load(folder).hash != structure.hash:
        raise ExportError("the written structure is not the one that was exported")
    model = attach(fresh_model(structure, weights), folder)
    trained = sum(p.numel() for n, p in model.named_parameters() if n.startswith("sparsearch."))
    expected = _attached_params(structure, positions_of(model))
    if trained != expected:
        raise ExportError(f"{trained} parameters are attached, the structure has {expected}")
    note = "load it with sparsearch.attach(model, folder), or train it with `sparsearch train`"
    return (note,), compare(reference(structure, weights), logits_of(model))


def _attached_params(structure: Structure, positions: Sequence[Position]) -> int:
    """Parameters of what is attached to the whole backbone: what is cut takes nothing off them yet."""
    return sum(
        structure.kind(c.kind).params(find(positions, c.position), c.size)
        for c in structure.candidates
    )


def _write_peft(best: Best, weights: bytes, folder: Path) -> tuple[tuple[str, ...], float]:
    import peft

    structure = best.structure
    tensors = safetensors.torch.load(weights)
    model = fresh_model(structure, weights)
    positions = positions_of(model)
    prefix = next(name for name, module in model.named_modules() if module is base_of(model))
    plan = plan_adapter(structure, positions, tensors, f"{prefix}." if prefix else "")
    expected = reference(structure, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(detach(model), make_config(plan, structure))
        fill(adapted, plan)
        adapted.save_pretrained(folder)
        again = peft.PeftModel.from_pretrained(fresh_model(structure, weights), folder)
    _check_names(again, plan)
    return plan.notes, compare(expected, logits_of(again))


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


def _add_serving(report: ExportReport, to: str) -> ExportReport:
    """Write one serving file into a finished checkpoint."""
    try:
        made = write_serving(report.path, to)
    except ExportError as error:
        message = f"{report.path} holds the checkpoint, without {to}: {error.message}"
        raise ExportError(message, error.hint) from error
    note = f"{made.name}: {', '.join(made.inputs)} -> logits, which differ by {made.max_difference:.2g}"
    files = tuple(sorted(file.name for file in report.path.iterdir()))
    return replace(report, files=files, notes=(*report.notes, note))
