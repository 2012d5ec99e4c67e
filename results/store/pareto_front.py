"""The front of a study: the few of its trials that can answer ``best`` under some limits, or ``pareto``.

One trial beats another of its study where it has no lower score, no more parameters, no more stored bytes, no more
FLOPs and no fewer zeros, and comes before it in the order of ``best`` (score, parameters, bytes, number): it then
fits whatever the other one fits, and is preferred. The front is what nothing beats. Decision 17 has the proof that this
is enough, also with several writers at once.

What is stored compares exactly, since ``best`` may be asked for any sparsity. ``pareto`` takes shares to
hundredths of a percent, lest a beaten trial be listed for one weight more of 10 million that it prunes: so a
stored front may hold trials that ``pareto`` does not list, and lacks none that it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import le
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
_bytes: BindParameter[int] = bindparam("bytes")
_ratio: BindParameter[float] = bindparam("ratio")
_sparsity: BindParameter[float] = bindparam("sparsity")
_number: BindParameter[int] = bindparam("number")
_BEATS = and_(
    _trials.score >= _score,
    _trials.trainable_params <= _params,
    _trials.stored_bytes <= _bytes,
    _trials.inference_flops_ratio <= _ratio,
    _trials.weight_sparsity >= _sparsity,
    or_(
        _trials.score > _score,
        _trials.trainable_params < _params,
        _trials.stored_bytes < _bytes,
        _trials.number < _number,
    ),
)
_IS_BEATEN = and_(
    _trials.score <= _score,
    _trials.trainable_params >= _params,
    _trials.stored_bytes >= _bytes,
    _trials.inference_flops_ratio >= _ratio,
    _trials.weight_sparsity <= _sparsity,
    or_(
        _trials.score < _score,
        _trials.trainable_params > _params,
        _trials.stored_bytes > _bytes,
        _trials.number > _number,
    ),
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
        bytes: Stored, see ``Structure.stored_bytes``.
        ratio: FLOPs as a fraction of the dense backbone's.
        sparsity: Fraction of the backbone's weights that are zero or gone.
    """

    study: int
    number: int
    score: float
    params: int
    bytes: int
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
    # Whatever beats a point stands before it, and is beaten by nothing or by one that stays.
    unbeaten: list[tuple[tuple[float, ...], float]] = []
    for best in sorted(front, key=lambda b: (_costs(b), -b.score, b.trial)):
        costs = _costs(best)
        if not any(
            score >= best.score and all(map(le, other, costs)) for other, score in unbeaten
        ):
            yield best
            unbeaten.append((costs, best.score))


def _costs(best: Best) -> tuple[float, ...]:
    """What one would have less of."""
    shares = best.inference_flops_ratio, -best.weight_sparsity
    rounded = (round(share, SHARE_DECIMALS) for share in shares)
    return best.trainable_params, best.stored_bytes, *rounded
