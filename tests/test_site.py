"""The documentation as a site: what `make site` builds, and what its first page says."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sparsearch as ss
from sparsearch import errors

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


def test_formulas_are_mathml_without_a_rest_of_latex(site):
    pages = sorted((site / "methods").glob("*.html"))
    formulas = [
        f for page in pages for f in re.findall(r"<math.*?</math>", page.read_text(), re.S)
    ]
    assert len(pages) == 6 and len(formulas) > 60
    assert not [formula for formula in formulas if "\\" in formula or "merror" in formula]
    assert not any('class="arithmatex"' in page.read_text() for page in site.rglob("*.html"))


def test_the_page_of_the_api_has_every_public_name(site):
    page = (site / "api.html").read_text()
    names = [name for name in ss.__all__ if name != "__version__"]
    for name in [*names, "Store.best", "Structure.load"]:
        assert f'id="sparsearch.{name}"' in page, name


def test_the_page_of_errors_has_the_messages_of_the_code(site):
    page = (site / "guide" / "errors.html").read_text()
    message = html.escape("--set … is not of the form key.path=value", quote=False)
    assert message in page and "allow more FLOPs" in page
    assert page.count("<tr>") > 200
    shown = set(re.findall(r"<h3 id=\"\w+\">(\w+)<", page))
    assert shown == set(errors.__all__)


@pytest.mark.parametrize("name", errors.__all__)
def test_each_error_has_a_line_that_explains_it(name):
    page = (ROOT / "docs" / "guide" / "errors.md").read_text()
    code = getattr(errors, name).exit_code
    assert re.search(rf"^\| [^|]*`{name}`[^|]* \| {code} \| .{{20,}} \| .+ \|$", page, re.M)
