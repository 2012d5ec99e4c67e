"""The audit log: who changed what, and when; a JSON object a line, appended."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from fastapi import Request

__all__ = ["note"]


def note(request: Request, action: str, study: str) -> None:
    """Append a line to ``audit.jsonl`` in the folder of the launches.

    Args:
        request: By which the change is asked for.
        action: ``launch``, ``stop``, ``continue``, ``delete``, ``upload`` or ``delete upload``.
        study: Name of the study or of the file.
    """
    settings = request.app.state.settings
    facts = {
        "at": datetime.now(UTC).isoformat(),
        "action": action,
        "study": study,
        "address": request.client.host if request.client else None,
        "by": "run token" if settings.tokens else "this machine",
    }
    path = Path(settings.launches) / "audit.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, (json.dumps(facts) + "\n").encode())
    finally:
        os.close(descriptor)
