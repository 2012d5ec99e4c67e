"""Who may import whom, what is packaged, and how fast the face loads."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("spaces", "search", "results", "workers", "service")
LEAVES = {"config", "documents", "errors"}
MAY_IMPORT = {
    "spaces": LEAVES | {"spaces"},
    "search": LEAVES | {"search", "spaces"},
    "results": LEAVES | {"results", "spaces"},
    "workers": LEAVES | {"workers", "search", "results", "spaces"},
    "service": LEAVES | {"service", "workers", "search", "results", "spaces"},
}
ONLY = {
    "sqlalchemy": "results",
    "alembic": "results",
    "onnxruntime": "results",
    "ray": "workers",
    "optuna": "workers",
    "fastapi": "service",
    "httpx2": "service",
    "uvicorn": "service",
}
ELSEWHERE = {("ray", "ray_jobs.py")}
"""Drivers start as jobs of Ray; trials run by it in the workers' room alone."""


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files_of(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room):
    for file in files_of(room):
        for name in imports_of(file):
            parts = name.split(".")
            if parts[0] == "sparsearch" and len(parts) > 1 and parts[1] != "__version__":
                assert parts[1] in MAY_IMPORT[room], f"{file.name} imports {name}"
            assert parts[0] not in ROOMS, f"{file.name} imports {name}"


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_leaves_import_no_room(leaf):
    files = sorted((ROOT / "sparsearch").glob(f"{leaf}.py")) + files_of(f"sparsearch/{leaf}")
    assert files
    for name in set().union(*map(imports_of, files)):
        assert not name.startswith("sparsearch.") or name.split(".")[1] in LEAVES


@pytest.mark.parametrize(("library", "room"), ONLY.items())
def test_libraries_stay_in_their_room(library, room):
    for folder in (*ROOMS, "sparsearch"):
        if folder != room:
            for file in files_of(folder):
                if "testing" in file.parts or (library, file.name) in ELSEWHERE:
                    continue
                assert not any(n.split(".")[0] == library for n in imports_of(file)), file


def test_nothing_unsafe_is_imported_or_switched_on():
    for folder in (*ROOMS, "sparsearch", "benchmarks", "examples"):
        for file in files_of(folder):
            assert not {"pickle", "dill", "shelve", "marshal"} & {
                n.split(".")[0] for n in imports_of(file)
            }
            text = file.read_text()
            assert "trust_remote_code=True" not in text and "shell=True" not in text, file


@pytest.mark.timeout(120)
def test_a_wheel_holds_every_module_and_data_file(tmp_path):
    source = tmp_path / "source"
    names = [*ROOMS, "sparsearch", "pyproject.toml", "setup.py", "README.md", "LICENSE"]
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", *names],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in listed:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "-w",
            str(tmp_path),
            str(source),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    for name in listed:
        if name != "setup.py" and name.endswith(
            (".py", "presets/s3pet-m.yaml", ".schema.json", "py.typed")
        ):
            expected = name if name.startswith("sparsearch/") else f"sparsearch/{name}"
            assert expected in inside, name


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sparsearch, sys; "
        "heavy = {'torch', 'transformers', 'sqlalchemy', 'datasets', 'plotly', 'ray'} & set(sys.modules); "
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves():
    import sparsearch as ss

    for name in ss.__all__:
        assert getattr(ss, name) is not None
    with pytest.raises(AttributeError):
        _ = ss.nothing


@pytest.mark.parametrize(("former", "name"), [("align", "calibrate"), ("slim", "compact")])
def test_former_names_still_work_and_say_what_they_are_called_now(former, name):
    import sparsearch as ss

    with pytest.warns(FutureWarning, match=f"sparsearch.{former} is called {name} now"):
        assert getattr(ss, former) is getattr(ss, name)
