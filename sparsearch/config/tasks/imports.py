"""A user's own code, named in a study file as ``package.module:function``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

from sparsearch.errors import ConfigError

__all__ = ["find_function", "is_import_path"]

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_import_path(value: object) -> bool:
    """Whether a value of a study file names code.

    >>> is_import_path("my_package.metrics:cost"), is_import_path("accuracy")
    (True, False)
    """
    return isinstance(value, str) and _PATH.fullmatch(value) is not None


def find_function(path: str) -> Callable[..., Any]:
    """The function of an import path; importing its module runs that module's code.

    Raises:
        ConfigError: If it cannot be imported, or is no function.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module raises what its author chose
        raise ConfigError(
            [f"cannot import {path}: {type(error).__name__}: {error}"],
            "install the package, or name the folder that holds it in the environment variable PYTHONPATH",
        ) from error
    if not callable(found):
        raise ConfigError([f"{path} is no function: {found!r:.60}"])
    function: Callable[..., Any] = found
    return function
