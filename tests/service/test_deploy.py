"""What is in ``deploy/`` fits the command line: options that exist, addresses that are guarded."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from sparsearch.cli.main import app
from sparsearch.service.settings import READ_TOKEN, RUN_TOKEN

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def unit_command():
    (line,) = re.findall(r"^ExecStart=(.*)$", (DEPLOY / "sparsearch.service").read_text(), re.M)
    return shlex.split(line)


def container_command():
    (line,) = re.findall(r"^ENTRYPOINT (.*)$", (DEPLOY / "Containerfile").read_text(), re.M)
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return json.loads(line) + compose["services"]["service"]["command"]


@pytest.mark.parametrize(
    "command", [unit_command(), container_command()], ids=["unit", "container"]
)
def test_every_option_exists(command):
    program, name, *words = command
    assert program.endswith("sparsearch") and name == "serve"
    told = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).stdout
    for option in (word for word in words if word.startswith("--")):
        assert f"{option} " in told, option


def test_what_listens_to_others_has_tokens():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    service = compose["services"]["service"]
    for name in (READ_TOKEN, RUN_TOKEN):
        file = service["environment"][f"{name}_FILE"]
        assert file.removeprefix("/run/secrets/") in service["secrets"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert set(compose["secrets"]) >= {
        *service["secrets"],
        *compose["services"]["database"]["secrets"],
    }
    unit = (DEPLOY / "sparsearch.service").read_text()
    assert f"{READ_TOKEN}_FILE, {RUN_TOKEN}_FILE" in unit
    assert "KillMode=process" in unit, "drivers outlive the server"
