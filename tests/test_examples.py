"""Examples that people copy: doctests, the shipped studies, and the README's study file."""

from __future__ import annotations

import doctest
import importlib.util
import json
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


def with_examples() -> list[str]:
    """Modules with an example that runs."""
    found = []
    for name in modules():
        place = importlib.util.find_spec(name).origin
        lines = Path(place).read_text().splitlines()
        if any(line.lstrip().startswith(">>>") and "+SKIP" not in line for line in lines):
            found.append(name)
    return found


@pytest.mark.parametrize("name", with_examples())
def test_docstring_examples_run(name):
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert failed == 0 and attempted > 0


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


def documents() -> list[str]:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [file.relative_to(ROOT).as_posix() for file in pages]


def anchors(file: Path) -> set[str]:
    """What a link to a heading of a page may say after its ``#``."""
    text = re.sub(r"```.*?```", "", file.read_text(), flags=re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("document", documents())
def test_local_links_lead_somewhere(document):
    file = ROOT / document
    for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = file.parent / path if path else file
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_page_of_results_leads_to_each_of_its_pages():
    folder = ROOT / "docs" / "results"
    links = re.findall(r"\]\(results/([^)#]+)", (ROOT / "docs" / "results.md").read_text())
    assert set(links) == {file.name for file in folder.glob("*.md")}


def test_demo_data_is_what_its_script_makes(tmp_path):
    script = (ROOT / "examples" / "make_demo_data.py").read_text()
    moved = tmp_path / "make_demo_data.py"
    moved.write_text(script)
    subprocess.run([sys.executable, str(moved)], check=True, cwd=tmp_path)
    for split in ("train", "validation", "test"):
        made = (tmp_path / "demo" / f"{split}.jsonl").read_bytes()
        assert made == (ROOT / "examples" / "demo" / f"{split}.jsonl").read_bytes()


def test_rows_of_e2e_become_prompts_and_completions(tmp_path):
    facts = [f"name[{number}], area[riverside]" for number in range(130)]
    for split in ("train", "validation", "test"):
        column, wrap = (
            ("ref", str) if split == "train" else ("references", lambda text: [text, ""])
        )
        lines = [json.dumps({"mr": mr, column: wrap(f"About {mr}")}) for mr in facts]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    script = ROOT / "examples" / "make_e2e_rows.py"
    subprocess.run([sys.executable, str(script), str(tmp_path), str(tmp_path / "out")], check=True)
    for split, count in (("train", 128), ("validation", 32), ("test", 64)):
        rows = [json.loads(x) for x in (tmp_path / "out" / f"{split}.jsonl").open()]
        assert len({row["prompt"] for row in rows}) == count
        assert all(r["prompt"][-1] == "\n" for r in rows)
        assert all(r["completion"] == f"About {r['prompt'][:-1]}" for r in rows)
