"""Task types: the columns, metrics and model class of each. How they train is in ``search/tasks/types``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

__all__ = [
    "LOWER_IS_BETTER",
    "TASK_TYPES",
    "METRICS",
    "MetricName",
    "TaskName",
    "TypeFacts",
    "facts_of",
    "score_name",
]

TaskName: TypeAlias = Literal[
    "classification",
    "regression",
    "multi-label",
    "image-classification",
    "causal-lm",
    "seq2seq",
    "multiple-choice",
    "token-classification",
    "question-answering",
]

MetricName: TypeAlias = Literal[
    "accuracy",
    "f1",
    "matthews",
    "pearson",
    "f1-micro",
    "f1-macro",
    "loss",
    "perplexity",
    "entity-f1",
    "exact-match",
    "bleu",
    "rouge-l",
]

METRICS: tuple[str, ...] = get_args(MetricName)

LOWER_IS_BETTER = frozenset({"loss", "perplexity"})
"""Metrics whose scores are stored with the sign turned: a higher score is better everywhere."""


@dataclass(frozen=True)
class TypeFacts:
    """What is known of a task type before its code is imported.

    Attributes:
        home: ``module:class`` under ``sparsearch.search.tasks.types``.
        columns: Keys of the study file that name columns; each inner tuple is one way to give them.
        options: Further keys that not every type has.
        metrics: Those that it can be measured by, the default first.
        auto_model: Class of transformers that loads its model.
        peft_type: PEFT's name of the task; None where it has none that works.
        auto_peft_model: Class of PEFT that loads an adapter with its model.
        problem_type: As transformers' configs name the loss; None where they do not.
        pipeline: What transformers and the hub call the task; not every one has a pipeline.
        model_name: What its model is called in a README.
        output: What the model gives, where it does not give one logit for each class.
        most_texts: Columns of text that a row may have.
        least_outputs: Of the head, where there are no classes.
        reads: What its rows hold, one of ``spaces.backbone.inputs.readers.READERS``.
        has_head: Whether a new head is trained for it; else all of the model is pretrained.
        several: Whether a row holds several texts.
        writes: Whether its model writes texts, by which metrics other than losses judge it.
    """

    home: str
    columns: tuple[tuple[str, ...], ...]
    options: tuple[str, ...]
    metrics: tuple[MetricName, ...]
    auto_model: str = "AutoModelForSequenceClassification"
    peft_type: str | None = "SEQ_CLS"
    auto_peft_model: str = "AutoPeftModelForSequenceClassification"
    problem_type: str | None = None
    pipeline: str = "text-classification"
    model_name: str = "sequence classifier"
    output: str = ""
    most_texts: int = 2
    least_outputs: int = 1
    reads: Literal["text", "images"] = "text"
    has_head: bool = True
    several: bool = False
    writes: bool = False

    def outputs(self, classes: Sequence[str]) -> int:
        """How many numbers its head gives for a row, or for a token."""
        return len(classes) or self.least_outputs

    @property
    def settings(self) -> str:
        """What an export writes into its config, in words."""
        if self.reads == "images":
            return "labels and problem type are"
        return (
            "labels, problem type and padding token are"
            if self.has_head
            else "the padding token is"
        )

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the study file that the type takes, beyond those of all types."""
        length = {"max_length"} if self.reads == "text" else set()
        return frozenset(self.options).union(length, *self.columns)


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
    "multi-label": TypeFacts(
        home="multi_label:MultiLabel",
        columns=(("text",),),
        options=("label", "labels"),
        metrics=("f1-micro", "f1-macro"),
        problem_type="multi_label_classification",
    ),
    "image-classification": TypeFacts(
        home="images.classification:ImageClassification",
        columns=(("image",),),
        options=("label", "labels"),
        metrics=("accuracy", "f1", "matthews"),
        auto_model="AutoModelForImageClassification",
        peft_type=None,
        auto_peft_model="AutoPeftModel",
        problem_type="single_label_classification",
        pipeline="image-classification",
        model_name="image classifier",
        most_texts=0,
        reads="images",
    ),
    "causal-lm": TypeFacts(
        home="language.causal_lm:CausalLM",
        columns=(("prompt", "completion"), ("text",), ("messages",)),
        options=("references", "max_new_tokens", "packing"),
        metrics=("loss", "perplexity", "bleu", "rouge-l"),
        auto_model="AutoModelForCausalLM",
        peft_type="CAUSAL_LM",
        auto_peft_model="AutoPeftModelForCausalLM",
        pipeline="text-generation",
        model_name="language model",
        output="logits for the token that follows each one",
        most_texts=1,
        has_head=False,
        writes=True,
    ),
    "seq2seq": TypeFacts(
        home="language.seq2seq:Seq2Seq",
        columns=(("source", "target"),),
        options=("references", "max_new_tokens", "source_language", "target_language"),
        metrics=("loss", "perplexity", "bleu", "rouge-l"),
        auto_model="AutoModelForSeq2SeqLM",
        peft_type=None,
        auto_peft_model="AutoPeftModel",
        pipeline="text2text-generation",
        model_name="sequence-to-sequence model",
        output="logits for each token of the target, from the source and the tokens before it",
        has_head=False,
        writes=True,
    ),
    "multiple-choice": TypeFacts(
        home="multiple_choice:MultipleChoice",
        columns=(("context", "choices"),),
        options=("label",),
        metrics=("accuracy",),
        auto_model="AutoModelForMultipleChoice",
        peft_type=None,
        auto_peft_model="AutoPeftModel",
        pipeline="multiple-choice",
        model_name="model of choices",
        output="one logit for each choice of a row; inputs are (rows, choices, tokens)",
        several=True,
    ),
    "token-classification": TypeFacts(
        home="token_classification:TokenClassification",
        columns=(("tokens", "tags"),),
        options=("labels",),
        metrics=("entity-f1",),
        auto_model="AutoModelForTokenClassification",
        peft_type="TOKEN_CLS",
        auto_peft_model="AutoPeftModelForTokenClassification",
        pipeline="token-classification",
        model_name="token classifier",
    ),
    "question-answering": TypeFacts(
        home="question_answering:QuestionAnswering",
        columns=(("question", "context", "answers"),),
        options=(),
        metrics=("f1", "exact-match"),
        auto_model="AutoModelForQuestionAnswering",
        peft_type="QUESTION_ANS",
        auto_peft_model="AutoPeftModelForQuestionAnswering",
        pipeline="question-answering",
        model_name="question answerer",
        output="two logits a token: that the answer begins, and that it ends there",
        least_outputs=2,
    ),
}
"""Every task type, by the name that a study file and a structure give it."""


def facts_of(task_type: str) -> TypeFacts:
    """What is known of a task type.

    >>> facts_of("regression").metrics
    ('pearson',)
    """
    return TASK_TYPES[task_type]


def score_name(metric: str, better: str = "higher") -> str:
    """The name under which scores of a metric are stored and shown; as scikit-learn names its scorers.

    Args:
        metric: Its name, or the import path of the user's own.
        better: Which values of the user's own are better, ``higher`` or ``lower``.

    >>> score_name("accuracy"), score_name("loss"), score_name("mine:cost", "lower")
    ('accuracy', 'neg_loss', 'neg_mine:cost')
    """
    return f"neg_{metric}" if metric in LOWER_IS_BETTER or better == "lower" else metric
