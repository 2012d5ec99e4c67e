"""Pictures of studies: every point lies where its numbers say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from sparsearch.results import Store, Trial
from sparsearch.results.report.pareto_figure import pareto_figure
from sparsearch.results.report.study_figures import curves_figure, scores_figure
from sparsearch.results.report.summary import summarise
from sparsearch.testing.store_conformance import sample_outcome
from tests.helpers.filled_study import SMALL, fill


@pytest.fixture
def db(tmp_path):
    return f"sqlite:///{tmp_path / 'db'}"


def told(db, *outcomes):
    """The record, the trials and the front of a study with these outcomes, one a seed."""
    pairs = [(Trial(n, "s3pet", SMALL, n), outcome) for n, outcome in enumerate(outcomes)]
    study = fill(db, "pictured", pairs)
    with Store.open(db, create=False) as store:
        return study, store.scores("pictured"), store.pareto("pictured")


def test_an_epoch_without_a_score_is_left_out_at_its_own_place(db):
    nan = math.nan
    histories = [(nan, 0.5, nan, 0.7), (nan, 0.3, nan, nan, 0.9)]
    outcomes = [replace(sample_outcome(0.7), history=history) for history in histories]
    study, trials, _ = told(db, *outcomes)
    (line,) = curves_figure(summarise(study, trials), trials).data
    assert list(zip(line.x, line.y, strict=True)) == [(2, 0.4), (4, 0.7), (5, 0.9)]


def test_structures_that_train_nothing_have_a_place(db):
    """Heads and neurons that are removed cost no parameters; powers of ten have no place for 0."""
    study, trials, front = told(db, *[replace(sample_outcome(0.7), trainable_params=0)] * 2)
    for figure in (pareto_figure(study, trials, front), scores_figure(summarise(study, trials))):
        assert figure.layout.xaxis.type == "linear"
    for axis in ("parameters", "bytes"):
        study, trials, front = told(f"{db}-{axis}", sample_outcome(0.7), sample_outcome(0.6))
        assert scores_figure(summarise(study, trials), axis).layout.xaxis.type == "log"
        assert pareto_figure(study, trials, front).layout.xaxis.type == "log"
