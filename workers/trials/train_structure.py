"""Training an exported structure on the task of a study, as any trainer would."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsearch.config.reader import read_study, validate_study
from sparsearch.errors import ConfigError, ExportError, StructureError
from sparsearch.results.export.export import check_target, write_spec
from sparsearch.search.training.device import choose_device, uses_bf16
from sparsearch.search.training.evaluate import evaluate
from sparsearch.search.training.train import Observer, silent
from sparsearch.search.training.warm_start import WarmStarts
from sparsearch.spaces.attachment.weights_file import pack_weights
from sparsearch.spaces.backbone.quantised.weights import compute_in
from sparsearch.spaces.structure import Structure
from sparsearch.workers.trials.fit import Fitting
from sparsearch.workers.trials.modes import mode_of
from sparsearch.workers.trials.session import load_backbone

__all__ = ["TrainedStructure", "train_structure"]


@dataclass(frozen=True)
class TrainedStructure:
    """What training gave.

    Attributes:
        structure: What was trained.
        trainable_params: Parameters that were, the head apart.
        stored_bytes: What the task costs to keep, the head apart.
        metric: Name of the metric.
        score: Validation score of the best epoch.
        test_score: Test score of that checkpoint.
        epoch: The best epoch, 1-based.
        seconds: Wall time.
        out: Where the trained spec was written, if anywhere.
        warnings: What makes the scores worth less than they look.
    """

    structure: Structure
    trainable_params: int
    stored_bytes: int
    metric: str
    score: float
    test_score: float
    epoch: int
    seconds: float
    out: Path | None
    warnings: tuple[str, ...] = ()


def train_structure(
    structure: Structure,
    study: str | Path,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    observe: Observer = silent,
) -> TrainedStructure:
    """Train a structure from scratch on a study's task, with its training settings and first seed.

    Args:
        structure: Trained anew, in the study's training mode; stored weights are not used.
        study: The study file that names model, task and training.
        overrides: ``key.path=value`` settings.
        out: Folder for the trained ``spec``; a ``spec`` holds no backbone that was trained too.
        observe: Told of every step.

    Raises:
        ConfigError: If the study is wrong.
        StructureError: If the study's model is not the structure's backbone, or its backbone cannot train with it.
        ExportError: If ``out`` cannot be written.
    """
    started = time.monotonic()
    sections, problems = validate_study(*read_study(study, overrides))
    if problems:
        raise ConfigError(problems)
    config = sections["study"]
    if config.task.type != structure.task_type:
        raise StructureError(
            f"the structure was searched for {structure.task_type}, the study's task is {config.task.type}"
        )
    if out is not None and mode_of(config.train).export_format != "spec":
        raise ExportError(
            "train.backbone trains what is left of the backbone too; a spec holds attached modules",
            "leave --out away, or run the study and export its best: --to checkpoint",
        )
    if out is not None:
        check_target(Path(out))
    if config.workers.threads is not None:
        torch.set_num_threads(config.workers.threads)
    device = choose_device(config.workers.device)
    model, _, task = load_backbone(config.model, config.task, config.folder, device)
    if uses_bf16(device, config.train.precision):
        compute_in(model, torch.bfloat16)
    starts = WarmStarts(model, task, config.train)
    fitting = Fitting(model, task, config.train, starts, config.seeds[0], structure.hash, observe)
    fitting.check_steps()
    fitted = fitting.fit(structure)
    model, result = fitted.model, fitted.result
    test = evaluate(model, task, task.test, config.train.precision)
    if out is not None:
        write_spec(structure, pack_weights(model, task.classes), out)
    return TrainedStructure(
        structure,
        fitted.trainable_params,
        fitted.stored_bytes,
        config.task.score_name,
        result.score,
        test,
        result.epoch,
        time.monotonic() - started,
        Path(out) if out is not None else None,
        task.warnings,
    )
