"""A whole study on PostgreSQL: driven, continued and read by the commands, with SQLite's results."""

from __future__ import annotations

import json

import yaml
from typer.testing import CliRunner

from sparsearch.cli.main import app
from sparsearch.results.store.store import Store
from sparsearch.workers.study import run


def essence(db: str) -> list[tuple[object, ...]]:
    with Store.open(db, create=False) as store:
        return [
            (t.number, t.strategy, t.budget, t.state, t.score, t.test_score, t.structure)
            for t in store.trials("tiny")
        ]


def test_a_study_ends_as_on_sqlite(study, postgres_url, tmp_path, monkeypatch):
    sqlite = f"sqlite:///{tmp_path / 'study.db'}"
    run(study, sqlite)
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    # The user of this server needs no password, so any will do.
    db = postgres_url.replace("postgres@", "postgres:secret@")
    monkeypatch.setenv("SPARSEARCH_DB", db)

    def call(*words: str):
        done = CliRunner().invoke(app, [*words, "--json"])
        assert done.exit_code == 0, done.output
        assert "secret" not in done.output
        return json.loads(done.stdout)

    summary = call("run", str(file))
    assert summary["study"]["finished"] == len(essence(sqlite))
    assert essence(db) == essence(sqlite)
    assert call("run", str(file))["study"] == summary["study"]
    assert [s["name"] for s in call("studies")] == ["tiny"]
    searched = [t for t in call("trials", "tiny") if t["strategy"] == "s3pet"]
    with Store.open(db, create=False) as store:
        assert all(store.ranking(t["ranking_key"]).strategy == "s3pet" for t in searched)
        best = store.best(max_trainable_params=600)
    assert call("best", "--max-trainable-params", "600") == best.as_dict()
    assert best.as_dict() in call("pareto", "tiny")
    name = best.structure.hash
    assert len(call("show", name)["candidates"]) == len(best.structure.candidates)
    assert call("export", name, "--out", str(tmp_path / "spec"))["structure"] == name
    assert call("train", name, str(file))["structure"] == name
