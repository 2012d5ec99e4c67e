"""A database that is removed, replaced or damaged: a study stops before it trains what nobody would find."""

from __future__ import annotations

import pytest
import yaml
from typer.testing import CliRunner

from sparsearch.cli.main import app
from sparsearch.errors import StoreError
from sparsearch.results.store.store import Store
from sparsearch.testing.store_conformance import sample_study
from sparsearch.workers import study as study_module
from sparsearch.workers.callbacks import StudyCallbacks
from sparsearch.workers.study import run


@pytest.mark.parametrize("replaced", [False, True])
def test_a_study_whose_database_is_gone_trains_nothing_more(study, tmp_path, replaced):
    path = tmp_path / "t.db"

    class Removing(StudyCallbacks):
        started_trials = 0

        def started(self, trial):
            self.started_trials += 1

        def finished(self, trial, outcome):
            for file in tmp_path.glob("t.db*"):
                file.unlink()
            if replaced:
                with Store.open(path, create=True) as another:
                    another.begin_study(sample_study())

    listener = Removing()
    with pytest.raises(StoreError, match="while it was in use") as caught:
        run(study, str(path), listener=listener)
    assert listener.started_trials == 1
    assert "the same command begins anew" in caught.value.hint
    if replaced:
        with Store.open(path, create=False) as store:
            assert [s.name for s in store.studies()] == ["study"]
    else:
        assert not list(tmp_path.glob("t.db*"))


def test_run_leaves_a_damaged_database_as_it_is(study, tmp_path):
    path, file = tmp_path / "t.db", tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study | {"baselines": []}))
    run(file, str(path))
    data = bytearray(path.read_bytes())
    data[4096 * 6 : 4096 * 7] = b"Z" * 4096
    path.write_bytes(data)
    words = ["run", str(file), "--db", str(path), "--set", "seeds=[0,1]"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "left as it is" in " ".join(done.stderr.split())
    assert path.read_bytes() == data


def test_a_database_that_cannot_be_made_is_refused_before_the_model_loads(
    study, tmp_path, monkeypatch
):
    opened = []
    monkeypatch.setattr(study_module, "open_session", lambda *_: opened.append(1))
    with pytest.raises(StoreError, match="folder does not exist"):
        run(study, str(tmp_path / "no" / "t.db"))
    assert opened == []
