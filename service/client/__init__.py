"""A service, asked by the command line: the records and errors of a database, over HTTP.

| file | what it does |
|---|---|
| connection | the address, the token, and what goes wrong on the way |
| reader | the questions of ``results.source`` |
| exports | a structure, downloaded and unpacked |
| launches | studies that a service runs: launched, followed, stopped |
"""

from __future__ import annotations

__all__: list[str] = []
