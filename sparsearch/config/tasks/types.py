"""Task types: the columns, metrics and model class of each. How they train is in ``search/tasks/types``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["TASK_TYPES", "MetricName", "TaskName", "TypeFacts", "facts_of"]

TaskName: TypeAlias = Literal["classification", "regression"]

MetricName: TypeAlias = Literal["accuracy", "f1", "matthews", "pearson"]


@dataclass(frozen=True)
class TypeFacts:
    """What is known of a task type before its code is imported.

    Attributes:
        home: ``module:class`` under ``sparsearch.search.tasks.types``.
        columns: Keys of the study file that name columns; each inner tuple is one way to give them.
        options: Further keys that not every type has.
        metrics: Those that it can be measured by, the default first.
        auto_model: Class of transformers that loads its model.
        peft_type: PEFT's name of the task.
        auto_peft_model: Class of PEFT that loads an adapter with its model.
        problem_type: As transformers' configs name the loss; None where they do not.
        pipeline: Pipeline of transformers that runs its model.
        model_name: What its model is called in a README.
        output: What the model gives, where it does not give one logit for each class.
    """

    home: str
    columns: tuple[tuple[str, ...], ...]
    options: tuple[str, ...]
    metrics: tuple[MetricName, ...]
    auto_model: str = "AutoModelForSequenceClassification"
    peft_type: str = "SEQ_CLS"
    auto_peft_model: str = "AutoPeftModelForSequenceClassification"
    problem_type: str | None = None
    pipeline: str = "text-classification"
    model_name: str = "sequence classifier"
    output: str = ""

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the study file that the type takes, beyond those of all types."""
        return frozenset(self.options).union(*self.columns)


TASK_TYPES: Mapping[str, TypeFacts] = {
    "classification": TypeFacts(
        home="classification:Classification",
        columns=(("text",),),
        options=("label", "labels"),
        metrics=("accuracy", "f1", "matthews"),
        problem_type="single_label_classification",
    ),
    "regression": TypeFacts(
        home="regression:Regression",
        columns=(("text",),),
        options=("label", "labels"),
        metrics=("pearson",),
        problem_type="regression",
        output="one raw number a row (regression)",
    ),
}
"""Every task type, by the name that a study file and a structure give it."""


def facts_of(task_type: str) -> TypeFacts:
    """What is known of a task type.

    >>> facts_of("regression").metrics
    ('pearson',)
    """
    return TASK_TYPES[task_type]
