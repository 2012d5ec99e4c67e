"""On the page of errors, in the place of its marker: every message of every class, as the code says it."""

from __future__ import annotations

import ast
import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsearch import errors

ROOT = Path(__file__).parents[2]
MARKER = "<!-- every message -->"
ROOMS = ("sparsearch", "spaces", "search", "workers", "results", "service")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write the tables where the marker stands."""
    return markdown.replace(MARKER, _tables()) if MARKER in markdown else markdown


def _tables() -> str:
    found: dict[str, set[tuple[str, str]]] = {name: set() for name in errors.__all__}
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            if "testing" not in file.parts:
                for name, message, hint in messages_of(ast.parse(file.read_text())):
                    found[name].add((message, hint))
    parts = []
    for name, rows in found.items():
        if rows:
            parts.append(f"### {name}\n\n| message | next step |\n|---|---|")
            parts += [f"| {_cell(message)} | {_cell(hint)} |" for message, hint in sorted(rows)]
            parts.append("")
    return "\n".join(parts)


def messages_of(module: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Class, message and hint of each error that a module makes and whose message it spells out."""
    texts = {
        target.id: node.value
        for node in ast.walk(module)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for call in ast.walk(module):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or not call.args:
            continue
        if call.func.id in errors.__all__:
            named = [word.value for word in call.keywords if word.arg == "hint"]
            hint = [*call.args[1:2], *named]
            steps = [step for node in hint for step in _alternatives(node, texts)] or [""]
            for message in _alternatives(call.args[0], texts):
                yield from ((call.func.id, message, step) for step in steps)


def _alternatives(node: ast.expr, texts: dict[str, ast.expr]) -> Iterator[str]:
    """The texts that an expression may be, with ``…`` for what is only known as it runs; none if that is all."""
    if isinstance(node, ast.List | ast.Tuple):
        for item in node.elts:
            yield from _alternatives(item, texts)
    elif isinstance(node, ast.IfExp):
        yield from _alternatives(node.body, texts)
        yield from _alternatives(node.orelse, texts)
    elif isinstance(node, ast.Name) and node.id in texts:
        yield from _alternatives(texts[node.id], {k: v for k, v in texts.items() if k != node.id})
    else:
        text = _text(node)
        if any(letter.isalpha() for letter in text):
            yield text


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


def _cell(text: str) -> str:
    """A text as a cell of a table."""
    return " ".join(html.escape(text, quote=False).split()).replace("|", "\\|").replace("*", "\\*")
