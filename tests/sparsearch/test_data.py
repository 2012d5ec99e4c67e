"""Data of a study, from the command line: what it holds is said, and what is wrong ends with exit code 2."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sparsearch.cli.main import app

SPLITS = ("train", "validation", "test")


@pytest.fixture
def folder(tmp_path, tiny_data):
    """A folder with data of its own, whose name would be a pattern."""
    folder = tmp_path / "runs[1]"
    shutil.copytree(tiny_data, folder)
    return folder


@pytest.fixture
def call(folder, study):
    """Runs `sparsearch run` on the data of the folder; gives exit code, output and stderr."""

    def make(*words, **task):
        files = {split: f"{split}.jsonl" for split in SPLITS}
        raw = study | {"baselines": [], "budgets": [600]}
        raw["task"] = study["task"] | {"data": {"path": "json", "data_files": files}} | task
        (folder / "study.yaml").write_text(yaml.safe_dump(raw))
        url = f"sqlite:///{folder / 'out.db'}"
        result = CliRunner().invoke(
            app,
            ["run", str(folder / "study.yaml"), "--db", url, *words],
            env={"COLUMNS": "200"},
        )
        assert "Traceback" not in result.output
        return result.exit_code, result.stdout, " ".join(result.stderr.split())

    return make


def rows_of(file: Path):
    return [json.loads(line) for line in file.read_text().splitlines()]


def csv_of(folder, change=lambda label: label):
    """The data as CSV files, and the setting that names them."""
    for split in SPLITS:
        with (folder / f"{split}.csv").open("w", newline="") as file:
            lines = [
                [row["text"], change(row["label"])] for row in rows_of(folder / f"{split}.jsonl")
            ]
            csv.writer(file).writerows([["text", "label"], *lines])
    return {"path": "csv", "data_files": {split: f"{split}.csv" for split in SPLITS}}


def test_classes_that_a_guessing_reader_takes_for_missing_are_counted_before_the_search(
    call, folder
):
    code, _, told = call(data=csv_of(folder, lambda label: ("NA", "null")[label]))
    assert code == 0
    labels = [[row["label"] for row in rows_of(folder / f"{split}.jsonl")] for split in SPLITS]
    assert "class train validation test" in told and "all rows 64 24 24" in told
    for i, name in enumerate(("NA", "null")):
        assert f" {name} {' '.join(str(split.count(i)) for split in labels)} " in told
    assert told.index("all rows") < told.index("s3pet")


def test_targets_are_shown_with_their_range(call, folder):
    for split in SPLITS:
        lines = [json.dumps({"text": "good " * (1 + i % 4), "label": i % 4}) for i in range(40)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    code, _, told = call(type="regression", metric="pearson")
    assert code == 0 and "split rows smallest mean largest" in told and "train 40 0 1.5 3" in told


def test_shared_rows_are_said_before_the_search_under_the_table_and_in_json(call, folder):
    files = {"train": "train.jsonl", "validation": "train.jsonl", "test": "copy.jsonl"}
    shutil.copy(folder / "train.jsonl", folder / "copy.jsonl")
    data = {"path": "json", "data_files": files}
    shared = "64 of 64 rows of split 'validation' stand in split 'train' too"
    code, shown, told = call(data=data)
    assert code == 0 and f"warning: {shared}" in shown and f"warning: {shared}" in told
    code, again, _ = call(data=data)  # nothing is loaded: all trials are finished
    assert code == 0 and "warning: splits 'test' and 'train' are the same file" in again
    (folder / "out.db").unlink()
    code, document, _ = call("--json", data=data)
    found = json.loads(document)
    assert found["data"]["warnings"][0].startswith(shared)
    assert found["data"]["rows"] == {"train": 64, "validation": 64, "test": 64}
    assert "splits 'train' and 'validation' are the same file" in found["summary"]["warnings"]


def test_splits_of_their_own_are_not_warned_of(call, folder):
    for split in SPLITS:
        changed = (folder / f"{split}.jsonl").read_text().replace(" was", f" was {split}")
        (folder / f"{split}.jsonl").write_text(changed)
    code, document, told = call("--json")
    found = json.loads(document)
    assert code == 0 and "warning" not in told
    assert found["data"]["warnings"] == [] == found["summary"]["warnings"]


def test_a_split_of_several_files_is_known_by_all_of_them(call, folder):
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "a.jsonl").write_text("".join(lines[:40]))
    (folder / "b.jsonl").write_text("".join(lines[40:]))
    data = {
        "path": "json",
        "data_files": {
            "train": ["a.jsonl", "b.jsonl"],
            "validation": "validation.jsonl",
            "test": "test.jsonl",
        },
    }
    code, _, told = call(data=data)
    assert code == 0 and "all rows 64 24 24" in told
    (folder / "b.jsonl").write_text("".join(lines[41:]))
    code, _, told = call(data=data)
    assert code == 1 and "the content of the data file(s) 'train' changed" in told


@pytest.mark.parametrize("path", ["json", "csv"])
def test_a_byte_that_is_not_utf8_is_named(path, call, folder):
    data = csv_of(folder) if path == "csv" else {}
    file = folder / ("train.csv" if path == "csv" else "train.jsonl")
    content = file.read_bytes().splitlines(keepends=True)
    content[5] = content[5].replace(b"the ", b"caf\xe9 ", 1)
    file.write_bytes(b"".join(content))
    code, _, told = call(**({"data": data} if data else {}))
    byte = 1 + content[5].index(b"\xe9")
    assert code == 2 and str(file) in told
    assert f"line 6, byte {byte} is 0xe9, which is not UTF-8 hint: save the file as UTF-8" in told
    assert not (folder / "out.db").exists()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"labels": [0.5, 1]},
            "task.labels.0: 0.5 is no class: write text, a whole number, true or false",
        ),
        ({"labels": [[1], 1]}, "task.labels.0: [1] is no class"),
        (
            {"data": {"path": "json", "data_files": {"train": "*.jsonl"}}},
            "task.data.data_files.train: no such file: *.jsonl",
        ),
        (
            {"data": {"path": "json", "data_files": {"train": ["train.jsonl", "x.jsonl"]}}},
            "task.data.data_files.train: no such file: x.jsonl",
        ),
        (
            {"data": {"path": "json", "data_files": {"train": []}}},
            "task.data.data_files: train must be a file or a list of files, not []",
        ),
        (
            {"data": {"path": "json", "data_files": {"train": {"a": 1}}}},
            "task.data.data_files: train must be a file or a list of files, not {'a': 1}",
        ),
        (
            {"data": {"path": "json", "data_files": {"train": "train.jsonl"}, "delimiter": ";"}},
            "task.data: delimiter is for path csv",
        ),
    ],
)
def test_wrong_settings_of_data_are_named(task, message, call, folder):
    code, _, told = call(**task)
    assert code == 2 and message in told and ".str" not in told
    assert not (folder / "out.db").exists()


@pytest.mark.parametrize(
    ("change", "task", "message"),
    [
        (lambda row: row | {"label": [row["label"], 0]}, {}, "column 'label' holds a list"),
        (lambda row: row | {"label": str(row["label"])}, {}, "whole numbers (split 'train', row 0: "),
        (lambda row: row | {"label": 1}, {"metric": "matthews"}, "where matthews has no value"),
        (lambda row: row | {"label": 1.0}, {"type": "regression", "metric": "pearson"}, "pearson has no value"),
        (lambda row: row | {"text": ""}, {}, "every row of split 'validation' has an empty text"),
    ],
)  # fmt: skip
def test_wrong_rows_of_a_split_end_a_study_before_it_begins(change, task, message, call, folder):
    file = folder / "validation.jsonl"
    file.write_text("".join(json.dumps(change(row)) + "\n" for row in rows_of(file)))
    code, _, told = call(**task)
    assert code == 2 and message in told and "hint: " in told
    assert not (folder / "out.db").exists()
