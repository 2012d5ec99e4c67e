"""The session: one backbone, one space and one task, loaded once and used by every trial."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from sparsearch.config.study import ModelConfig, SpaceConfig, StudyConfig, TaskConfig
from sparsearch.results.records import Setting
from sparsearch.search.tasks.checks import check_vocabulary
from sparsearch.search.tasks.task import SPLITS, Task, load_task
from sparsearch.search.training.device import choose_device, uses_bf16
from sparsearch.search.training.prefix import StoredPrefix
from sparsearch.search.training.warm_start import Once, WarmStarts
from sparsearch.spaces.backbone.identity import FORMS, BackboneId, identify, weight_fingerprint
from sparsearch.spaces.backbone.inputs.readers import READERS
from sparsearch.spaces.backbone.loading import (
    check_head,
    load_config,
    load_model,
    locate,
    skeleton,
)
from sparsearch.spaces.backbone.quantised.settings import Quantisation, quantise_to
from sparsearch.spaces.backbone.quantised.weights import compute_in
from sparsearch.spaces.backbone.tokens import vocabulary_of
from sparsearch.spaces.space import Space, list_space
from sparsearch.workers.trials.shared_cache import SharedCache

__all__ = [
    "Session",
    "identify_backbone",
    "load_backbone",
    "open_session",
]


@dataclass(frozen=True)
class Session:
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

    def with_settings(self, settings: Sequence[Setting]) -> Session:
        """The same session with other settings of search and training."""
        if not settings:
            return self
        config = self.config.with_settings(settings)
        return replace(self, config=config, starts=self.starts.with_config(config.train))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)


def located(config: ModelConfig, folder: Path) -> tuple[str, str]:
    """Where to load from, and what to remember: a local folder by its full path, else as written."""
    found = locate(config.location, folder)
    return found, config.location if config.path.startswith("pkg:") else found


def load_backbone(
    config: ModelConfig,
    task: TaskConfig,
    folder: Path,
    device: torch.device,
    shelf: SharedCache | None = None,
) -> tuple[PreTrainedModel, BackboneId, Task]:
    """Tokenise the task (once per shelf), then load the backbone with a head of the task's width."""
    # A slim model has many widths, and batches many lengths: oneDNN would forget their kernels and compile them anew.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
    path, remembered = located(config, folder)
    reader, auto_model = READERS[task.facts.reads], task.facts.auto_model
    processor, settings = reader.load(path, config.revision), load_config(path, config.revision)
    reader.check(path, settings, processor)

    def load() -> Task:
        most = reader.most_tokens(
            settings, processor, lambda: skeleton(path, config.revision, auto_model)
        )
        return load_task(task, folder, processor, most)

    data = load() if shelf is None else replace(shelf.task(load), tokenizer=processor)
    model = load_model(
        path,
        revision=config.revision,
        num_labels=data.num_labels,
        sha256=config.sha256,
        auto_model=auto_model,
        quantisation=quantisation_for(config, path, auto_model),
        device=str(device),
    )
    if task.facts.has_head:
        check_head(path, model)
    data.behaviour.check_model(model)
    if "input_ids" in data.train.inputs and (vocabulary := vocabulary_of(model)):
        for name in SPLITS:
            check_vocabulary(name, getattr(data, name).inputs["input_ids"], processor, vocabulary)
    data.behaviour.check_rows(model, data)
    reader.configure(model.config, processor)
    model = model if config.quantise else model.to(device)
    return model, identify(model, remembered, config.revision), data


def quantisation_for(config: ModelConfig, path: str, auto_model: str) -> Quantisation | None:
    """How a study quantises its backbone; None where it does not."""
    if config.quantise is None:
        return None
    return quantise_to(config.quantise, skeleton(path, config.revision, auto_model))


def identify_backbone(config: StudyConfig, form: str = FORMS[-1]) -> BackboneId:
    """The identity of a study's backbone, for who has no session: the model is loaded and forgotten.

    Args:
        config: The study.
        form: Of the weight fingerprint, see ``identity.weight_fingerprint``.
    """
    path, remembered = located(config.model, config.folder)
    model = load_model(
        path,
        revision=config.model.revision,
        sha256=config.model.sha256,
        auto_model=config.task.facts.auto_model,
        quantisation=quantisation_for(config.model, path, config.task.facts.auto_model),
    )
    found = identify(model, remembered, config.model.revision)
    return (
        found
        if form == FORMS[-1]
        else replace(found, weight_fingerprint=weight_fingerprint(model, form))
    )


def open_session(
    config: StudyConfig, shelf: SharedCache | None = None, once: Once | None = None
) -> Session:
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
    if uses_bf16(device, precision):
        compute_in(model, torch.bfloat16)
    if shelf is not None and device.type == "cpu":
        shelf.share(model, bf16=uses_bf16(device, precision))
    starts = WarmStarts(model, task, config.train, once)
    return Session(config, model, space_of(model, config.space), backbone, task, starts)


def space_of(model: torch.nn.Module, config: SpaceConfig) -> Space:
    """The space that a configuration describes, on a model or its skeleton."""
    return list_space(model, preset=config.preset, kinds=config.kinds)
