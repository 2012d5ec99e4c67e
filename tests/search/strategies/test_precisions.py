"""Precision is chosen with place, kind and rank."""

from __future__ import annotations

import dataclasses

import pytest

from sparsearch.config.study import TrainConfig
from sparsearch.search.selection.selector import Selector
from sparsearch.search.strategies.registry import rank
from sparsearch.search.training.warm_start import WarmStarts
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.calibration.calibrate import aligning_at
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from sparsearch.workers.trials.fit import Fitting
from tests.helpers.tiny_problem import make_problem

BITS = {"bits": [32, 8, 2]}
KINDS = {"lora": {"max_rank": 2} | BITS, "spectral": {"block": 4, "max_blocks": 2} | BITS}
BUDGET = Budget(max_bytes=1500, text="1500 bytes")


@pytest.mark.parametrize("strategy", ["s3pet", "probe", "random"])
def test_a_budget_of_bytes_buys_units_each_in_one_precision(build, strategy):
    problem = make_problem(build, steps=2)
    space = build_space(problem.model, kinds=KINDS)
    starts = WarmStarts(problem.model, problem.task, TrainConfig(precision="fp32"))
    aligning = aligning_at(space.kinds.values(), space.positions)
    problem = dataclasses.replace(problem, space=space, start=lambda: starts.get(0, aligning))
    made = rank(strategy, problem, BUDGET, seed=0)
    chosen = Selector(space, BUDGET).select(made.scores)
    structure = make_structure(space, chosen, identify(problem.model), "classification")
    assert structure.problems() == []
    assert 0 < structure.stored_bytes <= 1500
    config = TrainConfig(precision="fp32", epochs=1, batch_size=8)
    fitting = Fitting(problem.model, problem.task, config, starts, 0, "test")
    fitted = fitting.fit(structure)
    assert fitted.stored_bytes == structure.stored_bytes and 0 <= fitted.result.score <= 1


def test_the_first_of_a_kind_at_a_place_decides_its_precision(build):
    space = build_space(
        build("bert"), kinds={"lora": {"max_rank": 2, "on": ["*.0.attn.q"]} | BITS}
    )
    scores = [2.0, 1.0, 5.0, 4.0, 3.0, 0.0]
    assert [space.candidates[i].kind for i in (0, 2, 4)] == ["lora", "lora@8", "lora@2"]
    for room, wanted in (
        (10**6, ["lora@8"] * 2),
        (60, ["lora@2"] * 2),
        (40, ["lora@2"]),
        (100, ["lora@8"]),
    ):
        budget = Budget(max_bytes=room + space.choice_bytes)
        assert [c.kind for c in Selector(space, budget).select(scores)] == wanted, room
