"""The studies of a database over HTTP: a REST API over ``results`` and ``workers``.

| file or folder | what it does |
|---|---|
| app | puts the parts together: ``make_app`` |
| server | the server process |
| settings | what an operator may choose, checked before anything is served |
| access | who may ask: host names, tokens |
| json_lines | files that are appended to |
| audit | who changed what |
| confinement | what a study that comes over HTTP may name |
| headers | what every answer tells a browser |
| problems | the one body of all errors |
| models | the objects of the answers, those of ``--json`` |
| metrics | counts and times for Prometheus |
| limits | how much, how often and how long one client may ask |
| launches | studies that were launched over HTTP, and the processes that run them |
| study_events | trials as they finish, of studies that the database alone knows |
| routes | one file for each noun |
| client | a service, asked by the command line |
"""

from __future__ import annotations

__all__ = ["PREFIX"]

PREFIX = "/api/v1"
"""Of the path of every route."""
