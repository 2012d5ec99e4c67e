"""Metrics of one's own: what they are asked, and which way is better."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import ConfigError, SparsearchError
from sparsearch.search.tasks.task import Split, Task
from sparsearch.search.training.evaluate import evaluate
from sparsearch.workers.preflight import check_study
from tests.helpers import metrics
from tests.helpers.language_model import make_language_model, make_tokenizer

WRONG = "tests.helpers.metrics:wrong"
IDS = torch.arange(6).reshape(3, 2)


class Told(torch.nn.Module):
    """Gives the logits that it was told, row by row."""

    def __init__(self, logits):
        super().__init__()
        self.weight, self.logits = torch.nn.Parameter(torch.zeros(1)), torch.tensor(logits)
        self.config = type("Config", (), {"_attn_implementation": "eager"})

    def forward(self, input_ids):
        return type("Output", (), {"logits": self.logits[input_ids[:, 0] // 2]})


def task_of(kind, classes, labels, **changes):
    # the second row is the shortest: batches bring it first
    token_labels = kind == "token-classification"
    lengths = torch.tensor([2, 1, 2])
    split = Split({"input_ids": IDS}, lengths, torch.tensor(labels), token_labels, **changes)
    return Task("toy", kind, WRONG, classes, 2, split, split, split, better="lower")


@pytest.mark.parametrize(
    ("task", "logits", "asked"),
    [
        (
            task_of("classification", ("no", "yes"), [1, 0, 1]),
            [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]],
            (["yes", "yes", "yes"], ["yes", "no", "yes"]),
        ),
        (
            task_of("regression", (), [1.0, 0.5, 0.0]),
            [[1.0], [2.0], [0.0]],
            ([1.0, 2.0, 0.0], [1.0, 0.5, 0.0]),
        ),
        (
            task_of("multi-label", ("a", "b"), [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]),
            [[1.0, -1.0], [1.0, 1.0], [1.0, 1.0]],
            ([["a"], ["a", "b"], ["a", "b"]], [["a"], [], ["a", "b"]]),
        ),
        (
            task_of("token-classification", ("O", "B-x"), [[0, 1], [0, -100], [-100, 1]]),
            [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]],
            ([["O", "B-x"], ["B-x"], ["B-x"]], [["O", "B-x"], ["O"], ["B-x"]]),
        ),
    ],
    ids=lambda value: getattr(value, "type", ""),
)
def test_a_function_is_asked_with_plain_values_in_the_order_of_the_rows(task, logits, asked):
    metrics.calls.clear()
    assert evaluate(Told(logits), task, task.test, "fp32") == -1.0
    assert metrics.calls == [asked]
    assert evaluate(Told(logits), replace(task, better="higher"), task.test, "fp32") == 1.0


def test_what_a_language_model_writes_is_judged_against_its_references():
    ids = torch.tensor([[6, 12, 7], [6, 13, 8]])
    labels = ids.masked_fill(torch.tensor([True, True, False]), -100)
    right = {"references": [["red"], ["blue"]], "max_new_tokens": 2}
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    split = Split(inputs, torch.tensor([3, 3]), labels, True, right)
    task = Task("toy", "causal-lm", WRONG, (), 8, split, split, split, tokenizer=make_tokenizer())
    metrics.calls.clear()
    assert evaluate(make_language_model("llama"), task, split, "fp32") == 2.0
    ((written, references),) = metrics.calls
    assert references == [["red"], ["blue"]] and all(isinstance(text, str) for text in written)


@pytest.mark.parametrize(
    ("name", "message"),
    [("undefined", "gives nan"), ("broken", "fails: KeyError: 'no such label'")],
)
def test_a_function_that_gives_no_number_is_named(name, message):
    task = replace(
        task_of("regression", (), [1.0, 0.5, 0.0]), metric=f"tests.helpers.metrics:{name}"
    )
    with pytest.raises(SparsearchError, match=f"tests.helpers.metrics:{name} {message}") as caught:
        evaluate(Told([[1.0]] * 3), task, task.test, "fp32")
    assert caught.value.hint


def test_scores_that_are_better_when_lower_say_so():
    section = {"text": ["t"], "data": {"path": "x"}, "metric": WRONG}
    assert TaskConfig.model_validate(section).score_name == WRONG
    assert TaskConfig.model_validate(section | {"better": "lower"}).score_name == f"neg_{WRONG}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"metric": "accuracies"},
            "'accuracies' is no metric; write one of accuracy, .*package.module:function",
        ),
        ({"better": "lower"}, "better is for a metric of your own"),
        (
            {"metric": "tests.helpers.metrics:none"},
            "cannot import tests.helpers.metrics:none: AttributeError",
        ),
        ({"metric": "no_such_package:cost"}, "No module named 'no_such_package'.*PYTHONPATH"),
        ({"metric": "tests.helpers.metrics:word"}, "is no function: 'no function'"),
    ],
)
def test_a_function_that_is_not_there_is_named_before_anything_starts(study, settings, message):
    study["task"] = {**study["task"], **settings}
    with pytest.raises(ConfigError, match=message):
        check_study(study)
