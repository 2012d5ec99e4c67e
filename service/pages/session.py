"""Logging in: a browser keeps a cookie in place of a token."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import HTMLResponse, Response

from sparsearch.service.access import COOKIE, SESSION_SECONDS, session_of
from sparsearch.service.pages.rendering import page
from sparsearch.service.problems import Problem

__all__ = ["router"]

router = APIRouter(include_in_schema=False)


@router.get("/login", response_class=HTMLResponse)
def form(request: Request) -> Any:
    """Ask for a token."""
    return page(request, "login.html", title="Log in")


@router.post("/login", status_code=204)
def log_in(request: Request, token: Annotated[str, Body(embed=True, max_length=500)]) -> Response:
    """Give a cookie for a token."""
    session = session_of(request.app.state.settings, token)
    if session is None:
        raise Problem("this is not a token of this service", "ask its operator", status=403)
    response = Response(status_code=204)
    response.set_cookie(
        COOKIE,
        session,
        max_age=SESSION_SECONDS,
        path=request.scope.get("root_path", "") or "/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


@router.post("/logout", status_code=204)
def log_out(request: Request) -> Response:
    """Take the cookie away."""
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path=request.scope.get("root_path", "") or "/")
    return response
