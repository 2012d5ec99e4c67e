from __future__ import annotations

import random

import pytest

from sparsearch.errors import InfeasibleError
from sparsearch.search.bilevel.early_stopping import SelectionMonitor, distance
from sparsearch.search.selection.selector import Selector
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.space import build_space


def test_random_structures_are_one_apart_whatever_their_size():
    stream = random.Random(0)
    for size in (2, 10, 50, 90):
        drawn = [
            [frozenset(stream.sample(range(100), size)) for _ in range(2)] for _ in range(2000)
        ]
        mean = sum(distance(a, b, 100) for a, b in drawn) / len(drawn)
        assert mean == pytest.approx(1.0, abs=0.05)


def test_equal_structures_are_zero_apart_and_empty_or_whole_ones_too():
    some, whole = frozenset({1, 2}), frozenset(range(4))
    assert distance(some, some, 10) == 0.0
    assert distance(frozenset(), frozenset(), 10) == distance(whole, whole, 4) == 0.0


def watch_of(build, length=3, threshold=0.0):
    space = build_space(build("bert"), kinds={"lora": {"max_rank": 1}})
    budgets = [Budget(max_trainable_params=n) for n in (200, 600)]
    return space, SelectionMonitor(
        [Selector(space, b, "greedy") for b in budgets], threshold, length
    )


def test_it_settles_when_as_many_cuts_as_it_remembers_agree(build):
    space, watch = watch_of(build)
    count = len(space.candidates)
    one, other = list(range(count)), list(reversed(range(count)))
    assert [watch.settled(s) for s in (one, one, one)] == [False, False, True]
    assert [watch.settled(s) for s in (other, other, other)] == [False, False, True]
    assert watch.furthest() == 0.0


def test_a_change_at_one_budget_alone_keeps_it_awake(build):
    space, watch = watch_of(build)
    scores = [float(i) for i in range(len(space.candidates))]
    changed = scores.copy()  # the order changes inside the larger cut only
    changed[1], changed[-1] = changed[-1], changed[1]
    assert not any(watch.settled(s) for s in (scores, changed, scores))
    assert watch.furthest() > 0


def test_a_budget_that_nothing_fits_is_said_at_the_first_look(build):
    space, _ = watch_of(build)
    watch = SelectionMonitor([Selector(space, Budget(max_trainable_params=1), "greedy")], 0.0, 3)
    with pytest.raises(InfeasibleError, match="too small for any candidate"):
        watch.settled([0.0] * len(space.candidates))
