"""The objects of the answers: those that ``--json`` prints, with their types for the API's document."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field, RootModel

__all__ = [
    "AttemptModel",
    "BestModel",
    "CandidateModel",
    "DifferenceModel",
    "HealthModel",
    "LaunchModel",
    "LogModel",
    "Page",
    "PlanModel",
    "ProblemModel",
    "StructureDocument",
    "StructureModel",
    "StudyDetailModel",
    "StudyFile",
    "StudyModel",
    "SummaryModel",
    "TrialModel",
    "UploadModel",
]

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """Some of many rows."""

    items: list[T]
    next: str | None = Field(
        description="What to give as `cursor` for the rows that follow; null after the last."
    )


class ProblemModel(BaseModel):
    """Every error."""

    error: str = Field(description="Its class in `sparsearch.errors`.")
    message: str
    hint: str
    problems: list[str]


class HealthModel(BaseModel):
    """That the service answers, and its database too."""

    status: str
    version: str


class StudyModel(BaseModel):
    """A study of a list."""

    name: str
    model: str
    task: str
    task_fingerprint: str
    metric: str
    backbone_params: int
    trials: int
    finished: int
    best_score: float | None
    owner: str | None
    created_at: str


class StudyDetailModel(StudyModel):
    """A study, with what it was launched with."""

    settings: dict[str, Any]


class EndModel(BaseModel):
    """How a driver ended."""

    code: int
    message: str
    hint: str


class LaunchModel(BaseModel):
    """A study that was launched here."""

    study: str
    state: str = Field(description="queued, running, finished, failed or stopped.")
    queued_at: str
    starts: int = Field(
        description="Drivers since it was queued; more than one if some were killed."
    )
    end: EndModel | None
    last_event: int = Field(
        description="Of before it was queued: as `Last-Event-ID` it asks for the events since."
    )


class LogModel(BaseModel):
    """A piece of a log."""

    text: str
    next: int = Field(description="What to give as `offset` for what follows.")


class StudyFile(RootModel[dict[str, Any]]):
    """What a study file holds; paths are below the allowed folders."""


class PlannedBudgetModel(BaseModel):
    """What a budget would buy."""

    budget: dict[str, Any]
    fitting: int = Field(description="Candidates that fit alone.")
    most: int = Field(description="The most candidates that fit together.")


class PlanModel(BaseModel):
    """What a study would do."""

    study: str
    backbone_params: int
    candidates: int
    trainable_params: int = Field(description="Of all candidates together.")
    smallest: str = Field(description="The smallest candidate; empty where none is attached.")
    budgets: list[PlannedBudgetModel]
    unreached: list[str] = Field(
        description="What of the backbone no position reaches, and why, a place each."
    )
    guessed: str = Field(
        description="What was guessed of a family that is not in the table; empty for others."
    )
    trials: int
    proposed: int = Field(description="Trials that an outer loop proposes beside them.")
    seconds: float | None = Field(description="One after the other; null where none is known.")
    seconds_from: int = Field(description="Trials whose strategy has run on this model before.")


class UploadModel(BaseModel):
    """A data file that was sent."""

    name: str
    columns: list[str]
    rows: int
    bytes: int
    sha256: str


class AttemptModel(BaseModel):
    """One attempt at a trial."""

    number: int
    worker: str
    state: str
    message: str
    started_at: str
    deadline: str
    ended_at: str | None


class TrialModel(BaseModel):
    """A trial."""

    study: str
    number: int
    strategy: str
    seed: int
    budget: dict[str, Any] | None
    state: str
    message: str
    score: float | None
    test_score: float | None
    structure: str | None
    trainable_params: int | None
    stored_bytes: int | None = Field(description="Null until it succeeds.")
    head_params: int | None
    inference_flops_ratio: float | None
    seconds: float | None
    peak_bytes: int | None
    attempts: int
    ranking_key: str | None
    settings: dict[str, Any]
    history: list[float | None]
    weight_sparsity: float
    started_at: str | None
    finished_at: str | None
    environment: dict[str, Any] | None
    tries: list[AttemptModel]


class BestModel(BaseModel):
    """A trial that may be recommended."""

    structure: str
    study: str
    trial: int
    strategy: str
    metric: str
    score: float
    test_score: float | None
    trainable_params: int
    stored_bytes: int = Field(description="What the task costs to keep, the head apart.")
    head_params: int
    inference_flops_ratio: float
    budget: dict[str, Any] | None
    seed: int
    model: str
    task: str
    weight_sparsity: float
    task_fingerprint: str


class CandidateModel(BaseModel):
    """What stands at a position."""

    position: str
    kind: str
    size: int
    params: int
    bytes: int = Field(description="Of its tensors, trained or not.")


class StructureModel(BestModel):
    """A structure with all that it attaches and cuts."""

    candidates: list[CandidateModel]


class StructureDocument(RootModel[dict[str, Any]]):
    """A structure as `structure.json` holds it."""


class ChosenModel(BaseModel):
    """What one of two structures has at a position."""

    size: int
    params: int
    which: list[int]


class ChangeModel(BaseModel):
    """A position and a kind in which two structures differ."""

    position: str
    kind: str
    first: ChosenModel | None
    second: ChosenModel | None
    options: dict[str, list[Any]] = Field(
        description="Of the kind's options those that differ: in the first structure, and in the second."
    )


class DifferenceModel(BaseModel):
    """Two structures, compared."""

    first: str
    second: str
    same: int = Field(description="Candidates that both have.")
    changes: list[ChangeModel]


class SummaryModel(BaseModel):
    """A study in figures: per budget the mean and spread over seeds, intervals and a verdict."""

    study: str
    metric: str
    searched: str
    budgets: list[dict[str, Any]]
    references: list[dict[str, Any]]
    unsuccessful: list[dict[str, Any]]
    front: list[dict[str, Any]]
    warnings: list[str]
