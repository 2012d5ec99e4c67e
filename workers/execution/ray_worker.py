"""The Ray worker: a Tune trial that lives as long as the study and runs one job after the other."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune

from sparsearch.config.study import StudyConfig
from sparsearch.workers.execution.news import JobKey

__all__ = ["Plan", "RayWorker", "seal", "unseal"]

_TELL_SECONDS = 0.5
_REST_SECONDS = 5.0


def seal(message: object) -> bytes:
    """A message that the exchange passes on unopened."""
    return bytes(cloudpickle.dumps(message))  # type: ignore[no-untyped-call]


def unseal(message: bytes) -> Any:
    """What was sealed."""
    return cloudpickle.loads(message)


@dataclass(frozen=True)
class Plan:
    """What every worker of a study needs to know.

    Attributes:
        config: The study; paths in it are absolute or start at its folder.
        shelf: Folder for what the workers of a machine share.
    """

    config: StudyConfig
    shelf: str


class RayWorker(tune.Trainable):
    """Its only step lasts from its start to the exchange's close: model and data are loaded once."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the plan; Tune has placed this process."""
        self.plan: Plan = config["plan"]
        self.exchange = config["exchange"]

    def step(self) -> dict[str, Any]:
        """Load, then run jobs until there are no more."""
        from sparsearch.workers.trials.shared_cache import open_shared_cache

        with open_shared_cache(Path(self.plan.shelf)) as shelf:
            self._work(shelf)
        return {"done": True}

    def _work(self, shelf: Any) -> None:
        import torch

        from sparsearch.workers.trials.session import open_session

        workers = self.plan.config.workers
        torch.set_num_threads(workers.threads or workers.cpus_per_trial)
        if 0 < workers.gpus_per_trial < 1:
            torch.cuda.set_per_process_memory_fraction(workers.gpus_per_trial)
        try:
            session = open_session(self.plan.config, shelf, self._once)
        except Exception as error:
            self._call("broken", seal(error))
            time.sleep(_REST_SECONDS)  # if the driver goes on, Tune starts another worker here
            raise
        self._call("loaded", seal(session.task.summary))
        self._call("ready", ray.get_runtime_context().current_actor)
        while (letter := self._call("take")) is not None:
            self._run(session, unseal(letter))

    def _run(self, session: Any, job: Any) -> None:
        from sparsearch.errors import Cancelled
        from sparsearch.workers.execution.events import Ended, Progressed, Ranked, Started
        from sparsearch.workers.trials.execute import Rankings, execute

        key = JobKey(job.trial.number, job.attempt)
        told = (time.monotonic(), "")

        def tell(event: object, **flags: bool) -> None:
            if self._call("tell", key, seal(event), **flags) and not flags.get("last"):
                raise Cancelled("stopped early")

        def observe(phase: str, done: int, total: int, score: float | None = None) -> None:
            nonlocal told
            now = time.monotonic()
            due = now - told[0] > _TELL_SECONDS or phase != told[1] or done == total
            if due or score is not None:
                told = (now, phase)
                event = Progressed(job, phase, done, total, score)
                tell(event, decides=score is not None)

        def find(name: str) -> Any:
            return unseal(ray.get(self.exchange.ask.remote(name)))

        self._call("tell", key, seal(Started(job, f"{socket.gethostname()}:{os.getpid()}")))
        rankings = Rankings(find, lambda name, made: tell(Ranked(job, name, made)))
        outcome = execute(session, job.trial, rankings, observe)
        tell(Ended(job, outcome), last=True)

    def _once(self, key: str, make: Any) -> Any:
        """A warm start from the worker that made it, or made here for all."""
        from sparsearch.search.phases import phase
        from sparsearch.search.training.device import choose_device
        from sparsearch.search.training.warm_start import WarmStart

        with phase("waiting"):
            found = self._call("claim", key)
        if found is not None:
            device = choose_device(self.plan.config.workers.device)
            return WarmStart.from_bytes(found, device)
        value = None
        try:
            made = make()
            value = made.to_bytes()
        finally:
            self._call("share", key, value)
        return made

    def _call(self, method: str, *args: object, **flags: bool) -> Any:
        return ray.get(getattr(self.exchange, method).remote(self.trial_id, *args, **flags))
