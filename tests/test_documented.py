"""Documents name what exists: the walk of docs/architecture.md, and each command, strategy and kind in the guide."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from sparsearch.cli.main import app
from sparsearch.config.registry import KINDS, STRATEGIES
from sparsearch.service.app import PREFIX, make_app
from sparsearch.service.settings import ServiceSettings

DOCS = Path(__file__).parents[1] / "docs"
WALK = re.findall(r"^\| \d+ \| `([\w.]+)`", (DOCS / "architecture.md").read_text(), re.M)
PAGES = (DOCS / "guide.md", *sorted((DOCS / "guide").glob("*.md")), DOCS.parent / "README.md")
GUIDE = "\n".join(page.read_text() for page in PAGES)


def test_the_walk_is_short():
    assert 8 <= len(WALK) <= 12


@pytest.mark.parametrize("name", WALK)
def test_each_step_of_the_walk_exists(name):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        assert callable(found)
        taken = [n for n in inspect.signature(found).parameters if n != "self"]
        assert len(taken) <= 4, taken
        return
    raise AssertionError(name)


@pytest.mark.parametrize("name", [*STRATEGIES, *KINDS])
def test_each_strategy_and_kind_is_documented(name):
    assert f"`{name}`" in GUIDE or f"`{name}:" in GUIDE or f"`{name} " in GUIDE


def test_each_route_of_the_service_is_documented(tmp_path):
    routes = make_app(ServiceSettings(f"sqlite:///{tmp_path / 'none.db'}")).openapi()["paths"]
    asked = re.findall(r"`(GET|POST|PUT|DELETE) (/[^`?]*)", GUIDE)
    assert {
        (method.upper(), path.removeprefix(PREFIX))
        for path, methods in routes.items()
        for method in methods
    } == ({*asked} - {("GET", "/openapi.json")})


@pytest.mark.parametrize("command", [c.callback.__name__ for c in app.registered_commands])
def test_each_command_is_documented(command):
    assert f"sparsearch {command}" in GUIDE
