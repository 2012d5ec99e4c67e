"""How a page is made."""

from __future__ import annotations

import functools
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

import sparsearch
from sparsearch.results.report.html import make_environment
from sparsearch.service.access import ANYTHING, level_of
from sparsearch.service.pages.files import map_style_id
from sparsearch.service.problems import body, status_of

if TYPE_CHECKING:
    from jinja2 import Environment

    from sparsearch.errors import SparsearchError

__all__ = ["compile_templates", "error_page", "page", "wants_page"]


@functools.cache
def _environment() -> Environment:
    environment = make_environment(Path(__file__).parent / "templates")
    environment.filters |= {"share": _share, "when": _when, "score": _score}
    return environment


def compile_templates() -> None:
    """Read all templates before anybody asks for a page."""
    for name in _environment().list_templates(extensions=["html"]):
        _environment().get_template(name)


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _score(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


def _when(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page from a template of this folder.

    Args:
        request: Asked for it.
        template: Its file name.
        status: Of the answer.
        values: What it shows.
    """
    shared = {
        "root": request.scope.get("root_path", ""),
        "version": sparsearch.__version__,
        "may_run": level_of(request) == ANYTHING,
        "has_tokens": bool(request.app.state.settings.tokens),
        "path": request.url.path,
        "map_style_id": map_style_id(),
    }
    return HTMLResponse(_environment().get_template(template).render(shared | values), status)


def wants_page(request: Request) -> bool:
    """Whether an error is to be a page: what is asked for is one, and not the API."""
    path: str = request.scope.get("path", "").removeprefix(request.scope.get("root_path", ""))
    return not path.startswith("/api/") and "text/html" in request.headers.get("accept", "")


def error_page(request: Request, error: SparsearchError) -> Response:
    """An error as a page; to who is not logged in, the form for that."""
    status = status_of(error)
    if status == 401:
        root = request.scope.get("root_path", "")
        return RedirectResponse(f"{root}/login", 303)
    return page(request, "error.html", status, title="Error", status_code=status, **body(error))
