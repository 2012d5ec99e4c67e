"""Studies that were launched over HTTP: each has a folder, and a driver in a process of its own.

| file | what it does |
|---|---|
| folder | what is known of a launch, as files that outlive the server |
| of_study | whether a launch still says how its study stands |
| driver | the process that runs one study |
| supervisor | which drivers run: some at a time, killed ones again |
| driver_runner | where they run: ``DriverRunner``, and processes beside the server |
| ray_jobs, job | drivers as jobs of a Ray cluster |
| webhooks | tells receivers how studies ended |
"""

from __future__ import annotations

__all__: list[str] = []
