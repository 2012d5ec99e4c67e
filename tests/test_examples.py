"""Examples that people copy: doctests, the shipped studies, and the README's study file."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sparsearch.config.presets import preset_names
from sparsearch.config.reader import validate_study

ROOT = Path(__file__).parents[1]


def modules() -> list[str]:
    found = ["sparsearch"] + [
        f"sparsearch.{f.stem}" for f in (ROOT / "sparsearch").glob("[a-z]*.py")
    ]
    for room in ("spaces", "search", "results", "workers"):
        for file in (ROOT / room).rglob("*.py"):
            if "migrations" not in file.parts:
                found.append(
                    ".".join(("sparsearch", *file.relative_to(ROOT).with_suffix("").parts))
                )
    return sorted(name.removesuffix(".__init__") for name in found)


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_run(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda f: f.stem)
def test_shipped_studies_are_valid(file):
    _, problems = validate_study(yaml.safe_load(file.read_text()), file.parent)
    assert problems == []


def test_the_readmes_study_is_valid_and_its_preset_ships():
    text = (ROOT / "README.md").read_text()
    block = next(b for b in re.findall(r"```yaml\n(.*?)```", text, re.S) if "study.yaml" in b)
    sections, problems = validate_study(yaml.safe_load(block), ROOT)
    assert problems == []
    assert sections["study"].space.preset in preset_names()


@pytest.mark.parametrize(
    "document", ["README.md", "CHANGELOG.md", *(f"docs/{n}" for n in ("guide.md", "results.md"))]
)
def test_local_links_lead_somewhere(document):
    file = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
        if not target.startswith("http"):
            assert (file.parent / target).exists(), target


def test_demo_data_is_what_its_script_makes(tmp_path):
    script = (ROOT / "examples" / "make_demo_data.py").read_text()
    moved = tmp_path / "make_demo_data.py"
    moved.write_text(script)
    subprocess.run([sys.executable, str(moved)], check=True, cwd=tmp_path)
    for split in ("train", "validation", "test"):
        made = (tmp_path / "demo" / f"{split}.jsonl").read_bytes()
        assert made == (ROOT / "examples" / "demo" / f"{split}.jsonl").read_bytes()
