"""Studies on real Ray workers: the same end as in-process, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import yaml

from sparsearch.cli.console import stdout_is_for_results
from sparsearch.config.study import StudyConfig
from sparsearch.errors import BackboneError, ConfigError, LeaseError, Stopped, WorkersError
from sparsearch.results import Owner, Store
from sparsearch.results.records import Trial
from sparsearch.spaces.budget import Budget
from sparsearch.workers.callbacks import StudyCallbacks
from sparsearch.workers.execution.events import Ended, Job, Progressed, Started
from sparsearch.workers.execution.news import (
    WorkerBroken,
    WorkerDied,
    WorkerReady,
    WorkerSilent,
)
from sparsearch.workers.execution.ray_worker import seal
from sparsearch.workers.resources import quieten_ray
from sparsearch.workers.study import run
from tests.conftest import tiny_study

RAY = {"runner": "ray", "max_concurrent": 2}
ALONE = RAY | {"max_concurrent": 1}
"""Where what dies is not one of several workers: each takes seconds to start."""


@pytest.fixture(scope="module", autouse=True)
def session():
    """One Ray for the module; a study that finds one uses it."""
    quieten_ray()
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def whole(tiny_folder, tiny_data, tmp_path_factory):
    """The study as an uninterrupted driver ends it in its own process."""
    url = f"sqlite:///{tmp_path_factory.mktemp('whole') / 'whole.db'}"
    run(tiny_study(tiny_folder, tiny_data), url)
    return rows(url)


@pytest.fixture
def db(tmp_path):
    return f"sqlite:///{tmp_path / 'ray.db'}"


def rows(db):
    with Store.open(db, create=False) as store:
        return [
            (t.number, t.strategy, t.budget, t.seed, t.state, t.score, t.test_score, t.structure)
            for t in store.trials("tiny")
        ]


class Killer(StudyCallbacks):
    """Kills the worker of a trial in the middle of it, and lets a second driver try."""

    def __init__(self, db, number):
        self.db, self.number, self.refused = db, number, ""
        self.data = []

    def loaded(self, data):
        self.data.append(data)

    def progressed(self, trial, phase, done, total, score):
        if trial.number != self.number:
            return
        self.number = None
        with Store.open(self.db, create=False) as store:
            worker = next(a.worker for a in store.attempts("tiny") if a.trial == trial.number)
        os.kill(int(worker.partition(":")[2]), signal.SIGKILL)
        with Store.open(self.db, create=True, owner=Owner("elsewhere", 7, 0.0)) as other:
            try:
                other.acquire("tiny")
            except LeaseError as error:
                self.refused = error.message


@pytest.mark.timeout(280)
def test_a_killed_worker_changes_nothing(study, whole, db, capfd):
    killer = Killer(db, 1)
    with stdout_is_for_results():  # as commands do: Ray itself tells of a dead worker there
        run(study | {"workers": RAY}, db, listener=killer)
    assert rows(db) == whole
    with Store.open(db, create=False) as store:
        tries = [(a.trial, a.number, a.state) for a in store.attempts("tiny")]
        searched = {t.strategy: t for t in store.trials("tiny")}["s3pet"]
    assert (1, 1, "lost") in tries and (1, 2, "ok") in tries
    assert len(tries) == len(whole) + 1 and searched.state == "ok"
    assert killer.refused.endswith(f":{os.getpid()}")
    assert [data.rows for data in killer.data] == [{"train": 64, "validation": 24, "test": 24}]
    assert capfd.readouterr().out == ""


@pytest.mark.timeout(280)
def test_a_stopped_study_goes_on_with_another_runner(study, whole, db):
    class Stopper(StudyCallbacks):
        def finished(self, trial, outcome):
            with Store.open(db, create=True) as store:
                store.ask_to_stop("tiny")

    longer = study["train"] | {"epochs": 40}  # than the driver takes to hear of it
    with pytest.raises(Stopped):
        run(study | {"workers": ALONE, "train": longer}, db, listener=Stopper())
    with Store.open(db, create=False) as store:
        assert store.find_study("tiny").owner is None
        states = [t.state for t in store.trials("tiny")]
    assert set(states) == {"ok", "queued"}
    assert run(study | {"train": longer}, db).finished == len(whole)
    assert {r[4] for r in rows(db)} == {"ok"}


@pytest.mark.timeout(200)
def test_jobs_are_cancelled_and_errors_of_loading_come_back(study, tmp_path):
    from sparsearch.workers.execution.ray_runner import RayRunner

    config = StudyConfig.model_validate(study | {"workers": ALONE, "train": {"epochs": 1000}})
    job = Job(Trial(0, "bitfit", Budget(max_trainable_params=600, text="600"), 0))
    events = []

    def handle(event):
        events.append(event)
        if isinstance(event, Progressed) and event.score is not None:
            runner.cancel(event.job)

    with RayRunner(config, lambda key: None, None) as runner:
        assert runner.free() == 1
        runner.submit(job)
        assert runner.free() == 0
        while not isinstance(events[-1] if events else None, Ended):
            runner.wait(handle)
        assert runner.free() == 1
    assert isinstance(events[0], Started)
    assert events[-1].outcome.state == "cancelled"
    scores = [e for e in events if isinstance(e, Progressed) and e.score is not None]
    assert len(scores) == 1, "a score waits for the decision"

    (tmp_path / "empty").mkdir()
    broken = config.model_copy(
        update={"model": config.model.model_copy(update={"path": str(tmp_path / "empty")})}
    )
    with (
        pytest.raises(BackboneError, match="empty has no config.json"),
        RayRunner(broken, lambda key: None, None),
    ):
        pass


class MessageBroker:
    """Takes the driver's messages and forgets them."""

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *args: None)


@pytest.fixture
def hearing(study, monkeypatch):
    """A runner that was told of a ready worker, and what it hears."""
    from sparsearch.workers.execution import ray_runner

    monkeypatch.setattr(ray_runner.ray, "kill", lambda handle: None)
    runner = ray_runner.RayRunner(
        StudyConfig.model_validate(study | {"workers": RAY}), lambda key: None, None
    )
    runner.exchange = MessageBroker()

    def hear(news):
        runner._hear(news, lambda event: None)

    hear(WorkerReady("a", object()))
    return runner, hear


def test_silent_workers_are_no_false_starts(hearing):
    runner, hear = hearing
    for _ in range(6):
        hear(WorkerSilent("a"))
        hear(WorkerDied("a", "no progress"))  # as the exchange says it
        hear(WorkerDied("a", "its worker process died"))  # as Tune does
        hear(WorkerReady("a", object()))
    assert runner.ready() == 1


def test_one_workers_trouble_ends_no_study_that_another_one_runs(hearing):
    runner, hear = hearing
    for _ in range(9):
        hear(WorkerBroken("b", seal(RuntimeError("CUDA out of memory"))))
        hear(WorkerDied("b", "its worker process died"))
    hear(WorkerDied("a", "its worker process died"))
    with pytest.raises(WorkersError, match="before they could take a job; .* CUDA out of memory"):
        hear(WorkerDied("b", "its worker process died"))


def test_only_what_a_dead_driver_left_is_removed(tmp_path, monkeypatch):
    from sparsearch.workers.execution import ray_session

    monkeypatch.setattr(ray_session.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(ray_session, "temporary_root", lambda: tmp_path)
    (tmp_path / "sparsearch-ray-results").mkdir()
    left = tmp_path / "sparsearch-ray-left"
    left.mkdir()
    (left / "driver.lock").touch()
    with ray_session.temporary_folder() as live:
        assert not left.exists()
        with ray_session.temporary_folder():
            assert live.exists(), "its driver lives"
    assert [p.name for p in tmp_path.iterdir()] == ["sparsearch-ray-results"]


DRIVER = """
import sys, torch
torch.set_num_threads(1)
from sparsearch.workers.study import run
from tests.conftest import tiny_study
run(sys.argv[1], sys.argv[2])
"""


@pytest.mark.timeout(280)
def test_a_killed_driver_takes_its_ray_along_and_the_study_goes_on(study, whole, db, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study | {"workers": ALONE}, sort_keys=False))
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(path), db]) as driver:
        while driver.poll() is None and finished(db) < 4:
            time.sleep(0.1)
        family = psutil.Process(driver.pid).children(recursive=True)
        # Ray's own agents look for their raylet now and then; those that compute go with the driver.
        family = [p for p in family if "Agent" not in p.name()]
        driver.send_signal(signal.SIGKILL)
    assert family and psutil.wait_procs(family, timeout=60)[1] == []
    done = finished(db)
    assert done >= 4
    assert run(study, db).finished == len(whole)
    assert rows(db) == whole


class KillsTheExchange(StudyCallbacks):
    """Kills the process through which driver and workers talk, in the middle of a trial."""

    def progressed(self, trial, phase, done, total, score):
        if trial.number == 1:
            for process in psutil.process_iter(["name"]):
                if process.info["name"].startswith("ray::MessageBroker") and mine(process):
                    process.kill()


def mine(process):
    """Whether this process started it, be it through Ray's own."""
    return os.getpid() in [parent.pid for parent in process.parents()]


@pytest.mark.timeout(280)
def test_a_dead_exchange_is_a_failure_of_ray_and_the_study_goes_on(study, whole, db):
    with pytest.raises(WorkersError, match="^Ray failed: ActorDiedError: [^\n]{,200}\n") as caught:
        run(study | {"workers": ALONE}, db, listener=KillsTheExchange())
    assert "the same command continues" in caught.value.hint
    assert finished(db) < len(whole)
    with Store.open(db, create=False) as store:
        assert store.find_study("tiny").owner is None
    run(study, db)
    assert rows(db) == whole


@pytest.mark.timeout(400)
def test_a_dead_node_is_a_failure_of_ray_and_the_study_goes_on(study, whole, db, tmp_path):
    """The agent takes its node along, and that all actors on it."""
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study | {"workers": ALONE}, sort_keys=False))
    command = [
        sys.executable,
        "-c",
        "from sparsearch.cli.main import main; main()",
        "run",
        str(path),
        "--db",
        db,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver:
        while driver.poll() is None and finished(db) < 1:
            time.sleep(0.1)
        family = psutil.Process(driver.pid).children(recursive=True)
        next(p for p in family if p.name().startswith("ray::DashboardAg")).kill()
        _, said = driver.communicate()
    assert driver.returncode == 1
    assert "error: Ray failed: " in said and "the same command continues" in said
    assert run(study, db).finished == len(whole)
    assert rows(db) == whole


def finished(db):
    try:
        with Store.open(db, create=False) as store:
            return store.find_study("tiny").finished
    except Exception:
        return 0


@pytest.mark.parametrize(
    ("workers", "address", "problem"),
    [
        ({"max_concurrent": 10_000}, None, "10000 workers of 1 cores .* do not fit"),
        ({"gpus_per_trial": 512}, None, "512 GPUs do not fit on this machine"),
        ({"gpus_per_trial": 1.5}, None, "share of one GPU or a whole number"),
        ({"device": "cuda"}, None, "device cuda does not go with gpus_per_trial 0"),
        ({}, "127.0.0.1:1", "nothing answers at Ray's address 127.0.0.1:1"),
        ({}, "no address", "is not HOST:PORT"),
        ({}, "ray://127.0.0.1:1", "is not HOST:PORT"),
        ({"runner": "in-process"}, "127.0.0.1:1", "it goes with runner: ray"),
    ],
)
def test_what_cannot_run_is_said_before_anything_is_written(
    study, tmp_path, workers, address, problem
):
    with pytest.raises(ConfigError, match=problem):
        run(
            study | {"workers": {"runner": "ray", "address": address} | workers},
            f"sqlite:///{tmp_path / 'none.db'}",
        )
    assert not (tmp_path / "none.db").exists()
