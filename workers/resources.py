"""Where workers may run: what can be known to be wrong before one is started."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

import torch

from sparsearch.config.study import WorkersConfig
from sparsearch.errors import ConfigError
from sparsearch.search.training.device import choose_device

__all__ = ["quieten_ray", "ray_address", "worker_problems", "workers_that_fit"]

_CONNECT_SECONDS = 5.0

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


def quieten_ray() -> None:
    """Settings that Ray reads when it is imported and started, where the user has not set them.

    It tells nobody that it is used, lets its workers run at the driver's priority and in its folder, writes no
    results of its own, and prints no page about a dead worker, of whom the driver tells.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def ray_address(workers: WorkersConfig) -> str | None:
    """Where Ray runs: as the study says, else as the environment does; None for this machine."""
    return workers.address or os.environ.get("RAY_ADDRESS") or None


def worker_problems(workers: WorkersConfig) -> list[str]:
    """Why the workers of a study cannot run; a cluster's resources are known when it is joined.

    Args:
        workers: The section ``workers``.
    """
    if workers.runner != "ray":
        try:
            choose_device(workers.device)
        except ConfigError as error:
            return list(error.problems)
        return []
    address = ray_address(workers)
    if address is not None and address != "local":
        return _unreachable(address)
    cpus, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    fit = workers_that_fit(workers, cpus, gpus)
    if fit >= workers.max_concurrent:
        return []
    return [
        f"workers: {workers.max_concurrent} workers of {workers.cpus_per_trial} cores and "
        f"{workers.gpus_per_trial:g} GPUs do not fit on this machine, which has {cpus} cores and {gpus} GPUs; "
        f"{fit} would"
    ]


def workers_that_fit(workers: WorkersConfig, cpus: float, gpus: float) -> int:
    """How many workers some resources are enough for."""
    fit = int(cpus // workers.cpus_per_trial)
    share = workers.gpus_per_trial
    if share >= 1:
        fit = min(fit, int(gpus // share))
    elif share > 0:
        fit = min(fit, int(gpus) * int(1 / share))
    return fit


def _unreachable(address: str) -> list[str]:
    """Whether nothing listens at a cluster's address; ``auto`` finds one by itself."""
    if address == "auto":
        return []
    host, port = _split(address)
    if host is None or port is None:
        return [
            f"Ray's address {address!r} is not HOST:PORT or auto; the driver runs on a machine of the cluster"
        ]
    try:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError as error:
        return [
            f"nothing answers at Ray's address {address} ({error}); start a cluster there with "
            f"`ray start --head --port={port}`, or unset RAY_ADDRESS to use this machine"
        ]
    return []


def _split(address: str) -> tuple[str | None, int | None]:
    try:
        parts = urlsplit(f"//{address}")
        return parts.hostname, parts.port
    except ValueError:
        return None, None
