"""What routes are given: the store, and pages of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Depends, Query, Request

from sparsearch.results.store.store import Store

__all__ = ["BINARY", "NO_NUL", "Cursor", "Limit", "OfStudy", "TheStore", "page"]


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


BINARY = {"type": "string", "format": "binary"}
"""The schema of a file."""

TheStore = Annotated[Store, Depends(_store)]
Limit = Annotated[int, Query(ge=1, le=500, description="Rows of a page.")]
NO_NUL = r"^[^\x00]*$"
"""What a text that reaches the database may hold: PostgreSQL takes all but this character."""

Cursor = Annotated[
    str | None, Query(max_length=200, pattern=NO_NUL, description="`next` of the page before.")
]
OfStudy = Annotated[
    str | None,
    Query(
        max_length=200, pattern=NO_NUL, description="Name of a study, or a unique prefix of it."
    ),
]


def page(items: Sequence[Any], limit: int, key: str) -> dict[str, Any]:
    """A page of objects; where it is full, the next one begins after the last object's key."""
    following = str(items[-1][key]) if len(items) == limit else None
    return {"items": items, "next": following}
