"""Documents name what exists: the walk of docs/architecture.md; in the guide each command, option, setting, route,
error, strategy and kind.
"""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from sparsearch import errors
from sparsearch.cli.main import app
from sparsearch.config.registry import KINDS, STRATEGIES
from sparsearch.config.study import StudyConfig
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


def _commands(command=None, path="sparsearch"):
    """Every command with its path."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{path} {name}")


@pytest.mark.parametrize(("path", "command"), [*_commands()], ids=lambda x: str(x))
def test_each_command_and_option_is_documented(path, command):
    assert path in GUIDE
    options = {o for p in command.params for o in getattr(p, "opts", ()) if o.startswith("--")}
    ours = options - {"--help", "--install-completion", "--show-completion"}
    assert {option for option in ours if option not in GUIDE} == set()


def _sections(annotation, found):
    """Every section of a study file."""
    for inner in typing.get_args(annotation):
        _sections(inner, found)
    is_section = inspect.isclass(annotation) and issubclass(annotation, BaseModel)
    if is_section and annotation not in found:
        found.append(annotation)
        for field in annotation.model_fields.values():
            _sections(field.annotation, found)
    return found


@pytest.mark.parametrize("section", _sections(StudyConfig, []))
def test_each_setting_is_documented(section):
    assert {n for n in section.model_fields if not re.search(rf"\b{n}\b", GUIDE)} == set()


@pytest.mark.parametrize("error", [*errors.__all__])
def test_each_error_is_documented(error):
    assert f"`{error}`" in GUIDE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link
