"""The documentation as a site: what `make site` builds, and what its first page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def introduction(page: str) -> str:
    """The first paragraph under the title of a page."""
    return (ROOT / page).read_text().split("\n\n")[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a strict build: a link or an anchor that leads nowhere, or a page that no menu has, ends it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environ = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_three_sentences_say_what_it_does_on_both_first_pages():
    text = introduction("README.md")
    assert text == introduction("docs/index.md")
    assert len(re.findall(r"\.(?=\s[A-Z]|$)", text)) == 3


def test_pages_load_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 80
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"?([^\s\">]+)", page.read_text()
        )
        assert loaded and not [url for url in loaded if re.match(r"(\w+:)?//", url)], page


def test_files_that_pages_link_to_are_in_the_site(site):
    page = (site / "guide" / "study-file.html").read_text()
    (link,) = re.findall(r'href="([^"]*demo\.yaml)"', page)
    assert (site / "guide" / link).read_bytes() == (ROOT / "examples" / "demo.yaml").read_bytes()
