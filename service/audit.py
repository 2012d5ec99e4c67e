"""The audit log: who changed what, and when; a JSON object a line, appended."""

from __future__ import annotations

from fastapi import Request

from sparsearch.service.json_lines import append_line
from sparsearch.service.settings import ServiceSettings

__all__ = ["note"]


def note(request: Request, action: str, study: str) -> None:
    """Append a line to ``audit.jsonl`` in the folder of the launches.

    Args:
        request: By which the change is asked for.
        action: ``launch``, ``stop``, ``continue``, ``delete``, ``upload`` or ``delete upload``.
        study: Name of the study or of the file.
    """
    settings: ServiceSettings = request.app.state.settings
    facts = {
        "action": action,
        "study": study,
        "address": request.client.host if request.client else None,
        "by": "run token" if settings.tokens else "this machine",
    }
    append_line(settings.launches / "audit.jsonl", facts)
