"""Scripts and styles; nothing comes from elsewhere."""

from __future__ import annotations

import functools
import gzip
import re
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header
from fastapi.responses import Response

from sparsearch.errors import NotFoundError
from sparsearch.results.report.html import TEMPLATES

__all__ = ["map_style_id", "router"]

router = APIRouter(prefix="/static", include_in_schema=False)

_HERE = Path(__file__).parent / "static"
_FILES = {
    "style.css": (TEMPLATES / "style.css", "text/css"),
    "pages.css": (_HERE / "pages.css", "text/css"),
    "figures.js": (TEMPLATES / "figures.js", "text/javascript"),
    "pages.js": (_HERE / "pages.js", "text/javascript"),
    "watch.js": (_HERE / "watch.js", "text/javascript"),
    "launch.js": (_HERE / "launch.js", "text/javascript"),
    "icon.svg": (_HERE / "icon.svg", "image/svg+xml"),
}


@functools.cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script


@functools.cache
def map_style_id() -> str:
    """The element that Plotly looks for before it adds styles for geographical maps, which no page may take."""
    found = re.search(r'getElementById\("([0-9a-f]{64})"\)', _plotly())
    return found[1] if found else "no-map-styles"


@functools.cache
def _content(name: str) -> bytes:
    """A file's bytes in gzip."""
    if name == "plotly.js":
        return gzip.compress(_plotly().encode(), mtime=0)
    return gzip.compress(_FILES[name][0].read_bytes(), mtime=0)


@router.get("/{name}")
def file(name: str, accept_encoding: Annotated[str, Header()] = "") -> Any:
    """Answer with a file; pages name its version, so that browsers may keep it."""
    if name not in _FILES and name != "plotly.js":
        raise NotFoundError(f"there is no file {name!r}")
    kind = "text/javascript" if name == "plotly.js" else _FILES[name][1]
    headers = {"cache-control": "public, max-age=31536000, immutable", "vary": "accept-encoding"}
    if "gzip" in accept_encoding:
        return Response(
            _content(name), headers=headers | {"content-encoding": "gzip"}, media_type=kind
        )
    return Response(gzip.decompress(_content(name)), headers=headers, media_type=kind)
