"""What strategies start from: a budget as parameters, a probe as alpha."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sparsearch.search.gates.gates import Gates
from sparsearch.search.strategies.registry import rank
from sparsearch.search.strategies.supernet_start import log_density
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.space import build_space
from tests.helpers.tiny_problem import make_problem


@pytest.mark.parametrize(
    "kinds", [{"bitfit": {}}, {"lora": {}, "sparse_delta": {"smallest": 8, "steps": 2}}]
)
def test_gates_start_at_the_bytes_that_are_allowed_frozen_ones_too(build, monkeypatch, kinds):
    problem, starts = make_problem(build, steps=1), []
    space = build_space(problem.model, kinds=kinds)
    sample = Gates.sample

    def look(self, targets, noise):
        starts.append(self.probabilities(targets).detach())
        return sample(self, targets, noise)

    monkeypatch.setattr(Gates, "sample", look)
    problem = dataclasses.replace(problem, space=space)
    rank("s3pet", problem, Budget(max_bytes=800, text="800 bytes"), seed=0)
    expected = sum(c.bytes * p for c, p in zip(space.candidates, starts[0].tolist(), strict=True))
    assert expected == pytest.approx(800 - space.choice_bytes)


def test_log_density_is_finite_whatever_the_group():
    several = log_density(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([4, 4, 4]))
    assert float(several.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(several.std()) == pytest.approx(1.0)
    assert log_density(torch.tensor([3.0]), torch.tensor([7])).tolist() == [0.0]
    assert log_density(torch.zeros(3), torch.tensor([1, 2, 3])).tolist() == [0.0, 0.0, 0.0]
