"""What a trial ran on: commit, versions, hardware."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from sparsearch.results.records import Environment

__all__ = ["environment"]

_PACKAGES = ("sparsearch", "torch", "transformers", "datasets", "peft")


@functools.cache
def environment() -> Environment:
    """Commit of the code (empty outside a checkout), versions of the libraries, the processor."""
    return Environment(_commit(), {p: _version(p) for p in _PACKAGES}, _hardware())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return ""
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = torch.cpu.get_capabilities().get("cpu_name", platform.processor())
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
