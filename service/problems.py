"""The one body of all errors: what happened, what to do, and every problem found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsearch import errors
from sparsearch.errors import (
    ConfigError,
    LeaseError,
    MissingStoreError,
    NotFoundError,
    SparsearchError,
    StoreError,
)

__all__ = ["Problem", "body", "status_of"]

_STATUS: tuple[tuple[type[SparsearchError], int], ...] = (
    (NotFoundError, 404),
    (LeaseError, 409),
    (MissingStoreError, 503),
    (StoreError, 503),
    (SparsearchError, 422),
)
"""The first that an error is decides."""


class Problem(SparsearchError):
    """A request that is refused for a reason of the service's own."""

    def __init__(
        self,
        message: str,
        hint: str = "",
        status: int = 400,
        *,
        error: str = "SparsearchError",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status, self.error, self.retry_after = status, error, retry_after


def status_of(error: SparsearchError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, Problem):
        return error.status
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def body(error: SparsearchError, problems: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object of an error: ``error``, ``message``, ``hint``, ``problems``."""
    if isinstance(error, ConfigError):
        problems = error.problems
    said = {"message": error.message, "hint": error.hint, "problems": list(problems)}
    return {"error": _name(error), **said}


def _name(error: SparsearchError) -> str:
    """The class of an error, or the nearest one above it that ``sparsearch.errors`` has."""
    if isinstance(error, Problem):
        return error.error
    return next(k.__name__ for k in type(error).__mro__ if k.__name__ in errors.__all__)
