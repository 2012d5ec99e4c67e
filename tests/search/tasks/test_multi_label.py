"""Rows of several classes: how they are read, learnt and judged, and what is refused."""

from __future__ import annotations

import pytest
import torch
from sklearn import metrics

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import DataError
from sparsearch.search.tasks.task import load_task
from sparsearch.search.tasks.types.registry import find_task_type
from tests.helpers.language_model import make_tokenizer, write_rows

ROWS = [{"text": "red two", "label": ["b", "a"]}, {"text": "blue", "label": []}]


@pytest.fixture
def load(tmp_path):
    def load(rows=ROWS, validation=ROWS, **settings):
        data = write_rows(tmp_path, {"train": rows, "validation": validation, "test": ROWS})
        config = {"type": "multi-label", "data": data, "text": ["text"], **settings}
        return load_task(TaskConfig.model_validate(config), tmp_path, make_tokenizer(), 24)

    return load


def test_rows_have_any_number_of_classes(load):
    task = load()
    assert (task.classes, task.metric) == (("a", "b"), "f1-micro")
    assert task.train.labels.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert task.summary.classes == {"a": (1, 1, 1), "b": (1, 1, 1)}
    assert load(labels=["b", "c", "a"]).train.labels.tolist() == [[1.0, 0.0, 1.0], [0.0] * 3]


def test_classes_that_parquet_declares_in_lists_are_read_by_name(tmp_path):
    import datasets

    names = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.List(datasets.ClassLabel(names=["no", "yes"])),
        }
    )
    rows = {"text": ["red", "two"], "label": [[1], [0, 1]]}
    datasets.Dataset.from_dict(rows, features=names).to_parquet(tmp_path / "x")
    files = dict.fromkeys(("train", "validation", "test"), "x")
    data = {"path": "parquet", "data_files": files}
    config = TaskConfig.model_validate({"type": "multi-label", "data": data, "text": ["text"]})
    task = load_task(config, tmp_path, make_tokenizer())
    assert task.classes == ("no", "yes")
    assert task.train.labels.tolist() == [[0.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_scores_are_scikit_learns(average):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3, generator=generator)
    labels = (torch.rand(40, 3, generator=generator) > 0.6).float()
    expected = metrics.f1_score(labels.int(), (logits > 0).int(), average=average)
    multi = find_task_type("multi-label")
    assert multi.measure(f"f1-{average}", logits, labels) == pytest.approx(expected)
    wrong = torch.nn.functional.softplus(torch.where(labels > 0, -logits, logits))
    assert torch.allclose(multi.loss_of(logits, labels), wrong.mean())


@pytest.mark.parametrize(
    ("rows", "validation", "settings", "message"),
    [
        ([{"text": "red", "label": "a"}] * 2, ROWS, {}, "row 0: column 'label' holds no list"),
        ([{"text": "red", "label": []}] * 2, ROWS, {}, "names no class in any row"),
        ([{"text": "red", "label": ["a", "b"]}] * 2, ROWS, {}, "2 rows, all of the same classes"),
        (ROWS, [{"text": "red", "label": ["c"]}], {}, "'validation', row 0: label 'c' is outside"),
        (ROWS, [{"text": "red", "label": []}], {}, "names no class, where f1-micro has no value"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(load, rows, validation, settings, message):
    with pytest.raises(DataError, match=message) as caught:
        load(rows, validation, **settings)
    assert caught.value.hint
