"""kill -9 at any moment, then the same command: the trials of an uninterrupted run, none lost, none twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
import yaml

from sparsearch.results.records import NOT_RUN
from sparsearch.results.store.store import Store
from sparsearch.workers.study import run

DRIVER = """
import sys, torch
torch.set_num_threads(1)
from sparsearch.workers.study import run
run(sys.argv[1], sys.argv[2])
"""


def drive(study_file, db):
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(study_file), db])


def rows(db):
    with Store.open(db, create=False) as store:
        return [
            (t.number, t.strategy, t.budget, t.seed, t.state, t.score, t.test_score, t.structure)
            for t in store.trials("tiny")
        ]


def finished(db):
    try:
        with Store.open(db, create=False) as store:
            return store.find_study("tiny").finished
    except Exception:
        return 0


@pytest.mark.timeout(280)
@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]], ids=["one-seed", "raced"])
def test_killed_drivers_leave_nothing_behind(study, tmp_path, seeds):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study | {"seeds": seeds}))
    whole, broken = (f"sqlite:///{tmp_path / name}.db" for name in ("whole", "broken"))
    run(path, whole)
    assert any(state in NOT_RUN for *_, state, _, _, _ in rows(whole)) == (len(seeds) > 1)
    kills = 0
    for goal in (1, 5):
        driver = drive(path, broken)
        while driver.poll() is None and finished(broken) < goal:
            time.sleep(0.02)
        if driver.poll() is None:
            driver.send_signal(signal.SIGKILL)
            kills += 1
        driver.wait()
    assert kills == 2
    assert drive(path, broken).wait() == 0
    assert rows(broken) == rows(whole)
    with Store.open(broken, create=False) as store:
        assert max(t.attempts for t in store.trials("tiny")) > 1
