"""A service in a process of its own, as `sparsearch serve` starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx


@contextmanager
def served(
    db: str,
    launches: Path,
    *options: str,
    end: signal.Signals = signal.SIGTERM,
    **environ: str,
) -> Iterator[httpx.Client]:
    """A client of a server on a free port; it ends with a signal, by default as an operator ends it.

    What it says is in ``server.log`` beside the launches.
    """
    command = "import sys; from sparsearch.cli.main import main; main()"
    arguments = ("serve", "--db", db, "--launches", str(launches), "--port", "0", *options)
    log = launches.parent / "server.log"
    with log.open("w") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-c", command, *arguments], stderr=stderr, env=os.environ | environ
        )
    try:
        while not (found := re.search("the API at (.*)", log.read_text())):
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
        url = found[1]
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            yield client
    finally:
        server.send_signal(end)
        server.wait(30)
