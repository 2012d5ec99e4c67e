"""What bounds a client: how much it sends, how often it asks, how many streams are open.

| file | what it does |
|---|---|
| body_limit | refuses bodies that are too large |
| rate_limit | refuses who asks too often, or guesses tokens |
| streams | refuses event streams beyond a number |
"""

from __future__ import annotations

__all__: list[str] = []
