"""Labels: one table of classes for all splits, as they are written."""

from __future__ import annotations

import datetime
import decimal
import json

import pytest

from sparsearch.config.study import DataConfig, TaskConfig
from sparsearch.errors import DataError
from sparsearch.search.tasks.task import load_task
from sparsearch.spaces.backbone.loading import load_tokenizer

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return load_tokenizer(str(tiny_folder))


@pytest.fixture
def load(tokenizer, tmp_path):
    """Loads a task with these labels in train, validation and test."""

    def make(train, validation=None, test=None, path="json", **task):
        columns = (
            train,
            train if validation is None else validation,
            train if test is None else test,
        )
        for split, labels in zip(SPLITS, columns, strict=True):
            write = {"json": json_file, "csv": csv_file, "parquet": parquet_file}[path]
            write(tmp_path / split, labels)
        data = DataConfig(path=path, data_files={s: s for s in SPLITS})
        return load_task(TaskConfig(data=data, text=["text"], **task), tmp_path, tokenizer)

    return make


def json_file(path, labels):
    rows = ({"text": "good", "label": label} for label in labels)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def csv_file(path, labels):
    path.write_text("text,label\n" + "".join(f"good,{label}\n" for label in labels))


def parquet_file(path, labels):
    import datasets

    names, labels = labels if isinstance(labels, tuple) else (None, labels)
    data = datasets.Dataset.from_dict({"text": ["good"] * len(labels), "label": labels})
    if names is not None:
        data = data.cast_column("label", datasets.ClassLabel(names=names))
    data.to_parquet(path)


@pytest.mark.parametrize("path", ["json", "csv"])
@pytest.mark.parametrize(
    "labels",
    [
        ["NA", "null", "nan", "None", "n/a"],
        ["00", "01", "1"],
        ["0.0", "1.0"],
        ["1", "1.0"],
        ["1e5", "2"],
        ["False", "true"],
        ["-", "2024-01-01"],
        ["0", "1", "x"],
    ],
)
def test_text_labels_are_classes_as_they_are_written(path, labels, load):
    assert load(labels, path=path).classes == tuple(sorted(labels))


@pytest.mark.parametrize("path", ["json", "csv", "parquet"])
def test_whole_numbers_are_classes_in_their_own_order(path, load):
    task = load(list(range(12)), [11, 2], [3, 10], path=path)
    assert task.classes == tuple(map(str, range(12)))
    assert task.validation.labels.tolist() == [11, 2] and task.test.labels.tolist() == [3, 10]


def test_csv_labels_are_numbers_only_if_they_are_in_every_split(load):
    task = load([*range(11), "NA"], ["10", "2"], ["NA"], path="csv")
    assert task.classes == tuple(sorted([*map(str, range(11)), "NA"]))
    assert [task.classes[i] for i in task.validation.labels] == ["10", "2"]
    assert [task.classes[i] for i in task.test.labels] == ["NA"]
    for stray in ("00", "1.0", "+1", " 1", "٣"):
        with pytest.raises(
            DataError, match="split 'test', row 1: label .* is outside the classes"
        ):
            load(["0", "1"], test=["1", stray], path="csv")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 2], ["2", "0"], r"whole numbers \(split 'train', row 0: 0\) and text \(split 'test', row 0: '2'\)"),
        ([0, "1"], [0, "1"], r"whole numbers .*row 0: 0\) and text \(split 'train', row 1: '1'\)"),
        ([0.0, 1.0], [1], r"decimal numbers .* and whole numbers \(split 'test', row 0: 1\)"),
        ([0, 1, 1.0], [1], r"whole numbers .* and decimal numbers \(split 'train', row 2: 1.0\)"),
        ([True, False], [1, 0], r"true or false .* and whole numbers"),
        (["true", "false"], [True], r"text .* and true or false"),
    ],
)  # fmt: skip
def test_labels_of_two_types_are_refused_unless_the_classes_are_listed(train, test, message, load):
    with pytest.raises(DataError, match=message) as caught:
        load(train, test=test)
    assert "task.labels" in caught.value.hint


@pytest.mark.parametrize(
    ("listed", "train", "test"),
    [
        ([2, 0, 1], [0, 1, 2], ["2", "0"]),
        (["2", "0", "1"], [0, 1, 2], ["2", "0"]),
        ([False, True], [True, False], ["true", "false"]),
        (["1.0", "x"], ["x", 1.0], ["1.0", "x"]),
        (["", "x"], ["x", ""], [""]),
    ],
)
def test_listed_classes_say_how_labels_of_all_splits_are_read(listed, train, test, load):
    names = [str(v).lower() if isinstance(v, bool) else str(v) for v in listed]
    task = load(train, test=test, labels=listed)
    assert task.classes == tuple(names)
    assert task.test.labels.tolist() == [names.index(str(v).lower()) for v in test]


def test_truth_values_are_classes(load):
    task = load([True, False, True], [False, True], path="parquet")
    assert task.classes == ("false", "true") and task.validation.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "path", "message"),
    [
        ([[0, 1], [1]], "json", r"row 0: column 'label' holds a list, \[0, 1\]"),
        ([{"a": 1}, {"a": 2}], "json", r"row 0: column 'label' holds an object, \{'a': 1\}"),
        ([0, 1, [1]], "json", r"row 2: column 'label' holds a list"),
        ([[0, 1], [1]], "parquet", "row 0: column 'label' holds a list"),
        ([datetime.date(2024, 1, 1)] * 2, "parquet", "row 0: column 'label' holds date"),
        ([datetime.datetime(2024, 1, 1)] * 2, "parquet", "row 0: column 'label' holds datetime"),
        ([decimal.Decimal("1.5")] * 2, "parquet", "row 0: column 'label' holds Decimal"),
        ([b"a", b"b"], "parquet", "row 0: column 'label' holds bytes"),
    ],
)
def test_labels_that_are_no_text_or_number_are_refused_by_their_type(labels, path, message, load):
    with pytest.raises(DataError, match=message) as caught:
        load(labels, path=path)
    assert caught.value.hint


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_rows_without_a_label_are_named_in_every_split(missing, load):
    for split in range(3):
        columns = [["x", "y"]] * 3
        columns[split] = ["x", missing, "y", missing]
        message = rf"split {SPLITS[split]!r} has rows without a 'label': row 1 \(2 such rows\)"
        with pytest.raises(DataError, match=message):
            load(*columns)


def test_declared_classes_are_matched_by_name(load):
    """The splits may number them each in its own way."""
    task = load(
        (["no", "yes"], [0, 1]),
        (["yes", "no"], [0, 1, 1]),
        (["no", "maybe", "yes"], [2]),
        path="parquet",
    )
    assert task.classes == ("no", "yes")
    assert task.validation.labels.tolist() == [1, 0, 0] and task.test.labels.tolist() == [1]


def test_declared_classes_that_the_training_split_does_not_have_are_refused(load):
    with pytest.raises(
        DataError, match="split 'test', row 0: label 'maybe' is outside the classes"
    ):
        load((["no", "yes"], [0, 1]), test=(["no", "maybe"], [1]), path="parquet")
    with pytest.raises(DataError, match="split 'test' has rows without a 'label': row 1"):
        load((["no", "yes"], [0, 1]), test=(["no", "yes"], [1, -1]), path="parquet")


def test_declared_classes_may_be_listed_by_number_where_all_splits_number_them_alike(load):
    task = load((["no", "yes"], [0, 1]), path="parquet", labels=[1, 0])
    assert task.classes == ("1", "0") and task.train.labels.tolist() == [1, 0]
    with pytest.raises(DataError, match="number the classes of 'label' differently"):
        load((["no", "yes"], [0, 1]), test=(["yes", "no"], [1]), path="parquet", labels=[1, 0])


@pytest.mark.parametrize(
    ("labels", "path", "targets"),
    [
        (["0.5", "-3", "1e2", "007"], "csv", [0.5, -3.0, 100.0, 7.0]),
        (["0.5", 2, 1.5], "json", [0.5, 2.0, 1.5]),
        ([decimal.Decimal("1.5"), decimal.Decimal("2.5")], "parquet", [1.5, 2.5]),
    ],
)
def test_targets_are_numbers_or_their_text(labels, path, targets, load):
    task = load(labels, path=path, type="regression", metric="pearson")
    assert task.train.labels.tolist() == targets and task.classes == ()


@pytest.mark.parametrize(
    "wrong", ["", "NA", "nan", "inf", "1e300", "1_000", "1,5", True, None, [1.0]]
)
def test_targets_that_are_no_finite_number_are_named(wrong, load):
    message = (
        r"split 'validation', row 1: 'label' must be numbers, finite ones: .* \(1 such rows\)"
    )
    with pytest.raises(DataError, match=message):
        load([0.5, 1], [0.5, wrong, 1], type="regression", metric="pearson")
