"""Help, bad usage, and what is answered without torch."""

import subprocess
import sys

import pytest

from sparsearch.results import Store
from tests.helpers.command_line import call

COMMANDS = (
    "run",
    "stop",
    "space",
    "studies",
    "trials",
    "best",
    "pareto",
    "show",
    "export",
    "train",
)


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)])
def test_help(command: tuple[str, ...]) -> None:
    done = call(*command, "--help")
    assert done.code == 0
    assert "Usage:" in done.out and "Traceback" not in done.out
    for name in COMMANDS if not command else ("--json",):
        assert name in done.out


@pytest.mark.parametrize(
    "words",
    [
        ("no-such-command",),
        ("best", "--no-such-option"),
        ("trials",),
        ("export", "abcd"),
        ("export", "abcd", "--to", "zip", "--out", "x"),
        ("export", "abcd", "--to", "checkpoint", "--also", "tflite", "--out", "x"),
        ("export", "abcd", "--to", "peft", "--also", "onnx", "--out", "x"),
        ("space", "toy", "--preset", "s3pet-m", "--kind", "lora"),
        ("run", "missing.yaml"),
    ],
)
def test_bad_usage_exits_2(words: tuple[str, ...]) -> None:
    done = call(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err


def test_command_line_starts_without_torch() -> None:
    code = (
        "import sys, sparsearch.cli.main; heavy = {'torch', 'transformers', 'sqlalchemy', 'plotly'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_questions_are_answered_without_torch(db: str, form: list[str]) -> None:
    """Importing it costs seconds; what is stored of a structure is numbers and names."""
    questions = [["studies"], ["trials", "trec"], ["best"], ["pareto", "trec"], ["show"]]
    with Store.open(db, create=False) as store:
        best = store.best()
    assert best is not None
    questions[-1].append(best.structure.hash)
    code = f"""
import sys
from typer.testing import CliRunner
from sparsearch.cli.main import app
for question in {questions}:
    done = CliRunner().invoke(app, [*question, "--db", {db!r}, *{form}])
    assert done.exit_code == 0, done.output
    print(*{{"torch", "transformers", "ray", "optuna", "plotly"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == ([], "")


def test_version() -> None:
    assert call("--version").out.startswith("sparsearch ")
