"""The workbench: one backbone, one space and one task, loaded once and used by every trial."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sparsearch.config import ModelConfig, SpaceConfig, StudyConfig, TaskConfig, TrainConfig
from sparsearch.search.device import choose_device
from sparsearch.search.gradients import sample_losses, sample_rows, warm_head
from sparsearch.search.seeds import seed_everything
from sparsearch.search.tasks import Task, load_task
from sparsearch.spaces.align import align
from sparsearch.spaces.attach import attach
from sparsearch.spaces.backbone import (
    BackboneId,
    head_parameters,
    identify,
    load_config,
    load_model,
    load_tokenizer,
    locate,
    most_tokens,
)
from sparsearch.spaces.space import Space, build_space
from sparsearch.spaces.structure import Structure

__all__ = ["Workbench", "attach_anew", "load_backbone", "new_head", "open_workbench", "start_head"]


@dataclass(frozen=True)
class Workbench:
    """What trials share. Attaching and detaching leaves the model's backbone bit-identical.

    Attributes:
        config: The study.
        model: The only copy of the backbone, with a head that each trial draws anew.
        space: What may be chosen.
        backbone: Its identity.
        task: The tokenised data.
    """

    config: StudyConfig
    model: PreTrainedModel
    space: Space
    backbone: BackboneId
    task: Task

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)


def located(config: ModelConfig, folder: Path) -> tuple[str, str]:
    """Where to load from, and what to remember: a local folder by its full path, else as written."""
    found = locate(config.path, folder)
    return found, config.path if config.path.startswith("pkg:") else found


def load_backbone(
    config: ModelConfig, task: TaskConfig, folder: Path, device: torch.device
) -> tuple[PreTrainedModel, BackboneId, Task]:
    """Tokenise the task, then load the backbone with a head of the task's width."""
    path, remembered = located(config, folder)
    tokenizer = load_tokenizer(path, config.revision)
    data = load_task(task, folder, tokenizer, most_tokens(load_config(path, config.revision)))
    model = load_model(
        path, revision=config.revision, num_labels=data.num_labels, sha256=config.sha256
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(device), identify(model, remembered, config.revision), data


def open_workbench(config: StudyConfig) -> Workbench:
    """Load everything a study needs.

    Raises:
        BackboneError: If the model cannot be loaded.
        DataError: If the data does not fit the task.
        ConfigError: If the space is empty or misspelt.
    """
    device = choose_device(config.workers.device)
    model, backbone, task = load_backbone(config.model, config.task, config.folder, device)
    return Workbench(config, model, space_of(model, config.space), backbone, task)


def space_of(model: torch.nn.Module, config: SpaceConfig) -> Space:
    """The space that a configuration describes, on a model or its skeleton."""
    return build_space(model, preset=config.preset, kinds=config.kinds)


@torch.no_grad()
def new_head(model: PreTrainedModel, *seed_parts: object) -> None:
    """Draw the task head anew: matrices N(0, initializer_range), vectors zero."""
    seed_everything(*seed_parts)
    std = getattr(model.config, "initializer_range", None) or 0.02
    for _, parameter in head_parameters(model):
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=std)
        else:
            torch.nn.init.zeros_(parameter)


def start_head(
    model: PreTrainedModel,
    task: Task,
    config: TrainConfig,
    seed: int,
    *purpose: object,
    aligns: bool = False,
) -> None:
    """A new head, which learns alone first if so configured, or if gradients through it are wanted."""
    new_head(model, seed, *purpose, "head")
    if config.head_first or aligns:
        warm_head(model, task, sample_rows(task, seed), seed, config.precision)


def attach_anew(
    model: PreTrainedModel,
    structure: Structure,
    task: Task,
    config: TrainConfig,
    seed: int,
    *purpose: object,
) -> None:
    """Attach a structure, untrained, with a new head; bases are aligned with the task's gradient.

    The gradient is taken through a head that has learnt; training starts from it only with ``head_first``.
    """
    aligns = any(kind.aligns for kind in structure.kinds)
    start_head(model, task, config, seed, *purpose, aligns=aligns)
    seed_everything(seed, *purpose, "modules")
    attach(model, structure)
    align(model, sample_losses(model, task, sample_rows(task, seed), config.precision))
    if aligns and not config.head_first:
        new_head(model, seed, *purpose, "head")
