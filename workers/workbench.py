"""The workbench: one backbone, one space and one task, loaded once and used by every trial."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sparsearch.config import ModelConfig, SpaceConfig, StudyConfig, TaskConfig, TrainConfig
from sparsearch.errors import StructureError
from sparsearch.results.values import Setting
from sparsearch.search.device import choose_device, uses_bf16
from sparsearch.search.prefix import StoredPrefix
from sparsearch.search.seeds import seed_everything
from sparsearch.search.tasks import Task, load_task
from sparsearch.search.train import Observer, silent
from sparsearch.search.warm_start import Once, WarmStart, WarmStarts, new_head
from sparsearch.spaces.align import Aligning, aligning_at, take_bases
from sparsearch.spaces.attach import attach, check_structure
from sparsearch.spaces.backbone import (
    FORMS,
    BackboneId,
    check_padding_token,
    identify,
    load_config,
    load_model,
    load_tokenizer,
    locate,
    most_tokens,
    positions_of,
    weight_fingerprint,
)
from sparsearch.spaces.slim import slim
from sparsearch.spaces.space import Space, build_space
from sparsearch.spaces.structure import Structure
from sparsearch.workers.shelf import Shelf

__all__ = [
    "Workbench",
    "attach_anew",
    "cut_out",
    "identify_backbone",
    "load_backbone",
    "open_workbench",
    "start_head",
    "start_of",
]


@dataclass(frozen=True)
class Workbench:
    """What trials share. Attaching and detaching leaves the model's backbone bit-identical.

    Attributes:
        config: The study.
        model: The only copy of the backbone, with a head that each trial draws anew.
        space: What may be chosen.
        backbone: Its identity.
        task: The tokenised data.
        starts: Warm starts by seed.
        prefix: Outputs of the frozen lower layers, between trials whose lowest module is in the same layer.
    """

    config: StudyConfig
    model: PreTrainedModel
    space: Space
    backbone: BackboneId
    task: Task
    starts: WarmStarts
    prefix: StoredPrefix = field(default_factory=StoredPrefix)

    def with_settings(self, settings: Sequence[Setting]) -> Workbench:
        """The same workbench with other settings of search and training."""
        return replace(self, config=self.config.with_settings(settings)) if settings else self

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)


def located(config: ModelConfig, folder: Path) -> tuple[str, str]:
    """Where to load from, and what to remember: a local folder by its full path, else as written."""
    found = locate(config.path, folder)
    return found, config.path if config.path.startswith("pkg:") else found


def load_backbone(
    config: ModelConfig,
    task: TaskConfig,
    folder: Path,
    device: torch.device,
    shelf: Shelf | None = None,
) -> tuple[PreTrainedModel, BackboneId, Task]:
    """Tokenise the task (once per shelf), then load the backbone with a head of the task's width."""
    # A slim model has many widths, and batches many lengths: oneDNN would forget their kernels and compile them anew.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
    path, remembered = located(config, folder)
    tokenizer, settings = load_tokenizer(path, config.revision), load_config(path, config.revision)
    check_padding_token(path, settings, tokenizer)

    def load() -> Task:
        return load_task(task, folder, tokenizer, most_tokens(settings))

    data = load() if shelf is None else shelf.task(load)
    model = load_model(
        path, revision=config.revision, num_labels=data.num_labels, sha256=config.sha256
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(device), identify(model, remembered, config.revision), data


def identify_backbone(config: StudyConfig, form: str = FORMS[-1]) -> BackboneId:
    """The identity of a study's backbone, for who has no workbench: the model is loaded and forgotten.

    Args:
        config: The study.
        form: Of the weight fingerprint, see ``backbone.weight_fingerprint``.
    """
    path, remembered = located(config.model, config.folder)
    model = load_model(path, revision=config.model.revision, sha256=config.model.sha256)
    found = identify(model, remembered, config.model.revision)
    return (
        found
        if form == FORMS[-1]
        else replace(found, weight_fingerprint=weight_fingerprint(model, form))
    )


def open_workbench(
    config: StudyConfig, shelf: Shelf | None = None, once: Once | None = None
) -> Workbench:
    """Load everything a study needs.

    Args:
        config: The study.
        shelf: Where processes of one machine share backbone and data.
        once: Where processes share warm starts.

    Raises:
        BackboneError: If the model cannot be loaded.
        DataError: If the data does not fit the task.
        ConfigError: If the space is empty or misspelt.
    """
    device = choose_device(config.workers.device)
    precision = config.train.precision
    model, backbone, task = load_backbone(config.model, config.task, config.folder, device, shelf)
    if shelf is not None and device.type == "cpu":
        shelf.share(model, bf16=uses_bf16(device, precision))
    starts = WarmStarts(model, task, precision, once)
    return Workbench(config, model, space_of(model, config.space), backbone, task, starts)


def space_of(model: torch.nn.Module, config: SpaceConfig) -> Space:
    """The space that a configuration describes, on a model or its skeleton."""
    return build_space(model, preset=config.preset, kinds=config.kinds)


def start_of(
    starts: WarmStarts,
    seed: int,
    aligning: Aligning,
    config: TrainConfig,
    observe: Observer = silent,
    *,
    late: bool = False,
) -> WarmStart:
    """The warm start of a seed, made as a study says; ``late``: that of its tickets."""
    late = late and config.steps_before_cut > 0
    return starts.get(seed, aligning, config.start_rows, config.start_steps, observe, late)


def start_head(
    model: PreTrainedModel, start: Callable[[], WarmStart], config: TrainConfig, *purpose: object
) -> None:
    """A new head, or the warm one if training is configured to start from it."""
    new_head(model, *purpose, "head")
    if config.head_first:
        start().load_head(model)


def attach_anew(
    model: PreTrainedModel,
    structure: Structure,
    starts: WarmStarts,
    config: TrainConfig,
    seed: int,
    *purpose: object,
    observe: Observer = silent,
) -> None:
    """Attach a structure, untrained, with a new head; its directions are those of the seed's warm start.

    The head is the warm one only with ``head_first``.
    """
    aligning = aligning_at(structure.kinds, positions_of(model))
    start = functools.partial(start_of, starts, seed, aligning, config, observe)
    bases = start().bases if aligning else {}
    start_head(model, start, config, seed, *purpose)
    seed_everything(seed, *purpose, "modules")
    attach(model, structure)
    take_bases(model, bases)


def cut_out(
    model: PreTrainedModel,
    structure: Structure,
    starts: WarmStarts,
    aligning: Aligning,
    config: TrainConfig,
    seed: int,
    *purpose: object,
    observe: Observer = silent,
) -> PreTrainedModel:
    """A copy of a backbone without what a structure cuts, all of it trainable, with a new head.

    The head is the warm one only with ``head_first``. With ``start_steps`` the backbone is what a brief fine-tuning
    left, and the head is that of this fine-tuning. The start is asked for
    with bases for ``aligning``, that of the structure or, to find the one that a ranking was made on, of the space.

    Raises:
        StructureError: If the structure attaches something too.
    """
    for c in structure.candidates:
        if not c.which:
            raise StructureError(
                "train.backbone fine-tunes what is left of a backbone; this structure also attaches "
                f"{c.kind} at {c.position}",
                "leave train.backbone out, or search a space of heads and neurons",
            )
    start = None
    check_structure(model, structure)  # before what takes long
    if aligning or config.steps_before_cut or config.head_first:
        start = start_of(starts, seed, aligning, config, observe, late=True)
    smaller = attach(copy.deepcopy(model), structure)
    if start is not None:
        start.load_weights(smaller)
        take_bases(smaller, start.bases)
    left = slim(smaller, structure).requires_grad_(True)
    new_head(left, seed, *purpose, "head")
    if start is not None and (start.weights or config.head_first):
        start.load_head(left)
    return left
