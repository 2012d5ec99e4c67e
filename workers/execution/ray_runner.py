"""The Ray runner: long-lived workers, placed and replaced by Ray Tune, that run several jobs at a time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import ray
from ray import tune
from ray.exceptions import RayError

from sparsearch.config.study import StudyConfig
from sparsearch.errors import ConfigError, WorkersError
from sparsearch.search.tasks.data_summary import DataSummary
from sparsearch.workers.execution.events import Ended, Handler, Job, Lost
from sparsearch.workers.execution.message_broker import MessageBroker
from sparsearch.workers.execution.news import (
    DataLoaded,
    JobKey,
    JobLost,
    JobTold,
    News,
    RankingAsked,
    WorkerBroken,
    WorkerDied,
    WorkerReady,
    WorkerSilent,
)
from sparsearch.workers.execution.ray_session import (
    _OVER,
    beside_the_driver,
    cache_folder,
    failures_named,
    kill_actor,
    one_line,
    ray_failed,
    ray_session,
    temporary_folder,
)
from sparsearch.workers.execution.ray_worker import Plan, RayWorker, seal, unseal
from sparsearch.workers.resources import workers_that_fit
from sparsearch.workers.trials.execute import FindRanking
from sparsearch.workers.trials.session import located

__all__ = [
    "RayRunner",
]

_WAIT_SECONDS = 1.0


_START_SECONDS = 600.0


_END_SECONDS = 15.0


_FALSE_STARTS = 5


class RayRunner:
    """Runs jobs on Ray, started here for the purpose or on a cluster.

    Each worker is a Tune trial whose only step lasts until the study ends: Tune places it, and starts
    another one where it dies. Jobs reach workers through an exchange, and so do events the driver.
    A Ray session that the process has already is used, and left open.

    Args:
        config: The study.
        find_ranking: Where workers' questions for stored rankings are answered.
        address: The cluster; None for this machine.
        loaded: Told once what the data holds that the workers have loaded.
    """

    def __init__(
        self,
        config: StudyConfig,
        find_ranking: FindRanking,
        address: str | None,
        loaded: Callable[[DataSummary], None] | None = None,
    ) -> None:
        remembered = located(config.model, config.folder)[1]
        model = config.model.model_copy(update={"path": remembered})
        self.config = config.model_copy(update={"model": model})
        self.workers = config.workers
        self.find_ranking, self.address = find_ranking, address
        self._tell_loaded = loaded
        self._stack = ExitStack()
        self._jobs: dict[JobKey, Job] = {}
        self._ready: dict[str, Any] = {}
        self._given_up: set[str] = set()
        self._were_ready, self._false_starts = False, 0
        self._mishap = self._tune_error = ""

    def __enter__(self) -> Self:
        """Start Ray, Tune and the workers; return when the first one could take a job.

        Raises:
            ConfigError: If a cluster has too few resources.
            WorkersError: If Ray or the workers cannot be started.
            SparsearchError: Whatever a worker met when it loaded model and data.
        """
        with failures_named(), ExitStack() as stack:
            folder = stack.enter_context(temporary_folder())
            stack.enter_context(ray_session(self.address, folder))
            self._check_resources()
            self.exchange: Any = beside_the_driver(
                MessageBroker, float(self.workers.attempt_seconds)
            )
            stack.callback(kill_actor, self.exchange)
            self._tune = threading.Thread(target=self._run_tune, args=(folder,), daemon=True)
            self._tune.start()
            stack.callback(self._end, folder)
            give_up = time.monotonic() + _START_SECONDS
            while not self._ready:
                self._look(lambda event: None)
                if time.monotonic() > give_up:
                    raise WorkersError(f"no Ray worker was ready within {_START_SECONDS:g} s")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        """End workers, Tune and what of Ray was started here; its files go too."""
        self._stack.close()

    def free(self) -> int:
        """One job for each worker."""
        return self.workers.max_concurrent - len(self._jobs)

    def ready(self) -> int:
        """Workers that have loaded model and data and are alive, as far as ``wait`` has heard."""
        return len(self._ready)

    def submit(self, job: Job) -> None:
        """The next free worker takes it."""
        key = JobKey(job.trial.number, job.attempt)
        self._jobs[key] = job
        with failures_named():
            self.exchange.put.remote(key, seal(job))

    def cancel(self, job: Job) -> None:
        """It ends at its next step."""
        with failures_named():
            self.exchange.cancel.remote(JobKey(job.trial.number, job.attempt))

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wait(self, handle: Handler) -> None:
        """Until a worker has something to say, at most a second.

        Raises:
            WorkersError: If Ray fails: the exchange, its node or Tune ended.
        """
        with failures_named():
            self._look(handle)

    def _look(self, handle: Handler) -> None:
        if not self._tune.is_alive():
            raise ray_failed(f"Tune ended before the study did: {self._tune_error or 'unknown'}")
        for news in ray.get(self.exchange.news.remote(_WAIT_SECONDS)):
            self._hear(news, handle)

    def _hear(self, news: News, handle: Handler) -> None:
        match news:
            case JobTold(key, letter):
                event = unseal(letter)
                if isinstance(event, Ended):
                    self._jobs.pop(key, None)
                handle(event)
            case JobLost(key, reason):
                if (job := self._jobs.pop(key, None)) is not None:
                    handle(Lost(job, reason))
            case RankingAsked(number, ranking):
                self.exchange.answer.remote(number, seal(self.find_ranking(ranking)))
            case DataLoaded(data):
                if self._tell_loaded is not None:
                    self._tell_loaded(unseal(data))
                self._tell_loaded = None
            case WorkerReady(slot, actor):
                self._ready[slot] = actor
                self._given_up.discard(slot)
                self._were_ready, self._false_starts = True, 0
            case WorkerBroken(slot, letter):
                self._broken(letter)
            case WorkerSilent(slot):
                self._kill(slot)
            case WorkerDied(slot, reason):
                self._died(slot, reason)

    def _broken(self, letter: bytes) -> None:
        """A worker cannot load what it needs: a mistake if none ever could, else a mishap (a GPU still full).

        Tune starts another one in its place.
        """
        error = unseal(letter)
        if not self._were_ready:
            raise error
        self._mishap = f"{type(error).__name__}: {error}"

    def _kill(self, slot: str) -> None:
        """Give up a worker that is silent; Tune starts another one in its place, and reports a death we know of."""
        seconds = self.workers.attempt_seconds
        self._given_up.add(slot)
        self.exchange.lost.remote(slot, f"its worker made no progress for {seconds:g} s")
        if (handle := self._ready.get(slot)) is not None:
            kill_actor(handle)

    def _died(self, slot: str, reason: str) -> None:
        known = self._ready.pop(slot, None) is not None
        if known or slot in self._given_up:
            return
        self._false_starts += 1
        if self._false_starts >= _FALSE_STARTS and not self._ready:
            raise WorkersError(
                f"{self._false_starts} Ray workers died one after the other before they could take a "
                f"job; the last one: {self._mishap or reason}",
                "the model may need more memory than there is: lower workers.max_concurrent",
            )

    def _check_resources(self) -> None:
        have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus, gpus = have.get("CPU", 0.0), have.get("GPU", 0.0)
        fit = workers_that_fit(self.workers, cpus, gpus)
        if fit < self.workers.max_concurrent:
            raise ConfigError(
                [
                    f"workers: {self.workers.max_concurrent} workers of {self.workers.cpus_per_trial} cores and "
                    f"{self.workers.gpus_per_trial:g} GPUs do not fit on the Ray cluster, which has {cpus:g} cores "
                    f"and {gpus:g} GPUs; {fit} would"
                ]
            )

    def _run_tune(self, folder: Path) -> None:
        """Keep as many workers alive as the study may have, until it is over."""
        try:
            tune.run(
                RayWorker,
                name="workers",
                config={
                    "plan": Plan(self.config, str(cache_folder(folder))),
                    "exchange": self.exchange,
                },
                resources_per_trial={
                    "cpu": self.workers.cpus_per_trial,
                    "gpu": self.workers.gpus_per_trial,
                },
                num_samples=self.workers.max_concurrent,
                storage_path=str(folder / "tune"),
                max_failures=-1,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                stop=_Until(folder / _OVER),
                callbacks=[_Watch(self.exchange)],
                raise_on_failed_trial=False,
                verbose=0,
            )
        except Exception as error:  # noqa: BLE001 - the driver raises it when it looks
            self._tune_error = one_line(error)

    def _end(self, folder: Path) -> None:
        """Let the workers go; those that do not listen are killed."""
        with contextlib.suppress(
            RayError
        ):  # if it is dead, so are the workers that ask it for jobs
            self.exchange.close.remote()
        (folder / _OVER).touch()
        self._tune.join(_END_SECONDS)
        for handle in self._ready.values() if self._tune.is_alive() else ():
            kill_actor(handle)
        self._tune.join(_END_SECONDS)


class _Until(tune.Stopper):
    """Ends the Tune run with the study, of which a file tells: Tune works on a copy of this."""

    def __init__(self, over: Path) -> None:
        self._over = over

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._over.exists()


class _Watch(tune.Callback):
    """Tells the exchange of dead workers."""

    def __init__(self, exchange: Any) -> None:
        self._exchange = exchange

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._exchange.lost.remote(trial.trial_id, _reason(trial))

    on_trial_error = on_trial_recover


def _reason(trial: Any) -> str:
    """Why a worker died, as far as Ray knows."""
    with contextlib.suppress(OSError, TypeError):
        if "low on memory" in Path(trial.error_file).read_text():
            return "Ray killed its worker, as the machine ran low on memory"
    return "its worker process died"
