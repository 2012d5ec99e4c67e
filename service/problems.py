"""The one body of all errors: what happened, what to do, and every problem found."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sparsearch import errors
from sparsearch.errors import (
    ConfigError,
    LeaseError,
    MissingStoreError,
    NotFoundError,
    SparsearchError,
    StoreError,
)
from sparsearch.service.headers import HEADERS

__all__ = ["Problem", "add_handlers", "body", "status_of"]

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
        self, message: str, hint: str = "", status: int = 400, error: str = "SparsearchError"
    ) -> None:
        super().__init__(message, hint)
        self.status, self.error = status, error


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


def add_handlers(app: FastAPI) -> None:
    """Answer every error of an application with this body."""

    @app.exception_handler(SparsearchError)
    async def _ours(request: Request, error: SparsearchError) -> JSONResponse:
        status = status_of(error)
        headers = {"www-authenticate": "Bearer"} if status == 401 else None
        return JSONResponse(body(error), status, headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        problem = Problem("the request is not valid", "the API's document is at openapi.json")
        return JSONResponse(body(problem, problems), 422)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(body(Problem(str(error.detail))), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        logging.getLogger(__name__).exception("unexpected error", exc_info=error)
        problem = Problem("an unexpected error; the service's log has it", "please report it")
        return JSONResponse(body(problem), 500, HEADERS)  # no other middleware sees it
