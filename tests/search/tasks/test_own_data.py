"""Rows from a function: the same as from files, and known by their content."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from sparsearch.config.study import StudyConfig
from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import ConfigError, DataError
from sparsearch.results.store.task_identity import task_fingerprint
from sparsearch.search.tasks.task import load_task
from sparsearch.workers.plan import study_identity
from sparsearch.workers.preflight import check_study
from tests.helpers.language_model import write_rows
from tests.helpers.own_rows import MOODS

HERE = "tests.helpers.own_rows"
ONE = {"train": "train[:4]", "validation": "train[4:6]", "test": "train[6:]"}


@pytest.fixture
def load(tmp_path, tiny_folder):
    def load(data, **settings):
        config = TaskConfig.model_validate({"data": data, "text": ["text"], **settings})
        return load_task(config, tmp_path, AutoTokenizer.from_pretrained(tiny_folder), 64)

    return load


@pytest.mark.parametrize("name", ["plain", "several"])
def test_rows_are_those_of_files(name, load, tmp_path):
    rows = [{"text": text, "label": label} for text, label in MOODS]
    files = write_rows(tmp_path, dict.fromkeys(("train", "validation", "test"), rows))
    labels = {"labels": ["yes", "no"]}
    found, expected = load({"callable": f"{HERE}:{name}"}, **labels), load(files, **labels)
    assert found.fingerprint == expected.fingerprint
    assert found.name == name


def test_a_single_data_set_is_cut_into_splits(load):
    task = load({"callable": f"{HERE}:one", "splits": ONE})
    assert [len(s) for s in (task.train, task.validation, task.test)] == [4, 2, 2]
    assert task.classes == ("yes", "no")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("broken", {}, "broken fails: OSError: the disk is away"),
        ("nothing", {}, r"nothing gives no data: \[1\]"),
        ("ragged", {}, "split 'train' holds no columns of equal length"),
        ("one", {}, "cannot load split 'validation'"),
        ("plain", {"text": ["none"]}, "split 'train' has no column 'none'; it has: text, label"),
    ],
)
def test_a_function_that_gives_no_rows_is_named(name, settings, message, load):
    with pytest.raises(DataError, match=message) as caught:
        load({"callable": f"{HERE}:{name}"}, **settings)
    assert caught.value.hint


def identity(study, name):
    study["task"] = {"data": {"callable": f"{HERE}:{name}"}, "text": ["text"]}
    return study_identity(StudyConfig.model_validate(study))


def test_data_counts_by_its_content(study):
    one, again, other = (identity(study, name) for name in ("plain", "again", "other"))
    assert one["data_sha256"] == again["data_sha256"] != other["data_sha256"]
    assert one["data_sha256"]["test"] == other["data_sha256"]["test"]
    prints = [task_fingerprint("s", json.dumps(i), "t", "accuracy") for i in (one, again, other)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"callable": f"{HERE}:plain", "path": "json"}, "give a path, or a callable, not both"),
        ({}, "give a path, or a callable"),
        ({"callable": "plain"}, "callable 'plain': write package.module:function"),
        ({"callable": f"{HERE}:plain", "data_files": {"train": "x"}}, "go with a path"),
        ({"callable": f"{HERE}:none"}, "task.data.callable: cannot import .*:none"),
    ],
)
def test_a_function_that_is_not_there_is_named_before_anything_starts(study, data, message):
    study["task"] = {"data": data, "text": ["text"]}
    with pytest.raises(ConfigError, match=message):
        check_study(study)
