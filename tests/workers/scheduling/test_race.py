"""The race: it leaves out what would not change the recommendation, and little else changes it."""

from __future__ import annotations

import numpy as np
import pytest

from sparsearch.results import TrialRecord
from sparsearch.results.report.recommendation import recommend
from sparsearch.results.report.summary import Spread, StrategySummary
from sparsearch.testing.simulated_scores import StudyScores, race, simulated_scores
from sparsearch.workers.scheduling.race import ALLOWED, ERROR, Contest, recommended, standing


def test_the_recommendation_is_that_of_the_exhaustive_study():
    rng = np.random.default_rng(1)
    shares, losses, others = [], [], 0
    for _ in range(200):
        study = simulated_scores(rng)
        raced, full = race(study), study.recommended()
        shares.append(raced.share)
        others += raced.recommended != full
        losses += [
            study.truth[a, b] - study.truth[r, b]
            for b, (a, r) in enumerate(zip(full, raced.recommended, strict=True))
            if a != r
        ]
    assert others <= 200 * ERROR
    assert np.mean(losses) < 0.003
    assert np.mean(shares) < 0.62


def test_without_error_nothing_is_left_out_and_all_seeds_are_run():
    rng = np.random.default_rng(2)
    for _ in range(10):
        study = simulated_scores(rng)
        raced = race(study, error=-1.0)
        assert raced.share == 1.0
        assert raced.recommended == study.recommended()


def rows_of(scores, paid):
    return sorted(
        (
            StrategySummary(
                str(i), Spread(float(s.mean()), None, len(s)), None, float(p), 0.0, 1.0, 0.0
            )
            for i, (s, p) in enumerate(zip(scores, paid, strict=True))
        ),
        key=lambda row: (-row.validation.mean, row.trainable_params),
    )


def test_it_recommends_what_the_report_recommends():
    rng = np.random.default_rng(3)
    for _ in range(60):
        study: StudyScores = simulated_scores(rng)
        for b, answer in enumerate(study.recommended()):
            trials = [
                TrialRecord(
                    *("study", 3 * i + k, str(i), k, {}, "ok", "", float(value)),
                    *(0.5, None, 90, 7, 1.0, 1.5, 2**30, 1),
                )
                for i, values in enumerate(study.scores[:, b])
                for k, value in enumerate(values)
            ]
            rows = rows_of(study.scores[:, b], study.paid[:, b])
            (line,) = recommend(trials, rows, {"max_trainable_params": 9000})
            assert line.startswith(f"cheapest that is not beaten: {answer} ")


def test_equally_cheap_strategies_go_by_their_mean_and_no_limit_by_the_best():
    scores = np.array([[[0.90, 0.91], [0.905, 0.93], [0.5, 0.5]]])
    assert recommended(scores, np.array([[5.0, 5.0, 5.0]])).tolist() == [[1]]
    assert recommended(scores, np.array([[4.0, 5.0, 4.0], [9.0, 5.0, 9.0]])).tolist() == [[0], [1]]
    assert recommended(scores, np.zeros((0, 3))).tolist() == [[1]]


CLEAR = {"a": [0.90], "b": [0.60]}


def test_what_is_far_behind_gets_no_further_seed():
    now = standing([Contest(CLEAR), Contest({"a": [0.91], "b": [0.605]})], seeds=3)
    assert now.answers == ("a", "a")
    assert now.running == ((), ())
    assert 0 <= now.risk <= ALLOWED


@pytest.mark.parametrize(
    "contests",
    [
        pytest.param([Contest(CLEAR)], id="one budget and one seed tell of no variance"),
        pytest.param([Contest({"a": [0.9]}), Contest({"a": [0.8]})], id="one strategy"),
        pytest.param(
            [Contest({"a": [0.9], "b": []}), Contest(CLEAR)], id="a trial has not ended yet"
        ),
        pytest.param(
            [Contest({"a": [np.nan], "b": [np.nan]}), Contest(CLEAR)], id="nothing succeeded"
        ),
    ],
)
def test_what_is_not_known_goes_on(contests):
    now = standing(contests, seeds=3)
    assert now.running[0] == tuple(contests[0].scores)
    assert now.answers[0] is None


def test_what_failed_gets_no_further_seed_where_others_succeeded():
    failed = Contest({"a": [0.9], "b": [np.nan], "c": [0.9]})
    now = standing([failed], seeds=3)
    assert now.running == (("a", "c"),)


def test_a_race_that_goes_on_decides_what_it_decided_before():
    rng = np.random.default_rng(4)
    study = simulated_scores(rng)
    first = [{str(i): [float(s[b, 0])] for i, s in enumerate(study.scores)} for b in range(3)]
    paid = [[{str(i): float(p[b]) for i, p in enumerate(study.paid)}] for b in range(3)]
    before = standing([Contest(f, p) for f, p in zip(first, paid, strict=True)], 3)
    later = [
        {
            n: [*s, float(study.scores[int(n), b, 1])] if n in before.running[b] else s
            for n, s in f.items()
        }
        for b, f in enumerate(first)
    ]
    after = standing([Contest(f, p) for f, p in zip(later, paid, strict=True)], 3)
    assert after.seeds == 2
    for b in range(3):
        assert set(after.running[b]) <= set(before.running[b])
        assert before.answers[b] in (None, after.answers[b])
