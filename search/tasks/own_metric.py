"""A metric of the user's own, by the import path of its function."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from sparsearch.config.tasks.imports import find_function
from sparsearch.errors import SparsearchError

__all__ = ["own_score"]


def own_score(
    path: str, better: str, predictions: Sequence[Any], references: Sequence[Any]
) -> float:
    """What a function of the user's gives for a split, turned so that a higher score is better.

    Args:
        path: ``package.module:function`` of a function (predictions, references) -> number.
        better: ``higher`` or ``lower``: which of two values is better.
        predictions: What the model says of each row, see ``TaskType.answers``.
        references: What is right.

    Raises:
        ConfigError: If the function cannot be imported.
        SparsearchError: If it fails, or gives no finite number.
    """
    function = find_function(path)
    try:
        found = function(predictions, references)
    except Exception as error:
        raise SparsearchError(
            f"task.metric {path} fails: {type(error).__name__}: {error}",
            "it is called with two lists of equal length: the predictions, and the references",
        ) from error
    if not isinstance(found, numbers.Real) or not math.isfinite(found):
        raise SparsearchError(
            f"task.metric {path} gives {found!r:.60}", "it must return one finite number"
        )
    return float(found) if better == "higher" else -float(found)
