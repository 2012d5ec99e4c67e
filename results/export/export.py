"""Exports: files that other tools load, each proven by loading it again before it counts.

``spec`` is our own folder (structure.json + modules.safetensors), ``peft`` a PEFT adapter
folder (``peft-one-rank``: all its LoRA of one rank; ``peft-set``: one adapter for each of PEFT's types), ``gguf-lora``
a LoRA for llama.cpp, ``checkpoint`` a merged and physically smaller model. What PEFT cannot express, or what cannot be
merged exactly, is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sparsearch.config.formats import ExportFormat
from sparsearch.config.tasks.types import facts_of
from sparsearch.errors import ExportError, StructureError
from sparsearch.results.export.adapters.gguf_lora import write_gguf_lora
from sparsearch.results.export.adapters.peft_set import write_peft_set
from sparsearch.results.export.checkpoint import write_checkpoint
from sparsearch.results.export.folders import ExportReport, check_target, new_folder
from sparsearch.results.export.peft_folder import write_peft
from sparsearch.results.export.serving import check_serving, write_serving
from sparsearch.results.export.task_config import TASK_CONFIG, write_task
from sparsearch.results.export.trained import Trained
from sparsearch.results.export.verify import check_padding, compare, logits_of
from sparsearch.results.records import Best
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.check import check_attached
from sparsearch.spaces.attachment.weights_file import pack_weights
from sparsearch.spaces.backbone.identity import same_weights
from sparsearch.spaces.backbone.parameters import backbone_parameters, positions_of
from sparsearch.spaces.backbone.quantised.settings import quantisation_of
from sparsearch.spaces.families.position import Position, find
from sparsearch.spaces.structure import Structure

__all__ = [
    "ExportReport",
    "add_serving",
    "check_also",
    "check_target",
    "export",
    "save",
    "write_spec",
]


_PLAIN = (ExportFormat.checkpoint, ExportFormat.gguf_lora)
"""Formats that are checked by merging."""

Writer = Callable[[Path], tuple[tuple[str, ...], float]]
"""Fills a folder; gives notes for the user, and the largest difference of a logit."""


def export(
    best: Best, weights: bytes, to: str, out: str | Path, also: Sequence[str] = ()
) -> ExportReport:
    """Write a trained structure and prove it: load what was written and compare names, counts and logits.

    Args:
        best: The trial to export, as a query gives it.
        weights: Its trained weights, as the store gives them.
        to: One of ``ExportFormat``.
        out: A folder that does not exist yet, or is empty.
        also: Serving files to write beside a checkpoint: ``onnx``, ``torch``.

    Raises:
        ExportError: If the folder cannot be written, PEFT cannot express the structure, it cannot be merged, or
            the round trip differs. Nothing is left behind; only where a serving file cannot be
            made, the checkpoint itself stays.
    """
    if to not in [*ExportFormat]:
        raise ExportError(f"unknown format {to!r}; known: {', '.join(ExportFormat)}")
    if also and to != ExportFormat.checkpoint:
        raise ExportError(f"serving files go with a checkpoint, not with {to}", "--to checkpoint")
    check_also(best.structure, also)
    trained = Trained(best.structure, weights)
    if to != ExportFormat.checkpoint and trained.whole:
        raise ExportError(
            f"what this structure leaves of the backbone was fine-tuned as a whole; {to} holds attached modules",
            "export it with --to checkpoint",
        )
    if to in _PLAIN and best.structure.backbone.quantisation is not None:
        raise ExportError(
            f"{to} adds what was trained to the backbone's weights, and these are quantised",
            "export it with --to spec or --to peft, which load onto a backbone quantised likewise",
        )
    writers: dict[str, Writer] = {
        ExportFormat.spec: lambda folder: _write_spec(trained, folder),
        ExportFormat.peft: lambda folder: write_peft(trained, folder),
        ExportFormat.peft_one_rank: lambda folder: write_peft(trained, folder, one_rank=True),
        ExportFormat.peft_set: lambda folder: write_peft_set(trained, folder),
        ExportFormat.gguf_lora: lambda folder: write_gguf_lora(trained, folder),
        ExportFormat.checkpoint: lambda folder: write_checkpoint(
            trained, folder, best.inference_flops_ratio
        ),
    }
    report = _into(Path(out), writers[to])
    for name in dict.fromkeys(also):
        try:
            report = add_serving(report, name)
        except ExportError as error:
            message = f"{report.path} holds the checkpoint, without {name}: {error.message}"
            raise ExportError(message, error.hint) from error
    return report


def save(model: nn.Module, structure: Structure, out: str | Path) -> ExportReport:
    """Write what a training loop of one's own has trained as a ``spec``, and prove it, see ``export``.

    Args:
        model: The plain model with the structure attached, in any floating-point type. Its ``config.id2label`` names
            the classes.
        structure: What is attached.
        out: A folder that does not exist yet, or is empty.

    Raises:
        StructureError: If nothing is attached, or another structure; or if weights of the backbone have changed too,
            which a ``spec`` does not hold (seen where all of them are in float32).
        ExportError: If the folder cannot be written, or the round trip differs. Nothing is left behind.

    Example:
        >>> save(accelerator.unwrap_model(model), structure, "trained")    # doctest: +SKIP
    """
    attachment = attachment_of(model)
    if attachment is None:
        raise StructureError(
            f"nothing is attached to this {type(model).__name__}",
            "attach(model, structure) before training, and save the plain model: accelerator.unwrap_model(model), "
            "model.module or model._orig_mod where it is wrapped",
        )
    check_attached(attachment.slots, structure)
    facts = facts_of(structure.task_type)
    names = getattr(model.config, "id2label", {})
    classes = [names[i] for i in sorted(names)] if facts.has_head and not facts.output else []
    packed = pack_weights(model, classes)
    _check_backbone_is_as_it_was(model, structure)
    return write_spec(structure, packed, out)


def _check_backbone_is_as_it_was(model: nn.Module, structure: Structure) -> None:
    """Whether only what is attached, and the head, was trained."""
    own = [p for _, p in backbone_parameters(model) if p.is_floating_point()]
    if quantisation_of(model) or any(p.dtype != torch.float32 or p.is_meta for p in own):
        return  # a cast changes them all, and what is offloaded is not here
    if not same_weights(model, structure.backbone.weight_fingerprint):
        raise StructureError(
            "weights of the backbone have changed since the structure was made for it, and a spec holds what is "
            "attached and the head alone",
            "keep the backbone frozen while you train: attach does that",
        )


def write_spec(structure: Structure, weights: bytes, out: str | Path) -> ExportReport:
    """Write and prove the ``spec`` format, see ``export``."""
    return _into(Path(out), lambda folder: _write_spec(Trained(structure, weights), folder))


def _size_note(trained: Trained) -> tuple[str, ...]:
    """Where the file's tensors are of other types than those that the structure counts."""
    held, counted = trained.tensor_bytes, trained.structure.bytes
    if held == counted:
        return ()
    return (
        f"the file has {held:,} bytes of tensors, not {counted:,}: modules are in another type, as after a cast",
    )


def _into(out: Path, write: Writer) -> ExportReport:
    """Write a folder that appears under its name only when it is proven."""
    with new_folder(out) as folder:
        notes, difference = write(folder)
        files = tuple(sorted(f.name for f in folder.iterdir()))
    return ExportReport(out, files, notes, difference)


def _write_spec(trained: Trained, folder: Path) -> tuple[tuple[str, ...], float]:
    structure = trained.structure
    (folder / "structure.json").write_text(structure.to_json(), encoding="utf-8")
    (folder / "modules.safetensors").write_bytes(trained.packed)
    if Structure.load(folder).hash != structure.hash:
        raise ExportError("the written structure is not the one that was exported")
    model = trained.attached_model()
    expected = logits_of(model)
    check_padding(expected)
    notes = (
        *_size_note(trained),
        f"{structure.stored_bytes:,} stored bytes, the head apart: {structure.bytes:,} of tensors, the rest says which "
        "candidates were chosen",
        "load it with sparsearch.attach(model, folder), or train it with `sparsearch train`",
        f"{trained.facts.settings} in {TASK_CONFIG}: give AutoConfig.from_pretrained of that file "
        "to the model as its config",
        *write_task(model.config, structure.task_type, trained.processor, folder),
    )
    model = attach(trained.model_by(folder / TASK_CONFIG), folder)
    added = sum(p.numel() for n, p in model.named_parameters() if n.startswith("sparsearch."))
    if added != (planned := _attached_params(structure, positions_of(model))):
        raise ExportError(f"{added} parameters are attached, the structure has {planned}")
    return notes, compare(expected, logits_of(model))


def _attached_params(structure: Structure, positions: Sequence[Position]) -> int:
    """Parameters of what is attached to the whole backbone: what is cut takes nothing off them yet."""
    return sum(
        structure.kind(c.kind).params(find(positions, c.position), c.size)
        for c in structure.candidates
    )


def check_also(structure: Structure, also: Sequence[str]) -> None:
    """Refuse serving files that are unknown, lack their package, or cannot hold a model of this task.

    Raises:
        ExportError: If there are such.
    """
    check_serving(also)
    facts = facts_of(structure.task_type)
    if also and not facts.has_head:
        raise ExportError(
            f"{', '.join(also)} holds one pass over the tokens; a language model generates them one by one",
            "export the checkpoint alone, and load it with sparsearch.load_checkpoint or transformers",
        )
    if also and facts.several:
        raise ExportError(
            f"{', '.join(also)} takes one text a row; this model chooses between several",
            "export the checkpoint alone, and load it with sparsearch.load_checkpoint or transformers",
        )


def add_serving(report: ExportReport, to: str) -> ExportReport:
    """Write one serving file into a finished checkpoint.

    Raises:
        ExportError: If it cannot be made; the checkpoint is as it was.
    """
    made = write_serving(report.path, to)
    note = f"{made.name}: {', '.join(made.inputs)} -> logits, which differ by {made.max_difference:.2g}"
    files = tuple(sorted(file.name for file in report.path.iterdir()))
    return replace(report, files=files, notes=(*report.notes, note))
