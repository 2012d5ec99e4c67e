"""Answers by brute force over all trials, to compare the store's own with; for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

from sparsearch.results.records import BestQuery, TrialRecord
from sparsearch.results.store.pareto_front import SHARE_DECIMALS
from sparsearch.results.store.store import Store

__all__ = ["Point", "best_point", "check_answers", "pareto_points", "recommendable"]

_LIMITS = ("max_trainable_params", "max_bytes", "max_inference_flops", "min_weight_sparsity")


@dataclass(frozen=True, order=True)
class Point:
    """A trial that may be recommended, in the order of ``best``."""

    loss: float
    params: int
    bytes: int
    study: int
    number: int
    ratio: float
    dense: float

    def no_worse(self, other: Point) -> bool:
        """In score, parameters, bytes, FLOPs and zeros."""
        pairs = (
            (self.loss, other.loss), (self.params, other.params), (self.bytes, other.bytes),
            (self.ratio, other.ratio), (self.dense, other.dense),
        )  # fmt: skip
        return all(a <= b for a, b in pairs)


def recommendable(study: int, trials: Iterable[TrialRecord]) -> list[Point]:
    """Those trials of the study of that index that succeeded with a structure and a score."""
    return [
        Point(
            -t.score,
            t.trainable_params,
            t.stored_bytes,
            study,
            t.number,
            t.inference_flops_ratio,
            -t.weight_sparsity,
        )
        for t in trials
        if t.state == "ok"
        and t.structure is not None
        and t.score is not None
        and t.trainable_params is not None
        and t.stored_bytes is not None
        and t.inference_flops_ratio is not None
    ]


def best_point(points: Iterable[Point], **limits: float | None) -> Point | None:
    """The first within limits, which are named as budgets name them; None is no limit.

    Under ``max_bytes`` bytes come before parameters.
    """
    fitting = [p for p in points if _fits(p, **limits)]
    if limits.get("max_bytes") is None:
        return min(fitting, default=None)
    return min(fitting, default=None, key=lambda p: (p.loss, p.bytes, p.params, p.study, p.number))


def _fits(
    p: Point,
    max_trainable_params: float | None = None,
    max_bytes: float | None = None,
    max_inference_flops: float | None = None,
    min_weight_sparsity: float | None = None,
) -> bool:
    return (
        (max_trainable_params is None or p.params <= max_trainable_params)
        and (max_bytes is None or p.bytes <= max_bytes)
        and (max_inference_flops is None or p.ratio <= max_inference_flops)
        and (min_weight_sparsity is None or -p.dense >= min_weight_sparsity)
    )


def pareto_points(points: Iterable[Point]) -> list[Point]:
    """Those of one study that no other one beats, by parameters; the earliest of equal ones.

    Shares that differ by less than a hundredth of a percent are equal.
    """
    points = [
        replace(p, ratio=round(p.ratio, SHARE_DECIMALS), dense=round(p.dense, SHARE_DECIMALS))
        for p in points
    ]
    front = []
    for p in points:
        better = (q for q in points if q.no_worse(p))
        if all(p.no_worse(q) and p.number <= q.number for q in better):
            front.append(p)
    return sorted(front, key=lambda p: (p.params, p.bytes, p.ratio, p.dense))


def check_answers(store: Store) -> None:
    """Assert that ``best`` within every limit that makes a difference, and ``pareto``, are right."""
    records = store.studies()
    names = [record.name for record in records]
    tasks = {record.name: record.task_fingerprint for record in records}
    points = {name: recommendable(i, store.trials(name)) for i, name in enumerate(names)}
    everything = [p for some in points.values() for p in some]
    sizes = sorted({p.params for p in everything})
    ratios = sorted({p.ratio for p in everything})
    zeros = sorted({-p.dense for p in everything if p.dense})
    bytes_ = sorted({p.bytes for p in everything if p.bytes != 4 * p.params})[:1]
    limits = product(
        [None, 0, *sizes], [None, *bytes_], [None, 0.0, *ratios], [None, *zeros], [None, *names]
    )
    for *values, study in limits:
        asked: dict[str, int | float | None] = dict(zip(_LIMITS, values, strict=True))
        question = BestQuery(study, limits=asked)
        expected = set()
        for task in {tasks[study]} if study else {*tasks.values()}:
            own = [p for n in names if tasks[n] == task and study in (None, n) for p in points[n]]
            point = best_point(own, **asked)
            expected |= {(point.study, point.number)} if point is not None else set()
        found = {(names.index(b.study), b.trial) for b in store.best_of_each_task(question)}
        assert found == expected, question
        if len(expected) < 2 and asked["max_bytes"] is None:  # one question, asked in two ways
            best = store.best(study=study, **asked)  # type: ignore[arg-type]
            one = {(names.index(best.study), best.trial)} if best is not None else set()
            assert one == expected, question
    for name in names:
        expected_front = [p.number for p in pareto_points(points[name])]
        assert [b.trial for b in store.pareto(name)] == expected_front, name
