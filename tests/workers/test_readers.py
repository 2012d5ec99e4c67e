"""Eight processes ask without a pause while a study is written: nobody is locked out, and no trial fails."""

from __future__ import annotations

import subprocess
import sys

from sparsearch.results import Store
from sparsearch.workers.study import run

READER = """
import os, sys
os.nice(10)
from sparsearch.results import Store
print("ready", flush=True)
answers = 0
while os.path.exists(sys.argv[2]) or not answers:  # a quick study may be over before
    with Store.open(sys.argv[1], create=False) as store:
        for found in store.studies():
            store.best(study=found.name, max_trainable_params=600)
            store.pareto(found.name)
            store.trials(found.name)
            store.attempts(found.name)
            answers += found.finished > 0
print(answers)
"""


def test_readers_and_the_driver_do_not_disturb_each_other(study, tmp_path):
    url, going = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "going"
    Store.open(url, create=True).close()
    going.touch()
    command = [sys.executable, "-c", READER, url, str(going)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    readers = [subprocess.Popen(command, **pipes) for _ in range(8)]
    for reader in readers:
        assert reader.stdout.readline() == "ready\n"
    try:
        run(study, url, ["baselines=[random]"])
    finally:
        going.unlink()
        ends = [reader.communicate(timeout=60) for reader in readers]
    assert [errors for _, errors in ends] == [""] * 8
    assert all(int(answers) > 0 for answers, _ in ends)
    with Store.open(url, create=False) as store:
        assert {t.state for t in store.trials("tiny")} == {"ok"}
