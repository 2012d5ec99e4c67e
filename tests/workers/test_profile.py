"""A study's profile: its trials keep their phases, and the command adds them up."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml
from typer.testing import CliRunner

from sparsearch.cli.main import app
from sparsearch.cli.profile_view import profile_of
from tests.helpers.study_records import records


@pytest.fixture
def call(study, db, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study | {"baselines": ["random", "head"], "budgets": [200]}))
    return ["run", str(path), "--db", db, "--profile"]


def test_each_trial_keeps_its_phases_and_the_command_adds_them_up(call, db):
    done = CliRunner().invoke(app, [*call, "--json"])
    assert done.exit_code == 0, done.output
    profile = {row["name"]: row for row in json.loads(done.stdout)["profile"]}
    assert set(profile) == {"s3pet", "random", "head", "driver"}
    assert {"ranking", "training", "evaluation"} <= set(profile["s3pet"]["seconds"])
    assert "ranking" not in profile["head"]["seconds"]
    assert {"loading", "storing"} == set(profile["driver"]["seconds"])
    for trial in records(db):
        row = profile[trial.strategy]
        assert row["trials"] == 1
        assert sum(row["seconds"].values()) == pytest.approx(trial.seconds, rel=0.05)
        assert row["seconds"]["training"] > 0 and row["seconds"]["evaluation"] > 0
    shown = CliRunner().invoke(app, call, env={"COLUMNS": "200"}).stdout
    assert "where the time went, in seconds" in shown
    assert all(f"\n {name} " in shown for name in ("s3pet", "random", "head", "share"))


def test_trials_of_before_have_no_profile(call, db):
    assert CliRunner().invoke(app, call).exit_code == 0
    old = [_without_phases(t) for t in records(db)]
    assert profile_of(old, {}) == ()


def _without_phases(trial):
    environment = {k: v for k, v in trial.environment.items() if k != "phases"}
    return replace(trial, environment=environment)
