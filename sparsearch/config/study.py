"""What a user may write: the study file, validated as a whole, every problem reported at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from sparsearch.config.budgets import BudgetConfig, each_once, spread_budgets
from sparsearch.config.fields import Number, Positive, Section
from sparsearch.config.outer import OuterConfig
from sparsearch.config.presets import preset_names, read_preset
from sparsearch.config.problems import problems_of
from sparsearch.config.registry import STRATEGIES
from sparsearch.config.search import ProbeConfig, SearchConfig, Strategy
from sparsearch.config.tasks.data import DataConfig
from sparsearch.config.tasks.task import TaskConfig
from sparsearch.config.train import TrainConfig
from sparsearch.errors import ConfigError

__all__ = [
    "BudgetConfig",
    "DataConfig",
    "ModelConfig",
    "ProbeConfig",
    "SearchConfig",
    "SpaceConfig",
    "StudyConfig",
    "TaskConfig",
    "TrainConfig",
    "WorkersConfig",
    "spread_budgets",
]


class ModelConfig(Section):
    """The backbone: hub id, local folder, or ``pkg:NAME/FOLDER`` of an installed package; or a GGUF file there."""

    path: str
    gguf_file: str | None = Field(default=None, pattern=r"^[^/\\]+\.gguf$")
    revision: str | None = None
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")
    quantise: Literal[8, 4] | None = None

    @model_validator(mode="after")
    def _quantised_once(self) -> ModelConfig:
        if self.quantise is not None and self.gguf_file is not None:
            raise ValueError(
                "a GGUF file is unpacked to plain weights: leave quantise out, or give the model itself"
            )
        return self

    @property
    def location(self) -> str:
        """Path of the model, that of its GGUF file where it has one."""
        return self.path if self.gguf_file is None else f"{self.path.rstrip('/')}/{self.gguf_file}"


class SpaceConfig(Section):
    """What may be chosen: a preset, or kinds with their options (``on``: patterns of positions)."""

    preset: str | None = None
    kinds: dict[str, dict[str, Any]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _kinds_as_mapping(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("kinds"), list):
            return {**value, "kinds": {str(kind): {} for kind in value["kinds"]}}
        return value

    @model_validator(mode="after")
    def _one_of_both(self) -> SpaceConfig:
        if (self.preset is None) == (self.kinds is None):
            raise ValueError("give either a preset or kinds")
        for kind, options in (self.kinds or {}).items():
            on = options.get("on")
            if on is not None and not (
                isinstance(on, list) and on and all(isinstance(p, str) for p in on)
            ):
                raise ValueError(
                    f"kinds.{kind}.on must be a list of patterns, or be left out: not {on!r}"
                )
        return self


def _recipe(preset: str) -> dict[str, Any]:
    """What a preset says beside its kinds: settings for search and training; nothing for an unknown one."""
    content = read_preset(preset) if preset in preset_names() else {}
    return {k: v for k, v in content.items() if k != "kinds"}


def _over(defaults: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over defaults, section by section."""
    merged = dict(settings)
    for section, values in defaults.items():
        given = settings.get(section, {})
        if isinstance(given, Mapping):
            merged[section] = {**values, **given}
    return merged


class WorkersConfig(Section):
    """Who runs the trials. No part of what a study is: it may go on with other workers.

    Attributes:
        runner: One trial after the other ``in-process``, or several at a time through ``ray``.
        address: Of the cluster whose Ray is used, ``HOST:PORT``; if not given the one that the environment variable
            RAY_ADDRESS names, else Ray is started on this machine.
        device: Where a trial computes.
        threads: Of torch in each process; with Ray as many as ``cpus_per_trial`` if not given.
        max_concurrent: Ray workers, each of which runs one trial at a time.
        cpus_per_trial: Cores of a Ray worker.
        gpus_per_trial: GPUs of a Ray worker; below 1 a share of one, and of its memory.
        max_attempts: How often a trial is tried whose worker is lost or whose memory runs out.
        attempt_seconds: A Ray worker that shows no progress for so long is given up.
    """

    runner: Literal["in-process", "ray"] = "in-process"
    address: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Positive | None = None
    max_concurrent: Positive = 1
    cpus_per_trial: Positive = 1
    gpus_per_trial: Annotated[Number, Field(ge=0)] = 0.0
    max_attempts: Positive = 3
    attempt_seconds: Annotated[Number, Field(gt=0)] = 900.0

    @model_validator(mode="after")
    def _possible(self) -> WorkersConfig:
        gpus = self.gpus_per_trial
        if self.address is not None and self.runner != "ray":
            raise ValueError("address is that of a Ray cluster: it goes with runner: ray")
        if gpus > 1 and not float(gpus).is_integer():
            raise ValueError(f"gpus_per_trial is a share of one GPU or a whole number, not {gpus}")
        if self.runner == "ray" and (self.device, gpus > 0) in {("cuda", False), ("cpu", True)}:
            raise ValueError(f"device {self.device} does not go with gpus_per_trial {gpus}")
        return self


def _study_name(value: str) -> str:
    """It stands in file names and commands."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", value) is None:
        raise ValueError(
            f"{value!r} is no name of a study: write 1 to 100 letters (a to z), digits, '_', '.' or '-', "
            "beginning with a letter or a digit"
        )
    return value


class StudyConfig(Section):
    """A study: which model, task, space and budgets, and what they are compared with.

    Example:
        >>> study = StudyConfig.model_validate({
        ...     "name": "rte", "model": {"path": "x"}, "space": {"preset": "s3pet-l"},
        ...     "task": {"data": {"path": "glue", "name": "rte"}, "text": ["sentence1", "sentence2"]},
        ...     "budgets": {"max_trainable_params": ["0.01%", 4000]},
        ... })
        >>> study.budgets[1].max_trainable_params
        4000
    """

    name: Annotated[str, AfterValidator(_study_name)]
    model: ModelConfig
    task: TaskConfig
    space: SpaceConfig
    budgets: Annotated[
        list[BudgetConfig],
        BeforeValidator(spread_budgets),
        AfterValidator(each_once),
        Field(min_length=1),
    ]
    search: SearchConfig = SearchConfig()
    train: TrainConfig = TrainConfig()
    outer: OuterConfig | None = None
    race: bool = True
    baselines: list[Strategy] = Field(default=["random", "lora-qv", "probe", "head", "full"])
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)] = [0]
    workers: WorkersConfig = WorkersConfig()

    _folder: Path = PrivateAttr(default_factory=Path.cwd)

    @model_validator(mode="before")
    @classmethod
    def _with_recipe(cls, value: Any) -> Any:
        """A preset's settings for search and training stand where the study says nothing else."""
        space = value.get("space") if isinstance(value, Mapping) else None
        preset = space.get("preset") if isinstance(space, Mapping) else None
        return _over(_recipe(preset), value) if isinstance(preset, str) else value

    @model_validator(mode="after")
    def _no_repeats(self) -> StudyConfig:
        for key in ("seeds", "baselines"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise ValueError(f"{key} names something twice: {values}")
        return self

    @model_validator(mode="after")
    def _outer_fits(self) -> StudyConfig:
        if self.outer is None:
            return self
        problems = []
        if len({tuple(v is None for v in b.model_dump().values()) for b in self.budgets}) > 1:
            problems.append(
                "outer proposes between the budgets, which must all set the same limits"
            )
        for path, values in self.outer.tune.items():
            ends = values if isinstance(values, list) else [values.low, values.high]
            for value in ends:
                try:
                    self.with_settings([(path, value)])
                except ConfigError as error:
                    problems += [f"outer.tune.{problem}" for problem in error.problems]
            if path == "search.strategy" and {*STRATEGIES.of_family("reference")} & set(ends):
                problems.append(f"outer.tune.{path}: head and full have no budget")
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))
        return self

    def with_settings(self, settings: Iterable[tuple[str, Any]]) -> StudyConfig:
        """This study with some settings of ``search`` and ``train`` changed.

        Args:
            settings: Dotted paths and values, ("train.kind_lr.lora", 1e-3).

        Raises:
            ConfigError: If a path leads nowhere else, or a value is not allowed.
        """
        changed, problems = {}, []
        raw = {name: getattr(self, name).model_dump() for name in ("search", "train")}
        for path, value in settings:
            *parents, key = path.split(".")
            place: Any = raw
            for parent in parents:
                place = place.get(parent) if isinstance(place, dict) else None
            if len(parents) == 0 or not isinstance(place, dict):
                problems.append(f"{path}: no setting of search or train")
            else:
                place[key] = value
        for name, section in (("search", SearchConfig), ("train", TrainConfig)):
            try:
                changed[name] = section.model_validate(raw[name])
            except ValidationError as error:
                problems += problems_of(error, section, raw[name], name)
        if problems:
            raise ConfigError(problems)
        return self.model_copy(update=changed)

    @property
    def proposed_strategies(self) -> list[str]:
        """Strategies among which the outer loop proposes; empty where it does not tune them."""
        tuned = self.outer.tune.get("search.strategy") if self.outer is not None else None
        return [str(name) for name in tuned] if isinstance(tuned, list) else []

    @property
    def folder(self) -> Path:
        """Folder that relative paths in the file start from."""
        return self._folder
