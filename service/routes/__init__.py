"""One file for each noun of the API."""

from __future__ import annotations

__all__: list[str] = []
