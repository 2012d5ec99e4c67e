"""What the task is: its data, columns, labels and metric."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sparsearch.config.fields import Positive, Section
from sparsearch.config.tasks.data import DataConfig
from sparsearch.config.tasks.imports import is_import_path
from sparsearch.config.tasks.types import (
    LOWER_IS_BETTER,
    METRICS,
    TASK_TYPES,
    TaskName,
    TypeFacts,
    facts_of,
    score_name,
)

__all__ = ["TaskConfig"]

_KEYS = sorted(frozenset[str]().union(*(facts.keys for facts in TASK_TYPES.values())))
"""Keys that only some types have."""

_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "references"),
    ("source", "target"),
    ("source", "references"),
    ("tokens", "tags"),
    ("question", "context"),
)
"""Keys that must name two columns."""


def _class_name(value: Any) -> Any:
    if not isinstance(value, str | int):
        raise ValueError(
            f"{value!r} is no class: write text, a whole number, true or false; other numbers in "
            "quotes, as they stand in the data"
        )
    return value


def _metric_name(value: str) -> str:
    if value not in METRICS and not is_import_path(value):
        raise ValueError(
            f"{value!r} is no metric; write one of {', '.join(METRICS)}, or package.module:function for your own"
        )
    return value


class TaskConfig(Section):
    """The task: its data, columns, labels and metric. ``types`` says which keys go with which type."""

    type: TaskName = "classification"
    name: str = ""
    data: DataConfig
    text: Annotated[list[str], Field(max_length=2)] = []
    prompt: str | None = None
    completion: str | None = None
    references: str | None = None
    messages: str | None = None
    source: str | None = None
    target: str | None = None
    source_language: str | None = None
    target_language: str | None = None
    tokens: str | None = None
    tags: str | None = None
    question: str | None = None
    context: str | None = None
    choices: list[str] = []
    answers: str | None = None
    image: str | None = None
    label: str = "label"
    labels: list[Annotated[str | int | bool, BeforeValidator(_class_name)]] | None = None
    metric: Annotated[str, AfterValidator(_metric_name)] = "accuracy"
    better: Literal["higher", "lower"] = "higher"
    max_length: Annotated[int, Field(ge=4)] = 128
    max_new_tokens: Positive = 64
    packing: bool = False
    max_train_rows: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, value: Any) -> Any:
        """The first metric of the type, where none is given; a single text column may stand outside a list."""
        given = value.get("type") if isinstance(value, Mapping) else None
        if not isinstance(given, str) or given not in TASK_TYPES:
            return value
        lists = {k: [v] for k in ("text", "choices") if isinstance(v := value.get(k), str)}
        return {"metric": facts_of(given).metrics[0], **value, **lists}

    @model_validator(mode="after")
    def _fits_type(self) -> TaskConfig:
        facts, fields = self.facts, type(self).model_fields
        given = {key for key in _KEYS if getattr(self, key) != fields[key].default}
        if stray := sorted(given - facts.keys):
            raise ValueError(
                f"{', '.join(stray)} is no key of type {self.type!r}; it has {', '.join(sorted(facts.keys))}"
            )
        columns = given.intersection(*[set().union(*facts.columns)])
        if columns not in map(set, facts.columns):
            ways = ", or ".join(" and ".join(way) for way in facts.columns)
            raise ValueError(f"type {self.type!r} needs the columns of its rows: give {ways}")
        for one, other in _PAIRS:
            if (name := getattr(self, one)) is not None and name == getattr(self, other):
                raise ValueError(f"{one} and {other} are two columns, not both {name!r}")
        if len(self.text) > facts.most_texts:
            raise ValueError(f"type {self.type!r} takes one text column, not {self.text}")
        if self.references is not None and self.completion is None and self.target is None:
            raise ValueError("references go with prompt and completion, or source and target")
        if (self.source_language is None) != (self.target_language is None):
            raise ValueError("source_language and target_language go together")
        if self.better != "higher" and not is_import_path(self.metric):
            raise ValueError(f"better is for a metric of your own: {self.metric!r} says it itself")
        if self.metric not in facts.metrics and not is_import_path(self.metric):
            owners = [name for name, other in TASK_TYPES.items() if self.metric in other.metrics]
            raise ValueError(
                f"metric {self.metric!r} does not fit type {self.type!r}, which has "
                f"{', '.join(facts.metrics)}; {self.metric} is for {', '.join(owners)}"
            )
        if self.generates and self.text:
            raise ValueError(
                f"metric {self.metric!r} judges what is written after a prompt: give prompt and completion, or messages"
            )
        if "max_new_tokens" in given and not self.generates:
            raise ValueError(f"max_new_tokens: nothing is written for metric {self.metric!r}")
        return self

    @property
    def generates(self) -> bool:
        """Whether a model is judged by the texts that it writes."""
        return self.facts.writes and self.metric not in LOWER_IS_BETTER

    @property
    def score_name(self) -> str:
        """The name under which scores are stored and shown; a higher score is better."""
        return score_name(self.metric, self.better)

    @property
    def images(self) -> tuple[str, ...]:
        """Columns that hold images."""
        return () if self.image is None else (self.image,)

    @property
    def facts(self) -> TypeFacts:
        """What is known of its type."""
        return facts_of(self.type)

    @property
    def title(self) -> str:
        """The task's name: as given, else the folder (or file) of local data, the function, or the hub's name."""
        if self.name:
            return self.name
        if self.data.data_files:
            file = Path(next(iter(self.data.files.values()))[0])
            return file.parent.name or file.stem
        if self.data.callable is not None:
            return self.data.callable.partition(":")[2]
        return "-".join(filter(None, (self.data.path.rsplit("/", 1)[-1], self.data.name)))
