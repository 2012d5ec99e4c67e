"""Blocks of code in the README and the guide: studies are valid, commands are taken by the parser, Python compiles and
imports what exists. A block that is not tried says why in a comment before it. The tutorials' are run: test_tutorials.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

import sparsearch
from sparsearch.cli.main import app
from sparsearch.config.reader import validate_study
from sparsearch.config.study import StudyConfig
from sparsearch.documents import read_yaml
from tests.helpers.pages import blocks_of, commands_of

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
    *sorted((ROOT / "docs" / "results").glob("*.md")),
]
BLOCKS = [
    pytest.param(block, id=f"{page.stem}:{block.line}")
    for page in PAGES
    for block in blocks_of(page.read_text())
    if block.is_run
]
STUDY = {
    "name": "example",
    "model": {"path": "example/model"},
    "task": {"data": {"path": "example/data"}, "text": ["text"]},
    "space": {"preset": "fine"},
    "budgets": ["0.1%"],
}
"""What a block leaves out that shows some sections of a study file."""


def in_language(*languages: str) -> list:
    return [param for param in BLOCKS if param.values[0].language in languages]


@pytest.mark.parametrize("block", in_language("yaml"))
def test_a_study_is_valid(block):
    content = read_yaml(block.text)
    assert content.keys() <= StudyConfig.model_fields.keys()
    task = content.get("task", {})
    left_out = STUDY["task"] if "type" not in task else {"data": STUDY["task"]["data"]}
    _, problems = validate_study(STUDY | content | {"task": left_out | task}, ROOT)
    assert problems == []


def parsed(words: list[str]) -> str:
    """The command that the real parser finds for these words, with all its options; nothing is run."""
    command, context = typer.main.get_command(app), None
    while True:
        context = command.make_context(words[0], words[1:], parent=context)
        if not hasattr(command, "commands"):
            return context.command_path
        words = words[-len(context.args) - 1 :]
        command = command.commands[words[0]]


def commands() -> list:
    """Every line that begins with our command, of blocks of shell and of blocks without a language."""
    found = []
    for param in in_language("", "bash", "sh", "console"):
        for number, line in enumerate(commands_of(param.values[0].text)):
            line = re.sub(r"^\.venv/bin/", "", line)
            if line.startswith("sparsearch "):
                found.append(pytest.param(line, id=f"{param.id}:{number}"))
    return found


@pytest.mark.parametrize("line", commands())
def test_a_command_is_taken_by_the_parser(line):
    words = shlex.split(re.split(r"\s[|>&]", line.replace(" URL ", " http://127.0.0.1:8642 "))[0])
    assert parsed(words).startswith("sparsearch ")


@pytest.mark.parametrize("block", in_language("python"))
def test_python_compiles_and_imports_what_exists(block):
    tree = ast.parse(block.text)
    compile(tree, "page", "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert not [a.name for a in node.names if not hasattr(module, a.name)]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ss":
            assert hasattr(sparsearch, node.attr)


def test_few_blocks_are_not_tried_and_each_says_why():
    skipped = [b for page in PAGES for b in blocks_of(page.read_text()) if not b.is_run]
    assert len(skipped) < 5
