"""HTML pages in one file: they work offline, and in the light and the dark."""

from __future__ import annotations

import base64
import functools
import gzip
import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsearch.errors import ExportError

if TYPE_CHECKING:
    from jinja2 import Environment
    from plotly.graph_objects import Figure

__all__ = [
    "COLORS",
    "TEMPLATES",
    "counts_axis",
    "dress",
    "figure_json",
    "make_environment",
    "render",
    "write_page",
]

FONT = "Inter, 'Segoe UI', Helvetica, Arial, sans-serif"
COLORS = ("#3b6fb6", "#d1673a", "#3f9268", "#8a5fb0", "#b9952c", "#c04f78", "#4a9db0", "#7a7f87")
TEMPLATES = Path(__file__).parent / "templates"


def dress(figure: Figure, title: str, subtitle: str) -> None:
    """What all pictures share."""
    figure.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 13},
        title={
            "text": html.escape(title),
            "subtitle": {"text": html.escape(subtitle)},
            "x": 0.02,
            "xanchor": "left",
        },
    )


def counts_axis(figure: Figure) -> dict[str, Any]:
    """How an axis of counts is drawn: in powers of ten, which have no place for zero, unless there is one."""
    counts = [x for trace in figure.data if trace.x is not None for x in trace.x]
    scale = {"type": "log", "dtick": "D2"} if all(x for x in counts) else {"type": "linear"}
    return {"tickformat": ",", **scale}


def figure_json(figure: Figure) -> str:
    """A figure as JSON that may stand in a script element: no text in it can end that."""
    text: str = figure.to_json()
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@functools.cache
def _plotly_script() -> str:
    """Plotly's own script from its package, gzip in base64: 1.9 MB in place of 4.8 MB."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def make_environment(*folders: Path) -> Environment:
    """Jinja templates of these folders and of this one; text is escaped, an unknown name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader((*folders, TEMPLATES)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, *, figures: bool = True, **values: Any) -> str:
    """A page of one file from a template of this folder.

    Args:
        template: Its file name.
        figures: Whether it has any: Plotly's script is 1.9 MB.
        values: What it shows; figures as ``figure_json`` gives them.
    """
    plotly = _plotly_script() if figures else ""
    return make_environment().get_template(template).render(plotly=plotly, **values)


def write_page(path: Path, option: str, template: str, **values: Any) -> None:
    """Write a page of one file, see ``render``.

    Args:
        path: The file.
        option: Of the command line, that gave the path.
        template: As for ``render``.
        values: Likewise, with ``figures``.

    Raises:
        ExportError: If the file cannot be written.
    """
    page = render(template, **values)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        missing = not path.parent.is_dir()
        raise ExportError(
            f"cannot write {str(path)!r}: {error.strerror or error}",
            f"mkdir -p {path.parent}" if missing else f"give {option} another file name",
        ) from error
