"""Who drives a study: one driver with a lease, what stops it, and how another goes on."""

from __future__ import annotations

import shutil
import threading
import time

import pytest
import safetensors.torch

from sparsearch.errors import LeaseError, StoreError
from sparsearch.results.store.store import Store
from sparsearch.results.store.writing.lease import Owner
from sparsearch.spaces.backbone.inputs.readers import TextReader
from sparsearch.workers.callbacks import StudyCallbacks
from sparsearch.workers.study import run
from tests.helpers.study_records import records


def test_a_second_driver_is_refused_by_name(study, db):
    run(study, db, ["baselines=[]"])
    with Store.open(db, create=True, owner=Owner("elsewhere", 7, 0.0)) as store:
        store.acquire("tiny")
    with pytest.raises(LeaseError, match="elsewhere:7"):
        run(study, db, ["baselines=[]"])


def test_a_second_driver_in_the_same_process_is_refused_too(study, db):
    refused = []

    class Second(StudyCallbacks):
        def finished(self, trial, outcome):
            with pytest.raises(LeaseError, match="by this process already") as caught:
                run(study, db, ["baselines=[]"])
            refused.append(caught)

    assert run(study, db, ["baselines=[]"], listener=Second()).finished == len(refused) > 0
    run(study, db, ["baselines=[]"])


def test_the_lease_is_renewed_while_nothing_is_heard(study, db, monkeypatch):
    monkeypatch.setattr("sparsearch.workers.study._RENEW_SECONDS", 0.01)
    renewed, during = [], set()
    renew = Store.renew
    monkeypatch.setattr(
        Store,
        "renew",
        lambda *a, **k: (renewed.append(threading.current_thread()), renew(*a, **k)),
    )

    class Watch(StudyCallbacks):
        def started(self, trial):
            before = len(renewed)
            time.sleep(0.3)
            during.add(len(renewed) > before)

    run(study, db, ["baselines=[]"], listener=Watch())
    assert during == {True} and threading.main_thread() not in renewed


def test_a_trial_that_kills_its_drivers_comes_last(study, db):
    class Started(StudyCallbacks):
        def __init__(self):
            self.order = []

        def started(self, trial):
            self.order.append(trial.number)
            if len(self.order) == stop_after:
                raise KeyboardInterrupt

    stop_after = 1
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(study, db, listener=Started())
    stop_after, listener = 0, Started()
    count = run(study, db, listener=listener).trials
    assert listener.order == [*range(1, count), 0]


def test_what_a_listener_raises_is_no_outcome(study, db):
    class Broken(StudyCallbacks):
        def progressed(self, trial, phase, done, total, score=None):
            raise RuntimeError("the dashboard is down")

    with pytest.raises(RuntimeError, match="dashboard"):
        run(study, db, listener=Broken())
    assert {t.state for t in records(db)} == {"queued"}
    run(study, db)
    assert {t.state for t in records(db)} == {"ok"}


def test_of_two_threads_one_drives(study, db):
    ready, refused = threading.Barrier(2), []

    def drive():
        ready.wait()
        try:
            run(study, db)
        except LeaseError as error:
            refused.append(error)

    threads = [threading.Thread(target=drive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {t.state for t in records(db)} == {"ok"}
    with Store.open(db, create=False) as store:
        assert all(a.number == 1 for a in store.attempts("tiny")), "no trial ran twice"


def test_a_study_goes_on_with_the_weights_it_began_with(study, db, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    own = study | {"model": {"path": str(folder)}}

    class Once(StudyCallbacks):
        def finished(self, trial, outcome):
            if outcome.structure is not None:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(own, db, listener=Once())
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    changed = {n: t + 0.01 for n, t in weights.items()}
    safetensors.torch.save_file(changed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StoreError, match="began with other weights"):
        run(own, db)
    before = [t.number for t in records(db)]
    with pytest.raises(StoreError, match="began with other weights"):
        run(own | {"seeds": [0, 7]}, db)
    assert [t.number for t in records(db)] == before, "a growth that is refused queues nothing"
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    run(own, db)
    assert {t.state for t in records(db)} == {"ok"}


def test_references_too_tell_with_which_weights_a_study_began(study, db, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    own = study | {"model": {"path": str(folder)}, "baselines": ["head"], "seeds": [0]}

    class Once(StudyCallbacks):
        def finished(self, trial, outcome):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(own, db, listener=Once())
    assert [t.strategy for t in records(db) if t.state == "ok"] == ["head"]
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    changed = {n: t + 0.01 for n, t in weights.items()}
    safetensors.torch.save_file(changed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StoreError, match="began with other weights"):
        run(own, db)


def test_a_study_goes_on_with_the_tokenizer_it_began_with(study, db, tiny_folder, tmp_path):
    """Other tokens of the same texts: scores of two seeds would not be of one task."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    own = study | {"model": {"path": str(folder)}, "baselines": ["random"]}
    run(own | {"seeds": [0]}, db)
    before = records(db)
    tokenizer = next(f for f in map(folder.joinpath, TextReader.files) if f.is_file())
    text = tokenizer.read_text()
    tokenizer.write_text(text + "\n")
    with pytest.raises(
        StoreError, match="files of the model's tokenizer or image processor changed"
    ):
        run(own | {"seeds": [0, 1]}, db)
    assert records(db) == before
    tokenizer.write_text(text)
    run(own | {"seeds": [0, 1]}, db)
    assert len(records(db)) == 2 * len(before)


def test_a_lost_lease_stops_the_driver_and_fails_no_trial(study, db, monkeypatch):
    monkeypatch.setattr("sparsearch.workers.driver._RENEW_SECONDS", 0.0)
    monkeypatch.setattr(
        Store, "renew", lambda *a, **k: (_ for _ in ()).throw(LeaseError("the lease is lost"))
    )
    with pytest.raises(LeaseError):
        run(study, db)
    assert {t.state for t in records(db)} == {"queued"}


def test_a_database_that_only_a_writer_can_open_is_still_run_on(study, db, monkeypatch):
    """As one of an older revision is: readers are told to run, so a run must not ask as a reader."""
    run(study, db, ["baselines=[]"])
    real = Store.open

    def writers_only(url, *, create, owner=None):
        if not create:
            raise StoreError(
                "the database is of an older revision", "`sparsearch run` migrates it"
            )
        return real(url, create=create, owner=owner)

    monkeypatch.setattr(Store, "open", writers_only)
    assert run(study, db, ["baselines=[]"]).finished == 2
