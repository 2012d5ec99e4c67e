"""Blocks of code of a page of the documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title if it has one, and whether the page says that it is not run."""

    language: str
    title: str
    text: str
    line: int
    is_run: bool = True


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page; ``<!-- not run: REASON -->`` before one says why it is not."""
    fence = re.compile(r'^( *)```(\w*)(?: title="([^"\n]*)")?\n(.*?)^\1```$', re.M | re.S)
    found = []
    for match in fence.finditer(page):
        before = page[: match.start()]
        skipped = re.search(r"<!-- not run: .+ -->\s*$", before) is not None
        line = before.count("\n") + 1
        found.append(Block(match[2], match[3] or "", match[4], line, not skipped))
    return found


def commands_of(block: str) -> list[str]:
    """The commands of a block of shell, without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for raw in lines if (line := re.sub(r"(^|\s)#\s.*", "", raw).strip())]
