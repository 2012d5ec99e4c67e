"""What makes the tasks of two studies one: their data and how answers are judged, not what they are called."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NoReturn

from sparsearch.errors import ConfigError

__all__ = ["task_fingerprint"]

_LEFT_OUT = {"name", "max_length"}
"""Settings of a task between whose values scores compare."""


def task_fingerprint(study: str, config: str, task: str, metric: str) -> str:
    """The SHA-256 of what a study's scores measure: scores compare where it is equal.

    Local data counts by the content of its files, wherever they lie, and so does what a function gives; data of the
    hub counts by its name and splits. The metric and every other setting of the task count too, its name and
    ``max_length`` aside.

    Args:
        study: Name of the study. It counts where the content of local files is not known (studies of early versions).
        config: The study's configuration as JSON text, with ``data_sha256``.
        task: Name of the task. It counts where the configuration has no task (drivers of one's own).
        metric: Name of the metric.

    Raises:
        ConfigError: If the configuration holds NaN or an infinity.
    """
    settings = json.loads(config, parse_constant=_refuse)
    content: dict[str, Any] = {"metric": metric}
    section, digests = settings.get("task"), settings.get("data_sha256")
    if section is None:
        content["name"] = task
    else:
        content |= {key: value for key, value in section.items() if key not in _LEFT_OUT}
        data = section["data"]
        if digests:
            path = data["path"] if "data_files" in data else "folder"
            named = {key: value for key, value in data.items() if key != "callable"}
            content["data"] = {**named, "path": path, "data_files": digests}
        elif "data_files" in data:
            content["study"] = study
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _refuse(constant: str) -> NoReturn:
    raise ConfigError(
        [f"{constant} is no number that can be stored"], "write a finite number in its place"
    )
