"""Starting Ray and ending it; its failures in one line."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock
from ray.exceptions import RayError

from sparsearch.errors import WorkersError

__all__ = [
    "FOLDER_PREFIX",
    "beside_the_driver",
    "cache_folder",
    "failures_named",
    "kill_actor",
    "one_line",
    "ray_failed",
    "ray_session",
    "temporary_folder",
    "temporary_root",
]

FOLDER_PREFIX = "sparsearch-ray-"


_LOCK, _OVER = "driver.lock", "over"


@contextlib.contextmanager
def failures_named() -> Iterator[None]:
    """What dies of Ray beside its workers, who are started anew, ends this run and loses nothing."""
    try:
        yield
    except RayError as error:
        raise ray_failed(one_line(error)) from error


def ray_failed(reason: str) -> WorkersError:
    """The error of a study whose Ray failed."""
    return WorkersError(
        f"Ray failed: {reason}", "what is finished is stored; the same command continues"
    )


def one_line(error: Exception) -> str:
    """Ray explains itself over a page."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"


def kill_actor(actor: Any) -> None:
    """End an actor, if it is there."""
    with contextlib.suppress(RayError):
        ray.kill(actor)


@contextlib.contextmanager
def ray_session(address: str | None, folder: Path) -> Iterator[None]:
    """A Ray session: the process's own, a cluster's, or one started for the purpose."""
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address in (None, "local"):
        quiet |= {"include_dashboard": False, "_temp_dir": str(folder / "ray")}
    try:
        ray.init(address or "local", **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise WorkersError(
            f"cannot start Ray{f' on the cluster at {address}' if address else ''}: {error}",
            "check the address, that the cluster runs the same versions of Ray and Python, and, where it "
            "asks for a token, that RAY_AUTH_MODE=token is set here too",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def beside_the_driver(kind: Any, *args: object) -> Any:
    """An actor on the driver's own machine: it is lost only with the driver."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(kind)
    options = {"num_cpus": 0, "max_concurrency": 1000, "scheduling_strategy": here}
    return actor.options(**options).remote(*args)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that goes, and those of processes that could not remove theirs go too."""
    root = temporary_root()
    for lock in root.glob(f"{FOLDER_PREFIX}*/{_LOCK}"):
        # Another user's cannot be opened, a live driver's not locked.
        with contextlib.suppress(OSError), FileLock(lock, blocking=False):
            _remove(lock.parent)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=root))
    try:
        with FileLock(folder / _LOCK):  # the kernel lets it go with the process, however that ends
            yield folder
    finally:
        _remove(folder)


def temporary_root() -> Path:
    """Ray has sockets in it, whose paths may have some 100 characters."""
    return Path(tempfile.gettempdir() if len(tempfile.gettempdir()) < 20 else "/tmp")


def cache_folder(folder: Path) -> Path:
    """Where the workers of each machine share; the same path on all of them."""
    return Path(tempfile.gettempdir(), f"shelf-{folder.name}")


def _remove(folder: Path) -> None:
    for path in (folder, cache_folder(folder)):
        shutil.rmtree(path, ignore_errors=True)
