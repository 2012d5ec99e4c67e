"""Studies that were launched over HTTP: each has a folder, and a driver in a process of its own.

| file | what it does |
|---|---|
| folder | what is known of a launch, as files that outlive the server |
| driver | the process that runs one study |
| supervisor | starts drivers, some at a time, and starts them again where they were killed |
| webhooks | tells receivers how studies ended |
"""

from __future__ import annotations

__all__: list[str] = []
