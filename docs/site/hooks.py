"""What the site adds to the pages: files of the repository that they link to, lists of pages, and maths as MathML."""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[([](.*?)\\[)\]]</\1>', re.S)


def on_config(config: Any) -> None:
    """In the navigation, ``folder/*.md`` is every page of that folder."""
    config.nav = _expanded(config.nav)


def _expanded(entry: Any) -> Any:
    """A part of the navigation with its patterns replaced by pages."""
    if isinstance(entry, dict):
        return {title: _expanded(inner) for title, inner in entry.items()}
    if not isinstance(entry, list):
        return entry
    found: list[Any] = []
    for item in entry:
        pages = sorted((ROOT / "docs").glob(item)) if isinstance(item, str) else []
        found += [p.relative_to(ROOT / "docs").as_posix() for p in pages] or [_expanded(item)]
    return found


def on_files(files: Any, config: Any) -> None:
    """Add the files outside ``docs/`` that a page links to."""
    for page in files.documentation_pages():
        for target in set(_outside(page.src_uri, page.content_string)):
            source = f"source/{target}"
            if files.get_file_from_path(source) is None and (ROOT / target).is_file():
                files.append(File.generated(config, source, abs_src_path=str(ROOT / target)))


def _outside(page: str, markdown: str) -> Iterator[str]:
    """Paths from the repository's root of what a page links to outside ``docs/``."""
    for link in LINK.findall(markdown):
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
        if not target.startswith("docs/") and target != "README.md":
            yield target


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links out of ``docs/`` to where their files stand in the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def placed(match: re.Match[str]) -> str:
        for target in _outside(page.file.src_uri, f"]({match[1]})"):
            return posixpath.relpath(f"source/{target}", folder or ".")
        if posixpath.basename(match[1]) == "README.md":
            return posixpath.relpath("index.md", folder or ".")
        return match[1]

    return markdown if page.file.src_uri.startswith("source/") else LINK.sub(placed, markdown)


def on_page_content(html_text: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers show without a script."""

    def written(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return convert(html.unescape(match[2]).strip(), display=display)

    return FORMULA.sub(written, html_text)
