"""The search space of an outer loop: limits of every kind, back and forth between points and trials."""

from __future__ import annotations

import pytest

from sparsearch.config.study import StudyConfig
from sparsearch.results.records import Outcome
from sparsearch.spaces.budget import resolve_all
from sparsearch.workers.scheduling.search_space import SearchSpace

PARAMS = 22_713_216


def proposals(**limits):
    config = StudyConfig.model_validate(
        {
            "name": "x",
            "model": {"path": "none"},
            "task": {"data": {"path": "json"}, "text": ["text"]},
            "space": {"preset": "fine"},
            "budgets": limits,
            "outer": {"tune": {"search.steps": {"from": 1, "to": 9}}},
        }
    )
    return SearchSpace(config, resolve_all(config.budgets, PARAMS), PARAMS)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_trainable_params": ["0.01%", "1%"]},
        {"max_bytes": [4000, 90_000]},
        {"max_inference_flops": ["60%", "90%"], "max_trainable_params": "0.1%"},
        {"min_weight_sparsity": ["50%", "90%"], "max_trainable_params": ["0.1%", "1%"]},
    ],
)
def test_a_point_is_a_trial_and_a_trial_a_point(limits):
    space = proposals(**limits)
    for index in range(20):
        point = space.spread(index) | {"search.steps": 3}
        assert all(0 <= u <= 1 for u in space.place(point))
        budget = space.budget(point)
        assert set(budget.as_dict()) - {"text"} == set(limits)
        settings = dict(space.settings(point))
        assert settings == {"search.steps": 3}
        back = space.params("s3pet", budget.as_dict(), settings)
        assert back == pytest.approx(point)


def test_what_lies_outside_is_no_point():
    space = proposals(max_trainable_params=[100, 1000])
    budget = {"max_trainable_params": 500, "text": ""}
    assert space.params("s3pet", budget, {"search.steps": 3}) is not None
    assert space.params("s3pet", budget, {}) is None, "the study's own 300 steps are out of range"
    assert (
        space.params("s3pet", budget | {"max_trainable_params": 99}, {"search.steps": 3}) is None
    )
    assert space.params("random", budget, {"search.steps": 3}) is None
    assert space.params("full", None, {}) is None


def test_a_stricter_limit_costs_less():
    space = proposals(max_trainable_params=[100, 1000], min_weight_sparsity=["50%", "90%"])
    point = space.place({"max_trainable_params": 100, "min_weight_sparsity": 0.9})
    assert space.costs(point, Outcome("failed")) == pytest.approx([0, 0])


def test_what_a_structure_leaves_unused_costs_nothing():
    space = proposals(max_trainable_params=[100, 10_000])
    loosest = space.place({"max_trainable_params": 10_000})
    assert space.costs(loosest, Outcome("ok", trainable_params=1000)) == pytest.approx([0.5])
    assert space.costs(loosest, Outcome("cancelled")) == pytest.approx([1.0])
