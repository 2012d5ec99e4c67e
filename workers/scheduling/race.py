"""The race: which strategies need no further seeds, because the recommendation at their budget would not change.

Seeds are run one after the other. Before each further one a *look* completes the table of scores many times, from what
is known so far (``_complete``), and reads off every completion what the report would recommend (``recommended``). A
strategy is left out where the recommendation without it is another one in few of the completions. The share in which
it is, added up over all looks and budgets of a study, stays within ``ALLOWED``: the probability that the race ends
with another recommendation than the exhaustive study, as far as the model below holds.

This is stochastic curtailment by predictive probability: Spiegelhalter, Freedman and Blackburn, "Monitoring clinical
trials: conditional or predictive power?" (1986), for a selection among several arms.

The model: at a budget, strategy ``i`` scores ``m_i + u_k + e_ik`` with seed ``k``. The effect ``u_k`` of a seed is
common to all, and no recommendation depends on it. ``m_i`` has a flat prior, ``e_ik`` is normal with variance
``v * w_i``: ``v`` is the study's, and ``w_i`` says that strategies differ in it (scaled inverse chi-square with
``_UNEVEN`` degrees of freedom). After one seed ``v`` is known from how far the scores are from strategy + budget; true
interactions are in it, so it is rather too large. Later seeds add the residuals of strategy + seed at each budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sparsearch.results.report.comparison import CONFIDENCE
from sparsearch.results.report.recommendation import RACE_ERROR

__all__ = ["ALLOWED", "ERROR", "Contest", "Standing", "recommended", "standing"]

ERROR = RACE_ERROR
ALLOWED = 0.7 * ERROR
"""What the looks of a study may spend by their own account: they choose the least of many estimates, and the model is
not the world. The simulated studies of the tests change at ``ERROR`` or less with it."""

_DRAWS = 1000
_UNEVEN = 3
_LEAST_FREEDOM = 3
_FLOOR = 1e-3
"""Least standard deviation, as a share of the largest score: where few rows score alike, something varies still."""

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Contest:
    """The strategies of one budget.

    Attributes:
        scores: Of each strategy those on validation, in the order of the study's seeds, as far as they are known; NaN
            where a trial ended without one.
        paid: For each limit of the budget that counts what is paid, what each strategy pays. Of those that are not
            beaten the cheapest is recommended; where nothing is paid, the best mean.
    """

    scores: Mapping[str, Sequence[float]]
    paid: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class Standing:
    """How far a race is.

    Attributes:
        seeds: How many of the study's seeds were looked at.
        running: For each budget the strategies that get further seeds.
        answers: For each budget the strategy that is recommended already, where only one is left.
        risk: What was spent of ``ALLOWED``.
        deviation: Standard deviation of a score over seeds, as estimated at the last look; None before there is one.
    """

    seeds: int
    running: tuple[tuple[str, ...], ...]
    answers: tuple[str | None, ...]
    risk: float = 0.0
    deviation: float | None = None


def standing(
    contests: Sequence[Contest], seeds: int, error: float = ALLOWED, looks: int | None = None
) -> Standing:
    """Where a race stands: a function of scores alone, so a study that goes on decides what it decided before.

    Args:
        contests: One for each budget.
        seeds: How many the study has.
        error: See ``ALLOWED``; below 0 nothing is left out.
        looks: How many to take at most; all if not given.

    >>> a, b = [0.90, 0.91, 0.90], [0.60, 0.62, 0.61]
    >>> known = [Contest({"a": a[:1], "b": b[:1]}), Contest({"a": a[:1], "b": [0.61]})]
    >>> standing(known, 3).running
    ((), ())
    >>> standing(known, 3).answers
    ('a', 'a')
    """
    left = [tuple(contest.scores) for contest in contests]
    state, risk, deviation = 0, 0.0, None
    for look in range(1, seeds if looks is None else looks + 1):
        if any(_waits(c, names, look) for c, names in zip(contests, left, strict=True)):
            break
        left = [_without_failed(c, names, look) for c, names in zip(contests, left, strict=True)]
        fields = [_Field.of(c, names, look) for c, names in zip(contests, left, strict=True)]
        noise = _noise(contests, fields)
        state = look
        if noise is None:
            continue
        deviation = noise.deviation
        rng = np.random.default_rng(look)
        orders = [_order(f, noise, seeds, rng) if f.is_open else [] for f in fields]
        cuts, spent = _spend(orders, error - risk)
        risk += spent
        left = [
            tuple(n for n in names if n not in {step.dropped for step in order[:cut]})
            for names, order, cut in zip(left, orders, cuts, strict=True)
        ]
    alone = [
        names[0] if _is_decided(contest, names) else None
        for contest, names in zip(contests, left, strict=True)
    ]
    running = tuple(() if a is not None else names for a, names in zip(alone, left, strict=True))
    return Standing(state, running, tuple(alone), risk, deviation)


def recommended(scores: Floats, paid: Floats) -> Indices:
    """What the report recommends, for many tables of scores at once.

    A strategy is beaten where the best mean exceeds its own with a paired t interval that excludes zero
    (``results.report.recommendation``); the cheapest of the others is recommended, of equally cheap ones the best.

    Args:
        scores: (tables, strategies, seeds), two seeds or more.
        paid: (limits, strategies); without a limit the best mean is recommended.

    Returns:
        Index of a strategy: (limits or 1, tables).
    """
    return _Tables.of(scores, paid).recommended(list(range(scores.shape[1])))


class _Tables(NamedTuple):
    """Completed tables of scores.

    Attributes:
        means: (tables, strategies).
        beats: (tables, strategies, strategies): whether the first one's lead over the second excludes zero.
        paid: (limits, strategies).
    """

    means: Floats
    beats: npt.NDArray[np.bool_]
    paid: Floats

    @classmethod
    def of(cls, scores: Floats, paid: Floats) -> _Tables:
        from scipy.special import stdtrit

        tables, strategies, seeds = scores.shape
        means = scores.mean(2)
        reach = float(stdtrit(seeds - 1, (1 + CONFIDENCE) / 2)) / np.sqrt(seeds)
        beats = np.zeros((tables, strategies, strategies), dtype=bool)
        for a, b in combinations(range(strategies), 2):
            ahead = scores[:, a] - scores[:, b]
            lead, error = ahead.mean(1), reach * ahead.std(1, ddof=1)
            beats[:, a, b], beats[:, b, a] = lead > error, -lead > error
        return cls(means, beats, paid)

    def recommended(self, among: Sequence[int]) -> Indices:
        """As the function of that name, among some of the strategies."""
        chosen, rows = np.array(among), np.arange(len(self.means))
        means, found = self.means[:, chosen], []
        for cost in self.paid if len(self.paid) else np.zeros((1, self.means.shape[1])):
            cost = cost[chosen]
            cheap_first = np.argsort(cost, kind="stable")
            best = cheap_first[means[:, cheap_first].argmax(1)]
            if len(self.paid):
                beaten = self.beats[rows, chosen[best]][:, chosen]
                price = np.where(beaten, np.inf, cost)
                cheapest = price == price.min(1, keepdims=True)
                best = np.where(cheapest, means, -np.inf).argmax(1)
            found.append(chosen[best])
        return np.array(found)


@dataclass(frozen=True)
class _Field:
    """Strategies still in the race at a budget: scores (strategies, seeds so far), paid (limits, strategies)."""

    names: tuple[str, ...]
    scores: Floats
    paid: Floats

    @classmethod
    def of(cls, contest: Contest, names: Sequence[str], seeds: int) -> _Field:
        names = [] if _is_decided(contest, names) else names
        scores = [list(contest.scores[name])[:seeds] for name in names]
        paid = [[cost[name] for name in names] for cost in contest.paid]
        return cls(
            tuple(names),
            np.array(scores, dtype=float).reshape(len(names), seeds),
            np.array(paid, dtype=float).reshape(len(paid), len(names)),
        )

    @property
    def is_open(self) -> bool:
        return len(self.names) > 1 and bool(np.isfinite(self.scores).all())


@dataclass(frozen=True)
class _Noise:
    """What is known of the variance of a score over seeds: a sum of squares and its degrees of freedom."""

    squares: float
    freedom: float

    @property
    def deviation(self) -> float:
        return float(np.sqrt(self.squares / self.freedom))


@dataclass(frozen=True)
class _Step:
    """A strategy that is left out after others: its name, what all of them save a seed in trials, and their risk."""

    dropped: str = ""
    saved: int = 0
    risk: float = 0.0


def _is_decided(contest: Contest, names: Sequence[str]) -> bool:
    """Whether one of several strategies is left."""
    return len(names) == 1 < len(contest.scores)


def _waits(contest: Contest, names: Sequence[str], seeds: int) -> bool:
    """Whether trials that a look needs have not ended yet; a budget that is decided needs no more."""
    short = any(len(contest.scores[name]) < seeds for name in names)
    return short and not _is_decided(contest, names)


def _without_failed(contest: Contest, names: Sequence[str], seeds: int) -> tuple[str, ...]:
    """Those with a score for each seed so far; all, if none has."""
    good = tuple(n for n in names if np.isfinite(list(contest.scores[n])[:seeds]).all())
    return good or tuple(names)


def _noise(contests: Sequence[Contest], fields: Sequence[_Field]) -> _Noise | None:
    """Estimate the variance of a score over seeds; None while nothing tells of it."""
    squares = freedom = 0.0
    everywhere = (
        [s for s in contests[0].scores if all(s in c.scores for c in contests)] if contests else []
    )
    first = np.array([[c.scores[s][0] for c in contests] for s in everywhere], dtype=float)
    first = first[np.isfinite(first).all(1)] if first.size else first
    if first.size:
        residual, free = _residual(first)
        if free:
            freedom = min(_LEAST_FREEDOM, free)
            squares = float((residual**2).sum()) / free * freedom
    for one in fields:
        if one.is_open and one.scores.shape[1] > 1:
            residual, free = _residual(one.scores)
            squares, freedom = squares + float((residual**2).sum()), freedom + free
    if not freedom:
        return None
    largest = max((float(np.abs(f.scores).max()) for f in fields if f.is_open), default=0.0)
    return _Noise(max(squares, freedom * (_FLOOR * largest) ** 2), freedom)


def _residual(table: Floats) -> tuple[Floats, int]:
    """What row + column do not explain of a table, and its degrees of freedom."""
    rows, columns = table.shape
    residual = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    return residual, (rows - 1) * (columns - 1)


def _complete(one: _Field, noise: _Noise, seeds: int, rng: np.random.Generator) -> Floats:
    """Draw the scores of the seeds to come: (draws, strategies, seeds)."""
    count, known = one.scores.shape
    common = noise.squares / rng.chisquare(noise.freedom, (_DRAWS, 1))
    own = (_UNEVEN - 2) / rng.chisquare(_UNEVEN, (_DRAWS, count))
    sigma = np.sqrt(common * own)
    mean = one.scores.mean(1) + sigma * rng.standard_normal((_DRAWS, count)) / np.sqrt(known)
    drawn = np.empty((_DRAWS, count, seeds))
    drawn[:, :, :known] = one.scores
    further = rng.standard_normal((_DRAWS, count, seeds - known))
    drawn[:, :, known:] = mean[:, :, None] + sigma[:, :, None] * further
    return drawn


def _order(one: _Field, noise: _Noise, seeds: int, rng: np.random.Generator) -> list[_Step]:
    """In which order the strategies of a budget may be left out, and what the recommendation then risks."""
    tables = _Tables.of(_complete(one, noise, seeds, rng), one.paid)
    left, steps = list(range(len(one.names))), list[_Step]()
    truth = tables.recommended(left)
    while len(left) > 1:
        risks = {}
        for index in left:
            without = tables.recommended([i for i in left if i != index])
            risks[index] = float((without != truth).any(0).mean())
        least = min(left, key=lambda i: (risks[i], -i))
        left.remove(least)
        saved = len(one.names) - (len(left) if len(left) > 1 else 0)
        steps.append(_Step(one.names[least], saved, risks[least]))
    return steps


def _spend(orders: Sequence[Sequence[_Step]], allowed: float) -> tuple[list[int], float]:
    """How many steps to take at each budget: while it is allowed, those that risk least for a trial saved."""
    cuts, spent = [0] * len(orders), 0.0
    while True:
        moves = []
        for budget, order in enumerate(orders):
            done = order[cuts[budget] - 1] if cuts[budget] else _Step()
            for cut in range(cuts[budget] + 1, len(order) + 1):
                step = order[cut - 1]
                more, extra = step.saved - done.saved, step.risk - done.risk
                if spent + extra <= allowed:
                    moves.append((extra / more, -more, budget, cut, extra))
        if not moves:
            return cuts, spent
        _, _, budget, cut, extra = min(moves)
        cuts[budget], spent = cut, spent + extra
