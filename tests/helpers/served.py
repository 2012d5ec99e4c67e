"""A service in a process of its own, as `sparsearch serve` starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx


@contextmanager
def served(db: str, launches: Path, *options: str, **environ: str) -> Iterator[httpx.Client]:
    """A client of a server on a free port; it ends with a signal, as an operator ends it."""
    command = "import sys; from sparsearch.cli.main import main; main()"
    arguments = ("serve", "--db", db, "--launches", str(launches), "--port", "0", *options)
    server = subprocess.Popen(
        [sys.executable, "-c", command, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environ,
    )
    try:
        assert server.stderr is not None
        said = ""
        while "serving at " not in said:
            said = server.stderr.readline()
            assert said, "it ended before it served"
        url = said.split()[-1]
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
            yield client
    finally:
        server.terminate()
        server.communicate(timeout=30)
