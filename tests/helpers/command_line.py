"""Calls of the command line in this process, and stand-ins for the rooms behind it."""

import json
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from sparsearch.cli.main import app


@dataclass
class Done:
    code: int
    out: str
    err: str


def call(*args: str) -> Done:
    result = CliRunner().invoke(app, list(args))
    return Done(result.exit_code, result.stdout, result.stderr)


def answer(*args: str) -> Any:
    """The JSON document of a command that succeeds."""
    done = call(*args, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def fake(monkeypatch: pytest.MonkeyPatch, module: str, **names: Any) -> None:
    """Stand in for a room whose work would take seconds."""
    stand_in = ModuleType(module)
    for name, value in names.items():
        setattr(stand_in, name, value)
    monkeypatch.setitem(sys.modules, module, stand_in)
