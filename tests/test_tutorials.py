"""The tutorials, followed from their first block to the last; what they say is printed is compared with what is."""

from __future__ import annotations

import doctest
import re
import shutil
from pathlib import Path

import pytest

from sparsearch.testing import tiny_model
from sparsearch.testing.tiny_model import save_tiny_model
from tests.helpers.pages import Reader, blocks_of, matches, simplified, stand_ins

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Somebody in a folder with the demo's data and a tiny model, as the page on tutorials says."""
    shutil.copytree(ROOT / "examples" / "demo", tmp_path / "examples" / "demo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    reader = Reader(tmp_path, monkeypatch)
    yield reader
    reader.end()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_does_what_it_says(page, reader):
    text = page.read_text()
    if "`{path: tiny}`" in text:
        save_tiny_model("tiny", "causal-lm" if "causal-lm" in text else "classification")
    reader.follow(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_runs_every_block_and_says_what_the_tests_put_in(page):
    text = page.read_text()
    blocks = blocks_of(text)
    assert {block.language for block in blocks} <= {"bash", "python", "text", "yaml"}
    assert len(blocks) == len(re.findall(r"^```", text, re.M)) / 2
    assert all(block.is_run for block in blocks)
    everything = "".join(block.text for block in blocks)
    for here, _ in stand_ins(text):
        assert here in everything, here
    assert f"(tutorials/{page.name})" in (ROOT / "docs" / "tutorials.md").read_text()


def test_the_tiny_model_reads_any_text():
    failed, attempted = doctest.testmod(tiny_model)
    assert failed == 0 and attempted > 0
    with pytest.raises(
        ValueError, match="no tiny model for 'speech': choose classification or causal-lm"
    ):
        save_tiny_model("nowhere", "speech")


def test_a_page_that_says_something_else_is_found():
    printed = simplified("best   0.8267\n\nstructure d4d854af\n", measured=False)
    assert matches(simplified("best 0.8267\n...", measured=False), printed)
    assert not matches(simplified("best 0.8268\n...", measured=False), printed)
    measured = simplified("best 0.1\nstructure 00000000", measured=True)
    assert matches(measured, simplified(printed, measured=True))
    assert not matches(measured, simplified("worst 0.1\nstructure 00000000", measured=True))
