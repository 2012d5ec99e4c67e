"""The house stays one that a stranger reads: counted, so that it does not grow back."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsearch.config.registry import FAMILIES, KINDS, STRATEGIES
from sparsearch.config.tasks.types import TASK_TYPES

ROOT = Path(__file__).parents[1]
ROOMS = ("sparsearch", "spaces", "search", "workers", "results")
MOST_LINES = 400
MOST_MODULES = 12
IMPORTS = ast.Import | ast.ImportFrom


def files(*folders: str) -> list[Path]:
    found = [f for folder in folders or ROOMS for f in (ROOT / folder).rglob("*.py")]
    return sorted(f for f in found if "testing" not in f.parts)


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for file in files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node


def crowded(least: int = 6) -> list[str]:
    """Functions with so many arguments, or more; ``self`` aside, and commands, whose arguments are the user's."""
    found = []
    for where, node in functions():
        arguments = [
            a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        ]
        count = len([a for a in arguments if a not in ("self", "cls", "ctx")])
        if count >= least and "/cli/commands/" not in where:
            found.append(f"{where} ({count})")
    return found


def asks_for_a_kind() -> list[str]:
    """Places that ask which kind, or which attached module, something is."""
    specs = {p.stem for p in (ROOT / "spaces" / "kinds").iterdir() if p.is_dir()}
    classes = set()
    for folder in specs:
        for file in (ROOT / "spaces" / "kinds" / folder).glob("*.py"):
            classes |= {
                n.name for n in ast.parse(file.read_text()).body if isinstance(n, ast.ClassDef)
            }
    classes |= {"Unit", "LowRankUnit"}
    found = []
    for file in files():
        for number, line in enumerate(file.read_text().splitlines(), 1):
            for asked in re.findall(
                r"isinstance\([^()]*(?:\([^()]*\))?[^()]*,\s*([\w. |]+)\)", line
            ):
                if classes & set(re.split(r"[ .|]+", asked)):
                    found.append(f"{file.relative_to(ROOT)}:{number}")
    return found


def names_of(registry, *but: str) -> list[str]:
    """Lines that name something registered, outside the given folders."""
    wanted = re.compile("|".join(rf"[\"']{re.escape(n)}[\"']" for n in registry))
    found = []
    for file in files():
        place = file.relative_to(ROOT).as_posix()
        if place.startswith(but) or "migrations" in place:
            continue
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if (
                wanted.search(line)
                and '"""' not in line
                and not line.lstrip().startswith((">>>", "#"))
            ):
                found.append(f"{place}:{number} {line.strip()}")
    return found


def test_no_file_is_long():
    long = {
        str(f.relative_to(ROOT)): n
        for f in files()
        if (n := len(f.read_text().splitlines())) > MOST_LINES
    }
    assert not long


def test_no_test_file_is_long():
    lengths = {f: len(f.read_text().splitlines()) for f in (ROOT / "tests").rglob("*.py")}
    assert {str(f.relative_to(ROOT)): n for f, n in lengths.items() if n > MOST_LINES} == {}


def test_no_test_file_imports_from_another():
    """What several need is in ``tests/helpers``, or a fixture of their folder."""
    found = []
    for file in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, IMPORTS) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            found += [f"{file.relative_to(ROOT)} {n}" for n in names if ".test_" in f".{n}"]
    assert found == []


def test_no_folder_is_crowded():
    folders = Counter(f.parent for f in files(*ROOMS, "benchmarks") if f.name != "__init__.py")
    assert {str(d.relative_to(ROOT)): n for d, n in folders.items() if n > MOST_MODULES} == {}


def test_few_functions_take_six_arguments():
    assert len(crowded()) < 12, crowded()


def test_few_places_ask_for_a_kind():
    assert len(asks_for_a_kind()) < 6, asks_for_a_kind()


@pytest.mark.parametrize(
    ("registry", "home"),
    [
        (STRATEGIES, ("search/strategies", "sparsearch/config")),
        (FAMILIES, ("spaces/families", "sparsearch/config")),
        (TASK_TYPES, ("search/tasks/types", "sparsearch/config/tasks")),
    ],
)
def test_no_strategy_family_or_task_type_is_named_in_general_code(registry, home):
    words = {
        *KINDS,
        "clip",
        "head",
        "full",
        "random",
        "probe",
        "even",
        "magnitude",
    }  # options are called so too
    wanted = [n for n in registry if n not in words]
    assert names_of(wanted, *home) == []


def test_every_package_says_what_is_in_it():
    for room in ROOMS:
        for file in (ROOT / room).rglob("__init__.py"):
            if "migrations" not in file.parts:
                assert len(ast.get_docstring(ast.parse(file.read_text())) or "") > 20, file


RETIRED = {
    "Band", "CutWatch", "Exchange", "Faded", "IdleUnits", "Listener", "Masked", "MaskPrices", "Moments",
    "OptunaLoop", "OuterLoop", "Passing", "Place", "Planned", "Problem", "Proposals", "Race", "Shelf",
    "Sizes", "Slot", "Workbench", "attach_anew", "attach_units", "cut_out", "cut_prices", "cut_units",
    "even", "know_pooler", "kept", "narrow", "prune_prices", "recount", "sections_of", "start_of",
    "together", "units_cut",
}  # fmt: skip
"""Names that meant several things, or nothing to a newcomer."""


def test_retired_names_do_not_come_back():
    found = set()
    for file in files():
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
    assert sorted(found & RETIRED) == []
