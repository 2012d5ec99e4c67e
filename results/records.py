"""What crosses the border of this room: trials, outcomes, and the records that queries give back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sparsearch.results.store.task_identity import task_fingerprint
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.ranking import Ranking

if TYPE_CHECKING:
    from sparsearch.spaces.backbone.identity import BackboneId
    from sparsearch.spaces.structure import Structure

__all__ = [
    "FINISHED",
    "SPARSITY",
    "Attempt",
    "Best",
    "Environment",
    "FinishedState",
    "Measurement",
    "NOT_RUN",
    "Outcome",
    "BestQuery",
    "Setting",
    "StudyRecord",
    "StudySpec",
    "Trial",
    "TrialRecord",
    "UNFINISHED",
]

FinishedState = Literal["ok", "infeasible", "oom", "failed", "cancelled", "outraced", "decided"]
NOT_RUN: tuple[FinishedState, ...] = ("outraced", "decided")
"""A race left the trial out: its strategy will not be recommended at its budget, or is already."""

FINISHED: tuple[FinishedState, ...] = ("ok", "infeasible", "oom", "failed", "cancelled", *NOT_RUN)
UNFINISHED = ("queued", "running")

SPARSITY = "weight_sparsity"
"""A metric of the split ``test``: share of the weights of the dense backbone's linears that are zero or gone."""


Setting: TypeAlias = tuple[str, bool | int | float | str | None]
"""A dotted path into a study's configuration, and a value: ("search.alpha_lr", 0.03)."""


@dataclass(frozen=True)
class Trial:
    """One (strategy, budget, seed) of a study, and the settings in which it differs from the study's own.

    With the study's configuration that is all one needs to run it again. ``budget`` is None for a
    reference that has none.
    """

    number: int
    strategy: str
    budget: Budget | None
    seed: int
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """One metric of one trial on one split."""

    metric: str
    split: Literal["validation", "test"]
    value: float


@dataclass(frozen=True)
class Environment:
    """What a trial ran on, and where its time went: seconds by phase (``search.phases``)."""

    commit: str
    versions: Mapping[str, str]
    hardware: str
    phases: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        state: ok, infeasible, oom, failed or cancelled; outraced or decided where it was not run, see ``NOT_RUN``.
        message: Why, where the state is not ok.
        measurements: On validation and test; empty where the state is not ok.
        history: Validation score after each epoch of training, also of a trial that was cancelled; NaN where
            the metric is undefined.
        structure: None for the references ``head`` and ``full``, and where none fits.
        trainable_params: Trained parameters; the head is not among them. Of an infeasible trial, what the
            smallest structure would need.
        stored_bytes: What the task costs to keep, see ``Structure.stored_bytes``; of a whole model that trained, all
            of its weights. Of a trial that did not succeed nobody asks.
        head_params: Parameters of the task head.
        inference_flops_ratio: After merging, 1.0 = dense backbone; of an infeasible trial the least there is.
        weights: Attached modules and head as safetensors bytes; None where nothing is to be
            exported.
        ranking: The ranking that was cut, with the key under which other trials may reuse it.
        seconds: Wall time.
        peak_bytes: Peak memory of the process (of the GPU where there is one).
        environment: What it ran on.
        backbone: Whose structures it is about, also where it has none; None where no backbone was loaded.
    """

    state: FinishedState
    message: str = ""
    measurements: tuple[Measurement, ...] = ()
    history: tuple[float, ...] = ()
    structure: Structure | None = None
    trainable_params: int = 0
    stored_bytes: int = 0
    head_params: int = 0
    inference_flops_ratio: float = 1.0
    weights: bytes | None = field(default=None, repr=False)
    ranking: tuple[str, Ranking] | None = field(default=None, repr=False)
    seconds: float = 0.0
    peak_bytes: int = 0
    environment: Environment | None = None
    backbone: BackboneId | None = None

    def score(self, split: str) -> float | None:
        """The measured value on a split, if any."""
        return next((m.value for m in self.measurements if m.split == split), None)


@dataclass(frozen=True)
class StudySpec:
    """What a study is, fixed when it is created.

    Attributes:
        name: Unique in a database.
        config: The study's validated configuration as JSON text; two runs of one study must
            agree on it.
        model: Backbone path or hub id, as the user wrote it.
        task: Name of the task.
        metric: Validation metric; higher is better.
        backbone_params: Parameters of the backbone, to resolve "0.01%" in queries.
        trials: All that are planned, in order, numbered from 0.
    """

    name: str
    config: str
    model: str
    task: str
    metric: str
    backbone_params: int
    trials: tuple[Trial, ...]

    @property
    def task_fingerprint(self) -> str:
        """Equal for the studies whose scores compare, see ``results.task_identity``.

        Raises:
            ConfigError: If the configuration holds NaN or an infinity.
        """
        return task_fingerprint(self.name, self.config, self.task, self.metric)


@dataclass(frozen=True)
class StudyRecord:
    """A study as stored; scores of studies with an equal ``task_fingerprint`` compare.

    ``backbone`` is the ``BackboneId`` of its first outcome, as a dict; None before, and in old databases.
    """

    name: str
    model: str
    task: str
    metric: str
    backbone_params: int
    config: str
    created_at: datetime
    owner: str | None
    trials: int
    finished: int
    best_score: float | None
    task_fingerprint: str = ""
    backbone: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> StudyRecord:
        """The record of which ``as_dict`` made the JSON object; its configuration is empty without ``settings``."""
        row = {**row, "created_at": datetime.fromisoformat(row["created_at"])}
        settings = row.pop("settings", None)
        return cls(**row, config="" if settings is None else json.dumps(settings, sort_keys=True))

    @property
    def settings(self) -> dict[str, Any]:
        """Its configuration, without what is at its default."""
        settings: dict[str, Any] = json.loads(self.config)
        return settings

    @property
    def state(self) -> str:
        """``running``, ``finished``, or ``unfinished``: nobody runs it, and trials are left."""
        if self.owner is not None:
            return "running"
        return "finished" if self.finished == self.trials else "unfinished"

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of ``studies``."""
        keys = (
            "name model task task_fingerprint metric backbone_params trials finished best_score "
            "owner created_at"
        )
        return {key: getattr(self, key) for key in keys.split()}


@dataclass(frozen=True)
class TrialRecord:
    """A trial as stored; ``state`` is queued, running or one of FINISHED.

    ``ranking_key`` names the ranking that its structure was cut from, see ``Store.ranking``; None where
    there was none, and in what was stored before keys were kept. ``environment`` has commit, versions and hardware.
    ``stored_bytes`` is None until it succeeds. When and where it ran does not make two records differ.
    """

    study: str
    number: int
    strategy: str
    seed: int
    budget: Mapping[str, Any] | None
    state: str
    message: str
    score: float | None
    test_score: float | None
    structure: str | None
    trainable_params: int | None
    head_params: int | None
    inference_flops_ratio: float | None
    seconds: float | None
    peak_bytes: int | None
    attempts: int
    ranking_key: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[float, ...] = ()
    weight_sparsity: float = 0.0
    stored_bytes: int | None = None
    started_at: datetime | None = field(default=None, compare=False)
    finished_at: datetime | None = field(default=None, compare=False)
    environment: Mapping[str, Any] | None = field(default=None, compare=False)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> TrialRecord:
        """The record of which ``as_dict`` made the JSON object."""
        fields = {key: value for key, value in row.items() if key != "tries"}
        fields |= _times(row, "started_at", "finished_at")
        history = tuple(math.nan if score is None else score for score in row["history"])
        return cls(**fields | {"history": history})

    def as_dict(self, attempts: Iterable[Attempt] = ()) -> dict[str, Any]:
        """The JSON object of ``trials``; ``tries`` are those of the attempts that are its own."""
        tries = [asdict(a) for a in attempts if a.trial == self.number]
        for one in tries:
            del one["trial"]
        return asdict(self) | {"tries": tries}


@dataclass(frozen=True)
class Attempt:
    """One attempt at a trial.

    Attributes:
        trial: Number of the trial.
        number: 1 for the first.
        worker: Who tried.
        state: running; how the trial ended, if with this attempt; ``oom`` or ``lost`` (it was tried
            again, or given up for good), ``interrupted`` (its driver ended), or ``late``: what came of one
            that had been given up.
        message: Why, where it did not succeed.
        started_at: When it began.
        deadline: Until when it is believed in; progress moves it.
        ended_at: None while it runs.
    """

    trial: int
    number: int
    worker: str
    state: str
    message: str
    started_at: datetime
    deadline: datetime
    ended_at: datetime | None

    @classmethod
    def from_dict(cls, trial: int, row: Mapping[str, Any]) -> Attempt:
        """The attempt of which ``TrialRecord.as_dict`` made one of ``tries``."""
        return cls(trial, **{**row, **_times(row, "started_at", "deadline", "ended_at")})


def _times(row: Mapping[str, Any], *keys: str) -> dict[str, datetime | None]:
    """Times that stand as text."""
    return {k: None if row[k] is None else datetime.fromisoformat(row[k]) for k in keys}


@dataclass(frozen=True)
class BestQuery:
    """What ``Store.best`` is asked: its arguments.

    Attributes:
        study: Name of a study, or a unique prefix of it.
        model: The backbone, as the user wrote it.
        task: Name of the task, or the beginning of its fingerprint.
        limits: By name, see ``spaces.limits``; None is no limit.
    """

    study: str | None = None
    model: str | None = None
    task: str | None = None
    limits: Mapping[str, int | float | str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> BestQuery:
        """A question whose names and limits stand in one mapping."""
        names = {key: asked.get(key) for key in ("study", "model", "task")}
        return cls(**names, limits={k: v for k, v in asked.items() if k not in names})


@dataclass(frozen=True)
class Best:
    """A trial that has a structure and may be recommended.

    Attributes:
        study: Name of the study.
        trial: Number in it.
        strategy: What made the structure.
        metric: Name of the metric.
        score: On validation.
        test_score: On test, None if there is none.
        structure: The structure itself, ready to attach.
        trainable_params: Head not counted.
        head_params: Parameters of the head.
        inference_flops_ratio: 1.0 = dense.
        budget: As the user set it.
        seed: Seed of the trial.
        model: Backbone as the user wrote it.
        task: Name of the task.
        stored_bytes: What the task costs to keep, the head not counted, see ``Outcome``.
        weight_sparsity: Share of the weights of the dense backbone's linears that are zero or gone.
        task_fingerprint: Identifies the task: scores compare where it is equal.
    """

    study: str
    trial: int
    strategy: str
    metric: str
    score: float
    test_score: float | None
    structure: Structure
    trainable_params: int
    head_params: int
    inference_flops_ratio: float
    budget: Mapping[str, Any] | None
    seed: int
    model: str
    task: str
    stored_bytes: int
    weight_sparsity: float = 0.0
    task_fingerprint: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any], structure: Structure) -> Best:
        """A row of the other fields, and the structure, which all studies share.

        What its hash leaves out is the row's own: ``offered`` candidates, and ``backbone`` as in ``StudyRecord``.
        """
        own = {key: row[key] for key in ("study", "trial", "strategy", "seed")}
        row, known = dict(row), row.get("backbone") or {}
        row.pop("backbone", None)
        if (offered := row.pop("offered", None)) is not None:
            own["offered"] = offered
        where = {key: known[key] for key in ("path", "revision") if key in known}
        provenance = replace(structure.provenance, **own)
        backbone = replace(structure.backbone, **where)
        row["structure"] = replace(structure, provenance=provenance, backbone=backbone)
        return cls(**row)

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of ``best`` and ``pareto``; the structure by its hash."""
        keys = (
            "study trial strategy metric score test_score trainable_params stored_bytes head_params "
            "inference_flops_ratio budget seed model task weight_sparsity task_fingerprint"
        )
        return {"structure": self.structure.hash} | {k: getattr(self, k) for k in keys.split()}

    def as_detailed_dict(self) -> dict[str, Any]:
        """The JSON object of ``show``: the above, and every candidate."""
        keys = ("position", "kind", "size", "params", "bytes")
        chosen = [{k: getattr(c, k) for k in keys} for c in self.structure.candidates]
        return self.as_dict() | {"candidates": chosen}
