"""The front of a study: the few of its trials that can answer ``best`` under some limits, or ``pareto``.

One trial beats another of its study where it has no lower score, no more parameters, no more FLOPs and
no fewer zeros, and comes before it in the order of ``best`` (score, then parameters, then number): it then fits
whatever the other one fits, and is preferred. The front is what nothing beats. Decision 17 has the proof
that this is enough, also with several writers at once.

What is stored compares exactly, since ``best`` may be asked for any sparsity. ``pareto`` takes shares to
hundredths of a percent, lest a beaten trial be listed for one weight more of 10 million that it prunes: so a
stored front may hold trials that ``pareto`` does not list, and lacks none that it does.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import BindParameter, Connection, and_, bindparam, or_, select, update

from sparsearch.results.store.tables import Base

if TYPE_CHECKING:
    from sparsearch.results.records import Best

__all__ = ["Point", "SHARE_DECIMALS", "enter", "pareto"]

SHARE_DECIMALS = 4
"""Shares of FLOPs and of weights that differ by less count as equal on a Pareto front."""

_TRIALS = Base.metadata.tables["trials"]
_trials = _TRIALS.c
_score: BindParameter[float] = bindparam("score")
_params: BindParameter[int] = bindparam("params")
_ratio: BindParameter[float] = bindparam("ratio")
_sparsity: BindParameter[float] = bindparam("sparsity")
_number: BindParameter[int] = bindparam("number")
_BEATS = and_(
    _trials.score >= _score,
    _trials.trainable_params <= _params,
    _trials.inference_flops_ratio <= _ratio,
    _trials.weight_sparsity >= _sparsity,
    or_(_trials.score > _score, _trials.trainable_params < _params, _trials.number < _number),
)
_IS_BEATEN = and_(
    _trials.score <= _score,
    _trials.trainable_params >= _params,
    _trials.inference_flops_ratio >= _ratio,
    _trials.weight_sparsity <= _sparsity,
    or_(_trials.score < _score, _trials.trainable_params > _params, _trials.number > _number),
)
_RIVALS = select(_trials.id, _BEATS.label("beats")).where(
    _trials.study_id == bindparam("study"), _trials.on_front, or_(_BEATS, _IS_BEATEN)
)


class Point(NamedTuple):
    """What a trial of a study reached.

    Attributes:
        study: Row of the study.
        number: Of the trial.
        score: On validation.
        params: Trainable parameters.
        ratio: FLOPs as a fraction of the dense backbone's.
        sparsity: Fraction of the backbone's weights that are zero or gone.
    """

    study: int
    number: int
    score: float
    params: int
    ratio: float
    sparsity: float


def enter(connection: Connection, point: Point) -> bool:
    """Whether a new trial is on its study's front; those that it beats leave it."""
    rivals = connection.execute(_RIVALS, point._asdict()).all()
    if any(rival.beats for rival in rivals):
        return False
    if rivals:
        beaten = _trials.id.in_([rival.id for rival in rivals])
        connection.execute(update(_TRIALS).where(beaten).values(on_front=False))
    return True


def pareto(front: Iterable[Best]) -> Iterator[Best]:
    """Those of a study's front that no other one beats, by trainable parameters, see ``Store.pareto``."""
    # Whatever beats a point stands before it. Of the points so far, for each sparsity, ratios and scores
    # keep a staircase, both ascending: all that the next one, with no fewer parameters, has to be above.
    stairs: dict[float, tuple[list[float], list[float]]] = {}
    for best in sorted(
        front,
        key=lambda b: (b.trainable_params, _ratio_of(b), -_sparsity_of(b), -b.score, b.trial),
    ):
        ratio, sparsity, score = _ratio_of(best), _sparsity_of(best), best.score
        as_sparse = (s for level, s in stairs.items() if level >= sparsity)
        if any(_height(*found, ratio) >= score for found in as_sparse):
            continue
        yield best
        ratios, scores = stairs.setdefault(sparsity, ([], []))
        i = bisect_right(ratios, ratio)
        end = bisect_right(scores, score, i)
        ratios[i:end] = [ratio]
        scores[i:end] = [score]


def _ratio_of(best: Best) -> float:
    return round(best.inference_flops_ratio, SHARE_DECIMALS)


def _sparsity_of(best: Best) -> float:
    return round(best.weight_sparsity, SHARE_DECIMALS)


def _height(ratios: Sequence[float], scores: Sequence[float], ratio: float) -> float:
    """The highest score of so few FLOPs."""
    i = bisect_right(ratios, ratio)
    return scores[i - 1] if i else -math.inf
