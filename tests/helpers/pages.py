"""A page of the documentation as a reader follows it: its blocks of code in order, and what they print."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers.command_line import call

MEASURED = "measured with"
"""A block of output whose title begins so holds numbers of a large model: the words around them are compared."""

REFUSED = "refused"
"""The title of a block of commands that fail, and say why."""


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


def stand_ins(page: str) -> list[tuple[str, str]]:
    """What the table at the end of a tutorial puts in the place of what."""
    table = page.partition("| on this page | in the tests |\n|---|---|\n")[2]
    return re.findall(r"^\| `(.+)` \| `(.*)` \|$", table, re.M)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Reader:
    """Follows a page in a folder: writes files that a block names, types commands, runs Python."""

    folder: Path
    patch: pytest.MonkeyPatch
    printed: str = ""
    failed: bool = False
    structure: str = ""
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})
    left_running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def follow(self, page: str) -> None:
        """Every block of a page, with the table's values."""
        replaced = [*stand_ins(page), ("8642", str(free_port()))]
        for block in blocks_of(page):
            text = block.text
            for here, there in replaced:
                text = text.replace(here, there)
            where = f"line {block.line}: {text}"
            if block.language == "text":
                expected, printed = (
                    simplified(x, block.title.startswith(MEASURED)) for x in (text, self.printed)
                )
                assert matches(expected, printed), f"{where}\nprinted:\n{self.printed}"
            else:
                self.printed, self.failed = "", False
                {"yaml": self._write, "python": self._run, "bash": self._type}[block.language](
                    text
                )
                assert self.failed == (block.title == REFUSED), (
                    f"{where}\nprinted:\n{self.printed}"
                )

    def _write(self, text: str) -> None:
        name = re.match(r"# (\S+)\n", text)
        assert name, f"the first line names no file: {text}"
        (self.folder / name[1]).write_text(text)

    def _run(self, text: str) -> None:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            exec(compile(text, "page", "exec"), self.names)
        self.printed += shown.getvalue()

    def _type(self, text: str) -> None:
        for command in commands_of(text):
            if assigned := re.fullmatch(r"export (\w+)=(\S*)", command):
                self.patch.setenv(*assigned.groups())
            elif command.endswith("&"):
                self._leave_running(command.removesuffix("&").strip())
            elif command.startswith("sparsearch ") and not re.search(r"[|>$;&]", command):
                self._ask(shlex.split(command.replace("HASH", self.structure))[1:])
            else:
                self._shell(command)

    def _ask(self, words: list[str]) -> None:
        done = call(*words)
        self.failed = self.failed or done.code != 0
        self.printed += done.out or done.err
        if found := re.search(r"structure +([0-9a-f]{8})", done.out):
            self.structure = found[1]

    def _shell(self, command: str) -> None:
        folder = Path(sys.executable).parent
        line = f'PATH="{folder}:$PATH"; {command}'
        done = subprocess.run(
            ["bash", "-euc", line], cwd=self.folder, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        self.printed += done.stdout

    def _leave_running(self, command: str) -> None:
        """A command that serves: it is ready when its port answers."""
        words = [sys.executable, "-m", "sparsearch.cli.main", *shlex.split(command)[1:]]
        log = self.folder / "server.log"
        server = subprocess.Popen(words, cwd=self.folder, stderr=log.open("wb"))
        self.left_running.append(server)
        port = int(words[words.index("--port") + 1])
        for _ in range(600):
            assert server.poll() is None, log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return
            time.sleep(0.1)
        raise AssertionError(log.read_text())

    def end(self) -> None:
        """End what was left running."""
        for process in self.left_running:
            process.terminate()
            process.wait(30)


def simplified(text: str, measured: bool) -> str:
    """Lines without the blanks of columns and without empty lines; where it was measured, hashes and numbers as #."""
    if measured:
        text = re.sub(r"\b[0-9a-f]{8,64}\b", "#", text)
        text = re.sub(r"[-+]?\d[\d,.]*(e[-+]\d+)?\b", "#", text)
    text = re.sub("─+", "─", text)
    return "\n".join(filter(None, (" ".join(line.split()) for line in text.splitlines())))


def matches(expected: str, printed: str) -> bool:
    """Whether a text is as expected, where ``...`` stands for anything."""
    pattern = re.escape(expected).replace(re.escape("..."), "(?s:.*)")
    return re.fullmatch(pattern, printed) is not None
