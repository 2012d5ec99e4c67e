"""The web pages: made here, with plain scripts that talk to the API.

| file | what it shows |
|---|---|
| rendering | how a page is made from a template; errors as pages |
| session | logging in: a cookie in place of a token |
| files | scripts and styles, Plotly's from its package |
| overview | studies, and the best structure of each task |
| study | a study: scores over seeds, intervals, progress, trials |
| figures | its pictures |
| structure | a structure as a map |
| comparing | two structures, or two studies, side by side |
| places | where the best structures of a backbone put things |
| launching | the form that launches a study |
"""

from __future__ import annotations

__all__: list[str] = []
