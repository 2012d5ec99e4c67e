"""What a study that comes over HTTP may name: data and models below allowed folders; the hub and code if allowed."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsearch.errors import ConfigError
from sparsearch.search.tasks.data_files import FORMATS

__all__ = ["Confinement"]

_PACKAGE = re.compile(r"pkg:[A-Za-z_]\w*(/[\w.-]+)*")
_LOCAL = "; the operator allows folders with `sparsearch serve --root DIR`"
_HUB = "; the operator allows the hub with `sparsearch serve --allow-hub`"

_IMPORT = "; the operator allows packages with `sparsearch serve --allow-import PACKAGE`"


@dataclass(frozen=True)
class Confinement:
    """Where data and models may come from.

    Attributes:
        roots: Folders, resolved; a relative path is below the only one that has it.
        hub: Whether ids of the hub may be named.
        packages: Whose functions may be named, with all that is in them.
    """

    roots: tuple[Path, ...]
    hub: bool = False
    packages: tuple[str, ...] = ()

    def confine(self, study: Mapping[str, Any]) -> dict[str, Any]:
        """The study with every path of it absolute.

        Raises:
            ConfigError: If it names anything outside, with every problem found.
        """
        content = copy.deepcopy(dict(study))
        problems: list[str] = []
        self._model(content.get("model"), problems)
        task = content.get("task")
        self._data(task.get("data") if isinstance(task, dict) else None, problems)
        self._code("task.metric", task.get("metric") if isinstance(task, dict) else None, problems)
        workers = content.get("workers")
        if isinstance(workers, dict) and workers.get("address") is not None:
            problems.append("workers.address: the operator chooses the cluster with RAY_ADDRESS")
        if problems:
            raise ConfigError(problems)
        return content

    def _model(self, model: Any, problems: list[str]) -> None:
        path = model.get("path") if isinstance(model, dict) else None
        if not isinstance(path, str) or _PACKAGE.fullmatch(path):
            return  # what is no text is named by the study's own check
        local = self._inside("model.path", path, problems)
        if local is not None:
            model["path"] = str(local)
        elif path.startswith("pkg:"):
            problems.append(f"model.path {path!r}: write pkg:PACKAGE/FOLDER")
        elif not self.hub or _looks_local(path):
            problems.append(
                f"model.path {path!r} is in no allowed folder{_LOCAL if _looks_local(path) else _HUB}"
            )

    def _code(self, key: str, value: Any, problems: list[str]) -> None:
        """Code that the study would import: it may do what the service may."""
        if not isinstance(value, str) or ":" not in value:
            return
        module = value.partition(":")[0]
        if not any(module == p or module.startswith(f"{p}.") for p in self.packages):
            problems.append(f"{key} {value!r} is code of no allowed package{_IMPORT}")

    def _data(self, data: Any, problems: list[str]) -> None:
        if not isinstance(data, dict):
            return
        self._code("task.data.callable", data.get("callable"), problems)
        files = data.get("data_files")
        if isinstance(files, dict):
            for split, listed in files.items():
                files[split] = self._files(split, listed, problems)
        path = data.get("path")
        if isinstance(path, str) and (path not in FORMATS or files is None):
            local = self._inside("task.data.path", path, problems)
            if local is not None:
                data["path"] = str(local)
            elif not self.hub or _looks_local(path):
                problems.append(f"task.data.path {path!r} is in no allowed folder{_HUB}")

    def _files(self, split: str, listed: Any, problems: list[str]) -> Any:
        many = listed if isinstance(listed, list) else [listed]
        found, key = [], f"task.data.data_files.{split}"
        for file in many:
            inside = self._inside(key, file, problems) if isinstance(file, str) else None
            if isinstance(file, str) and inside is None:
                problems.append(f"{key}: no such file in an allowed folder: {file!r}{_LOCAL}")
            found.append(file if inside is None else str(inside))
        return found if isinstance(listed, list) else found[0]

    def _inside(self, key: str, path: str, problems: list[str]) -> Path | None:
        """The file or folder of that name below a root, links followed; None if there is none.

        Several are a problem: which one is meant is not for the order of folders to say.
        """
        found = []
        for root in self.roots:
            try:
                place = (root / path).resolve(strict=True)
            except (OSError, ValueError, RuntimeError):
                continue
            if place.is_relative_to(root) and place not in found:
                found.append(place)
        if len(found) > 1:
            places = ", ".join(repr(str(place)) for place in found)
            problems.append(f"{key} {path!r} is in several allowed folders; write one of {places}")
        return found[0] if found else None


def _looks_local(path: str) -> bool:
    """Whether a name could be a path: an id of the hub is ``name`` or ``owner/name``."""
    return (
        not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path)
        or path.startswith(".")
        or os.path.exists(path)  # which takes any text
    )
