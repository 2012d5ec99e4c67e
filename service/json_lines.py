"""Files of JSON objects, one a line, that several processes append to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparsearch.documents import plain

__all__ = ["append_line", "now"]


def now() -> str:
    """The time, as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat()


def append_line(path: Path, facts: Mapping[str, Any]) -> None:
    """Append an object, and when it was; one write a line, so that readers see whole lines."""
    line = json.dumps(plain({"at": now(), **facts})) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
