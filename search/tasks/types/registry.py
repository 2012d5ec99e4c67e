"""Task types by name; each is imported when it is first asked for."""

from __future__ import annotations

import functools
import importlib

from sparsearch.config.tasks.types import facts_of
from sparsearch.search.tasks.types.base import TaskType

__all__ = ["find_task_type"]


@functools.cache
def find_task_type(name: str) -> TaskType:
    """The task type of a name, one of ``TASK_TYPES``.

    >>> type(find_task_type("regression")).__name__
    'Regression'
    """
    module, _, attribute = facts_of(name).home.partition(":")
    home = importlib.import_module(f"sparsearch.search.tasks.types.{module}")
    found: TaskType = getattr(home, attribute)()
    return found
