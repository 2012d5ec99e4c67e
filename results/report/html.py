"""Figures as HTML pages that work offline."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

from sparsearch.errors import ExportError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = [
    "COLORS",
    "FONT",
    "dress",
    "write_page",
]

FONT = "Inter, 'Segoe UI', Helvetica, Arial, sans-serif"


_PROSE = f"font: 14px/1.6 {FONT}; color: #2b2f36; max-width: 1000px; padding: 0 24px;"


COLORS = ("#3b6fb6", "#d1673a", "#3f9268", "#8a5fb0", "#b9952c", "#c04f78", "#4a9db0", "#7a7f87")


def dress(figure: Figure, title: str, subtitle: str) -> None:
    """What both pictures share."""
    figure.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 13, "color": "#2b2f36"},
        title={
            "text": html.escape(title),
            "subtitle": {"text": html.escape(subtitle)},
            "x": 0.02,
            "xanchor": "left",
        },
    )


def write_page(figure: Figure, path: Path, title: str, below: str = "") -> None:
    """Write one HTML file that holds the figure and the script that draws it."""
    page = figure.to_html(include_plotlyjs=True, full_html=True)
    head = f"<head><title>sparsearch: {html.escape(title)}</title>"
    if below:
        # Plotly's outer box is as high as the window, not as the picture: text would lie over it.
        head += "<style>body > div { height: auto !important; }</style>"
        start, _, end = page.rpartition("</body>")
        page = f"{start}{below}</body>{end}"
    page = page.replace("<head>", head, 1)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        missing = not path.parent.is_dir()
        raise ExportError(
            f"cannot write {str(path)!r}: {error.strerror or error}",
            f"mkdir -p {path.parent}" if missing else "give --plot another file name",
        ) from error
