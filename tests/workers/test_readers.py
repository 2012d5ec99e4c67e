"""Eight readers ask while a study is written: nobody is locked out, and no trial fails."""

from __future__ import annotations

import threading

from sparsearch.results import Store
from sparsearch.workers.study import run


def test_readers_and_the_driver_do_not_disturb_each_other(study, tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    Store.open(url, create=True).close()
    over, wrong, answers = threading.Event(), [], [0] * 8

    def read(reader):
        while not over.is_set():
            try:
                with Store.open(url, create=False) as store:
                    for found in store.studies():
                        store.best(study=found.name, max_trainable_params=600)
                        store.pareto(found.name)
                        store.trials(found.name)
                        store.attempts(found.name)
                        answers[reader] += found.finished > 0
            except Exception as error:  # noqa: BLE001 - told below
                wrong.append(error)
                return
            over.wait(0.2)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for reader in readers:
        reader.start()
    try:
        run(study, url)
    finally:
        over.set()
        for reader in readers:
            reader.join()
    assert wrong == []
    assert all(answers)
    with Store.open(url, create=False) as store:
        assert {t.state for t in store.trials("tiny")} == {"ok"}
