"""Task checks: what one cannot learn from or measure on is refused, what misleads is said."""

from __future__ import annotations

import json

import pytest

from sparsearch.config.study import DataConfig, TaskConfig
from sparsearch.errors import DataError
from sparsearch.search.tasks.task import load_task
from sparsearch.spaces.backbone.loading import load_tokenizer

SPLITS = ("train", "validation", "test")
TEXTS = ("good", "bad", "so sad", "the film", "a book", "it was")


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return load_tokenizer(str(tiny_folder))


def rows(*labels, texts=TEXTS, more=""):
    return [{"text": text + more, "label": v} for text, v in zip(texts, labels, strict=False)]


@pytest.fixture
def load(tokenizer, tmp_path):
    """Loads a task with these rows."""

    def make(train, validation, test, **task):
        for split, content in zip(SPLITS, (train, validation, test), strict=True):
            (tmp_path / split).write_text("".join(json.dumps(row) + "\n" for row in content))
        data = DataConfig(path="json", data_files={s: s for s in SPLITS})
        config = TaskConfig(data=data, **{"text": ["text"], **task})
        return load_task(config, tmp_path, tokenizer)

    return make


REGRESSION = {"type": "regression", "metric": "pearson"}


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        ((0.1, 0.1, 0.1), REGRESSION, "holds 0.1 in all 3 rows, where pearson has no value"),
        ((2,), REGRESSION, "holds 2 in all 1 rows, where pearson has no value"),
        ((1e8, 1e8 + 1), REGRESSION, r"holds 1e\+08 in all 2 rows"),
        ((1, 1), {"metric": "matthews"}, "holds the class '1' alone, where matthews has no value"),
        ((0, 0), {"metric": "f1"}, "holds no row of the class '1', where f1 has no value"),
    ],
)
def test_a_split_on_which_the_metric_has_no_value_is_refused(split, labels, task, message, load):
    columns = [rows(0, 1, 1), rows(0, 1, 0), rows(1, 0, 1)]
    columns[split] = rows(*labels)
    with pytest.raises(
        DataError, match=f"split {SPLITS[split]!r}: column 'label' {message}"
    ) as caught:
        load(*columns, **task)
    assert f"task.data.splits.{SPLITS[split]}" in caught.value.hint


@pytest.mark.parametrize(
    ("labels", "metric"), [((1, 1), "accuracy"), ((1, 1), "f1"), ((0, 0), "accuracy")]
)
def test_a_split_of_one_class_on_which_the_metric_has_a_value_is_said(labels, metric, load):
    task = load(rows(0, 1, 1), rows(*labels, more=" so"), rows(0, 1, more=" very"), metric=metric)
    assert task.warnings == (
        f"split 'validation' holds the class '{labels[0]}' alone: who always guesses it has the best {metric}",
    )


def test_a_constant_target_teaches_nothing(load):
    with pytest.raises(DataError, match="'train' .* is left with 3 rows, all with 0.5"):
        load(rows(0.5, 0.5, 0.5), rows(0, 1), rows(0, 1), **REGRESSION)


@pytest.mark.parametrize("label", [0, 2, "x"])
def test_a_single_training_row_is_too_little_whatever_its_label(label, load):
    with pytest.raises(
        DataError, match="left with one row, which a search cannot halve"
    ) as caught:
        load(rows(label), rows(0, 1), rows(0, 1))
    assert caught.value.hint.startswith("add rows")


@pytest.mark.parametrize("label", [0, 2])
def test_training_rows_of_one_class_are_said_to_be_so(label, load):
    with pytest.raises(DataError, match=rf"two classes or more, each once; found \[{label}\]"):
        load(rows(label, label), rows(0, 1), rows(0, 1))


def test_rows_that_stand_in_two_splits_are_counted(load):
    train, other = rows(0, 1, 0, 1), rows(0, 1, 0, more=" not")
    validation = [*other[:1], train[1], train[2] | {"label": 1}, train[1]]
    task = load(train, validation, [*other[1:], train[1]])
    found = [warning.partition(":")[0] for warning in task.warnings]
    assert found == [
        "3 of 4 rows of split 'validation' stand in split 'train' too",
        "1 of 3 rows of split 'test' stand in split 'train' too",
        "1 of 3 rows of split 'test' stand in split 'validation' too",
    ]


def test_rows_that_differ_in_one_of_two_texts_are_different_rows(load):
    train = [{"a": a, "b": "so", "label": i % 2} for i, a in enumerate(TEXTS)]
    other = [row | {"b": "it"} for row in train]
    task = load(train, other, [other[0], *(row | {"b": "was"} for row in train)], text=["a", "b"])
    assert len(task.warnings) == 1 and task.warnings[0].startswith("1 of 7 rows of split 'test'")


def test_rows_that_are_not_trained_on_are_not_counted_as_shared(load):
    train = rows(0, 1, 0, 1, 0, 1)
    task = load(train, train[4:], rows(0, 1, more=" not"), max_train_rows=4)
    assert task.warnings == ()


def test_a_split_without_any_text_is_refused(load):
    blank = rows(0, 1, 0, texts=("", " ", "\n"))
    for split in range(3):
        columns = [rows(0, 1), rows(0, 1), rows(0, 1)]
        columns[split] = blank
        with pytest.raises(
            DataError, match=f"every row of split {SPLITS[split]!r} has an empty text: text"
        ):
            load(*columns)


def test_rows_without_text_are_counted(load):
    train = rows(0, 1, 0, texts=("good", "", " "))
    task = load(train, rows(0, 1, more=" so"), rows(0, 1, more=" not"))
    assert task.warnings == ("2 of 3 rows of split 'train' have an empty text",)


def test_a_class_that_is_not_trained_on_is_said(load):
    train = rows(0, 1, 0, 2)
    task = load(train, rows(0, 1, more=" so"), rows(0, 2, more=" not"), max_train_rows=3)
    assert task.warnings == ("class '2' has no row in split 'train': it cannot be learnt",)


def test_classes_that_look_like_one_are_said(load):
    labels = ("Spam", "spam ", "ham")
    task = load(rows(*labels), rows("ham", "Spam", more=" so"), rows("spam ", "ham", more=" not"))
    said = (
        "classes 'Spam' and 'spam ' differ by case, blanks or quotes alone: they are learnt as 2"
    )
    assert said in task.warnings
    assert not any("differ by" in w for w in load(rows("a", "b"), rows("b"), rows("a")).warnings)


def test_a_summary_counts_classes_and_gives_the_range_of_targets(load):
    summary = load(rows("a", "b", "a"), rows("b", "b", "a"), rows("a")).summary
    assert summary.rows == {"train": 3, "validation": 3, "test": 1}
    assert summary.classes == {"a": (2, 1, 1), "b": (1, 2, 0)} and summary.targets == {}
    summary = load(rows(0, 1, 5), rows(0, 1), rows(2, 4), **REGRESSION).summary
    assert summary.targets["train"] == (0.0, 2.0, 5.0) and summary.classes == {}


@pytest.mark.parametrize(("unit", "spread"), [(1000.0, "577"), (0.01, "0.00577")])
def test_targets_in_a_unit_that_no_rate_fits_are_said(unit, spread, load):
    def targets(*labels, more=""):
        return rows(*(unit * label for label in labels), more=more)

    task = load(
        targets(0, 1, 1), targets(0, 1, more=" so"), targets(1, 0, more=" v"), **REGRESSION
    )
    assert [w for w in task.warnings if f"a standard deviation of {spread};" in w] == [
        *task.warnings
    ]
    unit = 1.0
    task = load(
        targets(0, 1, 1), targets(0, 1, more=" so"), targets(1, 0, more=" v"), **REGRESSION
    )
    assert task.warnings == ()
