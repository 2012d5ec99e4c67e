from __future__ import annotations

import json

import pytest
import torch

from sparsearch.config.study import DataConfig, TaskConfig
from sparsearch.errors import DataError
from sparsearch.search.tasks.task import batches, load_task
from sparsearch.spaces.backbone.loading import load_tokenizer

ROWS = [{"text": "the film was good", "label": 0}, {"text": "the song was so sad", "label": 1}]


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return load_tokenizer(str(tiny_folder))


@pytest.fixture
def write(tmp_path):
    """Writes three splits as JSON lines and returns the task's configuration."""

    def make(train=ROWS, validation=ROWS, test=ROWS, **task):
        for name, rows in (("train", train), ("validation", validation), ("test", test)):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        files = {s: f"{s}.jsonl" for s in ("train", "validation", "test")}
        data = DataConfig(path="json", data_files=files)
        return TaskConfig(data=data, **{"text": ["text"], **task})

    return make


def test_rows_are_tokenised_and_labelled(write, tokenizer, tmp_path):
    task = load_task(write(), tmp_path, tokenizer)
    assert task.classes == ("0", "1") and task.num_labels == 2
    assert task.train.labels.tolist() == [0, 1]
    assert task.train.lengths.tolist() == [6, 7]
    assert task.name == "train"


def test_sentence_pairs_get_segment_ids(write, tokenizer, tmp_path):
    rows = [
        {"a": "good film", "b": "bad song", "label": "no"},
        {"a": "so", "b": "it", "label": "yes"},
    ]
    task = load_task(write(rows, rows, rows, text=["a", "b"]), tmp_path, tokenizer)
    assert task.classes == ("no", "yes")
    assert task.train.inputs["token_type_ids"][0].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_regression_targets_are_floats(write, tokenizer, tmp_path):
    rows = [{"text": "good", "label": 0.5}, {"text": "bad", "label": 3}]
    config = write(rows, rows, rows, type="regression", metric="pearson")
    task = load_task(config, tmp_path, tokenizer)
    assert task.num_labels == 1 and task.train.labels.tolist() == [0.5, 3.0]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_other_local_formats(kind, tokenizer, tmp_path):
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    files = {}
    for split in ("train", "validation", "test"):
        files[split] = f"{split}.{kind}"
        getattr(data, f"to_{kind}")(tmp_path / files[split])
    config = TaskConfig(data=DataConfig(path=kind, data_files=files), text=["text"])
    assert load_task(config, tmp_path, tokenizer).train.labels.tolist() == [0, 1]


def test_a_split_may_be_a_slice(write, tokenizer, tmp_path):
    config = write(ROWS * 5)
    data = config.data.model_copy(
        update={"splits": {"train": "train[:60%]", "validation": "train[60%:]"}}
    )
    task = load_task(config.model_copy(update={"data": data}), tmp_path, tokenizer)
    assert (len(task.train), len(task.validation), len(task.test)) == (6, 4, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": []}, "split 'test'.*empty"),
        (
            {"validation": [{"text": "good", "label": 7}]},
            "split 'validation', row 0: label 7 is outside",
        ),
        ({"train": [*ROWS, {"text": "so", "label": 9}]}, "must be 0 to 2 without gaps.*9"),
        ({"label": "mood"}, "no column 'mood'; it has: text, label"),
        ({"text": ["sentence"]}, "no column 'sentence'; it has: text, label"),
        ({"text": ["label"]}, "holds no text: 0"),
        ({"train": [{"text": "good", "label": None}] + ROWS}, "without a 'label'"),
        ({"labels": ["x", "y"]}, "label 0 is outside the classes 'x', 'y'"),
    ],
)
def test_bad_data_is_named(write, tokenizer, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load_task(write(**changes), tmp_path, tokenizer)


def test_a_damaged_file_is_named(write, tokenizer, tmp_path):
    config = write()
    (tmp_path / "validation.jsonl").write_text('{"text": "good", "label": ')
    with pytest.raises(DataError, match="cannot load split 'validation'"):
        load_task(config, tmp_path, tokenizer)


def test_missing_files_are_all_listed(write, tokenizer, tmp_path):
    config = write()
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"train: train.jsonl, test: test.jsonl"):
        load_task(config, tmp_path, tokenizer)


def test_an_epoch_holds_every_row_once_and_little_padding(write, tokenizer, tmp_path):
    rows = [{"text": " ".join(["good"] * (1 + i % 9)), "label": i % 2} for i in range(200)]
    task = load_task(write(rows), tmp_path, tokenizer)
    cpu = torch.device("cpu")
    epoch = list(batches(task.train, 16, cpu, torch.Generator().manual_seed(0)))
    assert sorted(torch.cat([b["rows"] for b in epoch]).tolist()) == list(range(200))
    padded = sum(b["input_ids"].numel() for b in epoch)
    assert padded < 1.15 * int(task.train.lengths.sum())
    again = list(batches(task.train, 16, cpu, torch.Generator().manual_seed(1)))
    assert [b["rows"].tolist() for b in epoch] != [b["rows"].tolist() for b in again]


def test_a_tokenizer_that_pads_left_loses_no_text(write, tiny_folder, tmp_path):
    import json as js
    import shutil

    folder = tmp_path / "left"
    shutil.copytree(tiny_folder, folder)
    config = js.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(js.dumps(config | {"padding_side": "left"}))
    rows = [{"text": "good", "label": 0}, {"text": "the film was so very bad", "label": 1}]
    task = load_task(write(rows, rows, rows), tmp_path, load_tokenizer(str(folder)))
    batch = next(batches(task.train, 1, torch.device("cpu")))
    assert batch["input_ids"].tolist()[0][0] == 2 and batch["attention_mask"].all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ROWS[:1] * 3}, "two classes or more"),
        ({"labels": [0, 0, 1]}, "each once"),
    ],
)
def test_degenerate_classes_are_refused(write, tokenizer, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load_task(write(**changes), tmp_path, tokenizer)


def test_classes_come_from_all_training_rows(write, tokenizer, tmp_path):
    rows = [*ROWS, {"text": "so", "label": 2}]
    task = load_task(write(rows, max_train_rows=2), tmp_path, tokenizer)
    assert task.classes == ("0", "1", "2") and len(task.train) == 2


@pytest.mark.parametrize(
    ("changes", "message", "advice"),
    [
        ({"max_train_rows": 1}, "left with one row", "raise task.max_train_rows"),
        (
            {"train": [ROWS[0]] * 3 + [ROWS[1]], "max_train_rows": 3},
            "left with 3 rows, all of one class",
            "shuffle the rows",
        ),
        ({"train": ROWS[:1] * 2, "labels": [0, 1]}, "2 rows, all of one class", "add rows"),
    ],
)
def test_too_few_rows_or_classes_to_train_on_are_refused(
    write, tokenizer, tmp_path, changes, message, advice
):
    with pytest.raises(DataError, match=message) as caught:
        load_task(write(**changes), tmp_path, tokenizer)
    assert advice in caught.value.hint


def test_inputs_are_no_longer_than_the_model_takes(write, tokenizer, tmp_path):
    rows = [{"text": "good " * 30, "label": i} for i in (0, 1)]
    task = load_task(write(rows, rows, rows), tmp_path, tokenizer, most_tokens=9)
    assert task.max_length == 9 and int(task.train.lengths.max()) == 9


def test_the_fingerprint_sees_a_changed_label(write, tokenizer, tmp_path):
    first = load_task(write(), tmp_path, tokenizer).fingerprint
    assert load_task(write(), tmp_path, tokenizer).fingerprint == first
    swapped = [r | {"label": 1 - r["label"]} for r in ROWS]
    assert load_task(write(validation=swapped), tmp_path, tokenizer).fingerprint != first
