"""Studies of real files: one task where the data is the same, whatever it is called and wherever it lies."""

from __future__ import annotations

import json
import shutil

import pytest

from sparsearch.errors import ConfigError
from sparsearch.results.records import BestQuery
from sparsearch.results.store.store import Store
from sparsearch.workers.study import run


@pytest.fixture
def folders(tmp_path, tiny_data):
    """Three folders, each with a folder "data": the second with other labels, the third a copy of the first."""
    for name in ("one", "two", "copy"):
        shutil.copytree(tiny_data, tmp_path / name / "data")
    for file in (tmp_path / "two" / "data").iterdir():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        flipped = [json.dumps(row | {"label": 1 - row["label"]}) for row in rows]
        file.write_text("\n".join(flipped) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    "data",
    [
        {
            "path": "json",
            "data_files": {s: f"data/{s}.jsonl" for s in ("train", "validation", "test")},
        },
        {"path": "./data"},
    ],
)
def test_files_of_one_name_are_one_task_where_their_content_is(study, folders, monkeypatch, data):
    db = str(folders / "x.db")
    search = {"search": {"strategy": "probe"}, "baselines": []}
    for name in ("one", "two", "copy"):
        monkeypatch.chdir(folders / name)
        run(study | search | {"name": name, "task": {**study["task"], "data": data}}, db)
    with Store.open(db, create=False) as store:
        one, two, copy = store.studies()
        assert one.task == two.task == copy.task
        assert one.task_fingerprint == copy.task_fingerprint != two.task_fingerprint
        assert [b.task_fingerprint for b in store.best_of_each_task(BestQuery())] == [
            one.task_fingerprint,
            two.task_fingerprint,
        ]
        with pytest.raises(ConfigError, match="do not compare"):
            store.best(task=one.task)
