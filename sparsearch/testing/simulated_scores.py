"""Scores of whole studies from a model of what was measured, to try the race on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsearch.workers.scheduling.race import ALLOWED, Contest, Floats, recommended, standing

__all__ = ["Raced", "StudyScores", "race", "simulated_scores"]

_LIMITS = (800.0, 2300.0, 8000.0)
_GAINS = (0.0, 0.012, 0.018)
"""What more budget brings, and by which share it brings strategies closer to each other."""

_CLOSER = (1.0, 0.7, 0.4)
_DEVIATIONS = (0.0035, 0.005, 0.006, 0.007, 0.008, 0.010, 0.012)


@dataclass(frozen=True)
class StudyScores:
    """A study to its end.

    Attributes:
        truth: Mean score without noise, (strategies, budgets).
        scores: On validation, (strategies, budgets, seeds).
        paid: What each trains, (strategies, budgets).
    """

    truth: Floats
    scores: Floats
    paid: Floats

    def recommended(self) -> list[int]:
        """The exhaustive recommendation at each budget."""
        return [
            int(recommended(self.scores[None, :, b], self.paid[None, :, b])[0, 0])
            for b in range(self.scores.shape[1])
        ]


@dataclass(frozen=True)
class Raced:
    """What a race over a study came to.

    Attributes:
        recommended: At each budget.
        share: Of the trials that it ran.
    """

    recommended: list[int]
    share: float


def simulated_scores(rng: np.random.Generator) -> StudyScores:
    """Five strategies at three budgets with three seeds, as they are in ``docs/results`` on TREC, SST-2 and RTE.

    Most strategies are within half a point of each other, some are one or two points behind, some up to seven. The
    standard deviation of a score over seeds is 0.3 to 1.2 points, more where a strategy is far behind; a seed moves all
    strategies by 0.4 points. Scores are shares of 277 to 1,000 rows.
    """
    strategies, budgets, seeds = 5, len(_LIMITS), 3
    rows = int(rng.choice([277, 500, 872, 1000]))
    group = rng.choice([0, 0, 0, 1, 2], size=strategies)
    behind = np.select(
        [group == 0, group == 1],
        [rng.normal(0, 0.004, strategies), -rng.uniform(0.005, 0.02, strategies)],
        -rng.uniform(0.02, 0.07, strategies),
    )
    truth = rng.uniform(0.75, 0.94) + np.array(_GAINS) + np.outer(behind, _CLOSER)
    truth = truth + rng.normal(0, 0.0025, truth.shape)
    deviation = rng.choice(_DEVIATIONS, size=truth.shape) * np.exp(rng.normal(0, 0.2, truth.shape))
    deviation *= np.where((group == 2)[:, None], [2.0, 1.3, 1.0], 1.0)
    noise = rng.normal(0, 1, (*truth.shape, seeds)) * deviation[:, :, None]
    scores = truth[:, :, None] + rng.normal(0, 0.004, (1, budgets, seeds)) + noise
    # A uniform pattern leaves part of the budget unused, most others none; some are equal to the parameter.
    kind = rng.random((strategies, 1))
    used = np.select(
        [kind < 0.4, kind < 0.7],
        [rng.uniform(0.6, 0.95, (strategies, 1)), rng.uniform(0.97, 1, truth.shape)],
        1.0,
    )
    return StudyScores(truth, np.round(scores * rows) / rows, np.floor(np.array(_LIMITS) * used))


def race(study: StudyScores, error: float = ALLOWED) -> Raced:
    """Run a study's trials as the race hands them out."""
    strategies, budgets, seeds = study.scores.shape
    names = [str(i) for i in range(strategies)]
    known = [{n: [float(study.scores[int(n), b, 0])] for n in names} for b in range(budgets)]
    paid = [[{n: float(study.paid[int(n), b]) for n in names}] for b in range(budgets)]
    while True:
        contests = [Contest(k, p) for k, p in zip(known, paid, strict=True)]
        now = standing(contests, seeds, error)
        asked = [(b, n) for b, running in enumerate(now.running) for n in running]
        if not asked or len(known[asked[0][0]][asked[0][1]]) == seeds:
            break
        for b, n in asked:
            known[b][n].append(float(study.scores[int(n), b, len(known[b][n])]))
    answers = []
    for b, answer in enumerate(now.answers):
        left = [int(n) for n in (now.running[b] if answer is None else [answer])]
        among = recommended(study.scores[None, left, b], study.paid[None, left, b])
        answers.append(left[int(among[0, 0])])
    return Raced(answers, sum(len(s) for k in known for s in k.values()) / study.scores.size)
