"""The pages in a real Chromium: a study from the form to its deletion, in light, dark and phone width, audited by axe.

It needs Playwright and axe (the extra ``browser``) and Chromium, and is skipped without them. SPARSEARCH_BROWSER_STUDY
names another study file, with its data below its folder, SPARSEARCH_SCREENSHOTS a folder for pictures.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)  # fmt: skip

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]

FIELDS = [
    "name",
    "model.path",
    "task.data.path",
    "task.data.data_files.train",
    "task.data.data_files.validation",
    "task.data.data_files.test",
    "task.text",
    "task.label",
    "task.metric",
    "space",
    "budgets",
    "baselines",
    "seeds",
]
PATIENCE = 1_500_000
SCREENSHOTS = os.environ.get("SPARSEARCH_SCREENSHOTS")


@pytest.fixture
def asked(study, tiny_folder, tiny_data):
    """A study and the folders of its data and model."""
    file = os.environ.get("SPARSEARCH_BROWSER_STUDY")
    if file is None:
        return study, (tiny_folder, tiny_data)
    return yaml.safe_load(Path(file).read_text()), (Path(file).resolve().parent,)


@pytest.fixture
def address(asked, tmp_path):
    """A service in a process of its own."""
    roots = [option for root in asked[1] for option in ("--root", str(root))]
    command = [sys.executable, "-m", "sparsearch.cli.main", "serve", "--port", "0", *roots,
               "--db", f"sqlite:///{tmp_path / 'pages.db'}", "--launches", str(tmp_path / "launches")]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        found = re.search(r"http://[^/]+", server.stderr.readline())
        yield found[0]
        server.terminate()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Look:
    """A window of the browser that remembers what went wrong."""

    def __init__(self, browser, scheme="light", width=1280):
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})  # fmt: skip
        self.page = self.context.new_page()
        self.scheme, self.width, self.wrong = scheme, width, []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.wrong.append(f"page error: {error}"))

    def _said(self, message):
        if message.type in ("error", "warning"):
            self.wrong.append(f"{message.type}: {message.text}")

    def audit(self, name):
        """No serious issue for who cannot see, nothing wider than the window; a picture."""
        self.page.wait_for_load_state("networkidle")
        for issue in axe.Axe().run(self.page).response["violations"]:
            if issue["impact"] in ("serious", "critical"):
                self.wrong.append(f"{name}: {issue['id']}: {issue['nodes'][0]['target']}")
        if self.page.evaluate("document.documentElement.scrollWidth") > self.width:
            self.wrong.append(f"{name} is wider than {self.width} pixels")
        if SCREENSHOTS:
            file = f"{name}-{self.scheme}-{self.width}.png"
            self.page.screenshot(path=Path(SCREENSHOTS) / file, full_page=True)


def fill_form(page, study):
    rest = copy.deepcopy(study)
    for field in FIELDS:
        *path, last = field.split(".")
        place = rest
        for key in path:
            place = place.get(key, {})
        value = place.pop(last, None)
        text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)
        page.fill(f'[name="{field}"]', "" if value is None else text.strip())
    page.fill("#rest", yaml.safe_dump({k: v for k, v in rest.items() if v}))


def test_a_study_from_the_form_to_its_end(asked, address, browser, tmp_path):
    study, look = asked[0], Look(browser)
    page, name = look.page, study["name"]
    page.goto(f"{address}/")
    look.audit("empty")
    page.click("text=Launch one")
    fill_form(page, study)
    page.fill('[name="budgets"]', "{max_trainable_params: many}")
    page.click("text=What would it buy?")
    page.wait_for_selector("#problems >> text=budgets")
    assert look.wrong.pop().startswith("error: Failed to load resource"), "it was refused"
    page.click("#problems button")
    fill_form(page, study)
    page.click("text=What would it buy?")
    page.wait_for_selector("#planned td")
    look.audit("launch")
    page.click("#go")
    page.wait_for_url(f"{address}/studies/{name}")
    page.wait_for_selector("#running tbody tr", timeout=PATIENCE)
    look.audit("running")
    page.wait_for_selector("#state >> text=finished", timeout=PATIENCE)
    page.wait_for_selector(".js-plotly-plot .point")
    look.audit("study")
    assert page.locator("#progress progress").evaluate("bar => bar.value === bar.max")
    page.click("text=single seeds too")
    page.wait_for_selector("text=random, single seeds")

    page.locator('[aria-label="best structures"] a').first.click()
    page.wait_for_selector("svg.map rect")
    look.audit("structure")
    structure = page.url
    with page.expect_download(timeout=PATIENCE) as download:
        page.click('a.button:text-is("spec")')
    with zipfile.ZipFile(download.value.path()) as archive:
        assert any(file.endswith("structure.json") for file in archive.namelist())
    page.click('a.button:text-is("random")')
    page.wait_for_selector("text=candidates are the same in both")
    look.audit("compare")

    shown = {"list": "/", "study": f"/studies/{name}", "trials": f"/studies/{name}/trials",
             "trial": f"/studies/{name}/trials/0", "structure": structure.removeprefix(address),
             "places": "/places", "clone": f"/launch?clone={name}"}  # fmt: skip
    for scheme, width in (("dark", 1280), ("light", 390)):
        other = Look(browser, scheme, width)
        for title, path in shown.items():
            other.page.goto(address + path)
            other.audit(title)
        assert other.wrong == []

    page.goto(f"{address}/studies/{name}")
    page.once("dialog", lambda dialog: dialog.accept("another name"))
    page.click("text=Delete")
    page.once("dialog", lambda dialog: dialog.accept(name))
    page.click("text=Delete")
    page.wait_for_selector("text=There is no study yet.")
    assert look.wrong == []
