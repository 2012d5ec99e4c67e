"""The report of a study: one small file that needs no network, with everything escaped."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from sparsearch.errors import NotFoundError
from sparsearch.results import Owner, Store, StudySpec, Trial
from sparsearch.results.report.study_report import report_page
from sparsearch.results.report.summary import summarise
from sparsearch.results.store.connection.database import open_database
from sparsearch.results.store.writing import outcomes
from sparsearch.results.store.writing.lease import Claim
from sparsearch.spaces.budget import Budget
from sparsearch.testing.store_conformance import sample_outcome
from tests.helpers.command_line import call
from tests.helpers.filled_study import CONFIG, LARGE, SMALL, fill, plan

MARKUP = "</script><b id=x>&"


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'report.db'}"


def figure(page, name):
    (text,) = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', page)
    return json.loads(text)


def page_of(url, study):
    with Store.open(url, create=False) as store:
        return report_page(store, study)


def test_it_shows_means_intervals_and_the_best_structures(url):
    fill(url, "filled", plan())
    page = page_of(url, "fill")
    means = {t["name"]: t for t in figure(page, "scores-parameters")["data"]}
    assert means["s3pet"]["y"] == pytest.approx([0.81, 0.92])
    assert means["s3pet"]["error_y"]["array"] == pytest.approx([0.01414, 0.01414], abs=1e-5)
    assert means["s3pet, single seeds"]["visible"] == "legendonly"
    assert len(means["s3pet, single seeds"]["y"]) == 4
    for words in (
        "finished: 12 of 12 trials",
        "0.9200 ± 0.0141",
        "budget 0.01%",
        "does not beat random",
    ):
        assert words in page, words
    with Store.open(url, create=False) as store:
        best = store.best(max_trainable_params=100)
    assert best.structure.hash[:12] in page
    assert page.count('<svg class="map"') == 2
    assert figure(page, "intervals")["data"][0]["x"] == pytest.approx([-0.03, 0.03])


def test_text_of_users_is_text(url):
    failed = replace(sample_outcome(state="failed", structure=False), message=MARKUP)
    trial = Trial(12, "s3pet", SMALL, 2)
    named = Trial(13, "s3pet", Budget(max_trainable_params=50, text=MARKUP), 0)
    pairs = [*plan(), (trial, failed), (named, sample_outcome(0.5, 40))]
    config = json.dumps({"search": {"strategy": "s3pet"}})
    fill(url, MARKUP, pairs, config)
    page = page_of(url, MARKUP)
    assert "<b id=x>" not in page and page.count("&lt;b id=x&gt;") > 3
    for name in ("scores-parameters", "intervals"):
        assert figure(page, name)["data"]


def test_nothing_comes_from_elsewhere(url):
    fill(url, "filled", plan())
    page = page_of(url, "filled")
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)\s*=", page)
    assert "@import" not in page


def test_an_unfinished_study_has_a_report_too(url):
    study = fill(url, "filled", [])
    assert "finished: 0 of 0 trials" in page_of(url, "filled")
    assert replace(study, trials=3).state == "unfinished"
    assert replace(study, trials=3, owner="here:1").state == "running"


def test_ten_thousand_trials_make_a_small_file(url):
    cells = [(s, b) for s in ("s3pet", "random", "probe", "lora-qv") for b in (SMALL, LARGE)]
    listed = [
        Trial(n, cells[n % len(cells)][0], cells[n % len(cells)][1], n // len(cells))
        for n in range(10_000)
    ]
    spec = StudySpec("large", CONFIG, "toy", "trec", "accuracy", 1_000_000, tuple(listed))
    with Store.open(url, create=True) as store:
        store.begin_study(spec)
    database = open_database(url, create=True)
    with database.transaction() as connection:  # one for all of them
        for trial in listed:
            score = 0.5 + (trial.number * 7919 % 1000) / 2000
            outcome = sample_outcome(score, 40 + trial.number % 50, layer=trial.number % 6)
            outcome = replace(outcome, history=(0.5, 0.6, score))
            outcomes.finish(connection, Claim("large", Owner.current()), trial.number, outcome)
    database.engine.dispose()
    page = page_of(url, "large")
    assert len(page.encode()) < 5_000_000
    assert len(figure(page, "curves")["data"]) == len(cells)
    assert len(figure(page, "scores-parameters")["data"]) == 2 * 4


def test_the_command_writes_it(url, tmp_path):
    fill(url, "filled", plan())
    out = tmp_path / "report.html"
    assert call("report", "filled", "--out", str(out), "--db", url).code == 0
    assert out.read_text(encoding="utf-8") == page_of(url, "filled")
    done = call("report", "filled", "--out", str(tmp_path / "no" / "r.html"), "--db", url)
    assert done.code == 1 and "mkdir -p" in done.err
    assert call("report", "filled", "--out", "r.txt", "--db", url).code == 2
    with pytest.raises(NotFoundError, match="there is no study 'none'"):
        page_of(url, "none")


@pytest.mark.parametrize(
    ("budget", "first"),
    [(Budget(max_trainable_params=100), "s3pet"), (Budget(max_bytes=9084), "random")],
)
def test_equal_scores_go_by_what_the_budget_counts(url, budget, first):
    """And a warning names what stores far more than it trains."""
    pairs = [
        (Trial(0, "s3pet", budget, 0), sample_outcome(0.9, 80, stored=9000)),
        (Trial(1, "random", budget, 0), sample_outcome(0.9, 90, stored=400)),
    ]
    study = fill(url, "equal", pairs)
    with Store.open(url, create=False) as store:
        summary = summarise(study, store.trials("equal"))
    (found,) = summary.budgets
    assert found.strategies[0].strategy == found.best.strategy == first
    (warning,) = summary.warnings
    assert "s3pet store far more" in warning and "9,000 stored bytes are 28 times" in warning
    assert warning in page_of(url, "equal") and "9,000" in page_of(url, "equal")
