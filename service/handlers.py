"""Every error becomes an answer: JSON for the API, a page for who looks at pages."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from sparsearch.errors import SparsearchError
from sparsearch.service.headers import HEADERS
from sparsearch.service.pages.rendering import error_page, wants_page
from sparsearch.service.problems import Problem, body, status_of

__all__ = ["add_handlers"]


def add_handlers(app: FastAPI) -> None:
    """Answer every error of an application with this body."""

    @app.exception_handler(SparsearchError)
    async def _ours(request: Request, error: SparsearchError) -> Response:
        if wants_page(request):
            return error_page(request, error)
        status = status_of(error)
        headers = {"www-authenticate": "Bearer"} if status == 401 else {}
        if isinstance(error, Problem) and error.retry_after is not None:
            headers["retry-after"] = str(error.retry_after)
        return JSONResponse(body(error), status, headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        problems = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        if wants_page(request):
            return error_page(request, Problem("; ".join(problems), status=422))
        problem = Problem("the request is not valid", "the API's document is at openapi.json")
        return JSONResponse(body(problem, problems), 422)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if wants_page(request):
            return error_page(request, Problem(str(error.detail), status=error.status_code))
        return JSONResponse(body(Problem(str(error.detail))), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        logging.getLogger(__name__).exception("unexpected error", exc_info=error)
        problem = Problem("an unexpected error; the service's log has it", "please report it")
        return JSONResponse(body(problem), 500, HEADERS)  # no other middleware sees it
