from __future__ import annotations

import pytest
import torch

from sparsearch.search import swaps
from sparsearch.search.supernet import Supernet
from sparsearch.search.swaps import hard_gates, swap
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.space import build_space
from tests.search.test_bilevel import make_task

BUDGET = Budget(max_trainable_params=200)


@pytest.fixture
def supernet(build):
    torch.manual_seed(0)
    model = build("bert", labels=2)
    net = Supernet(model, build_space(model, kinds={"bitfit": {}}), "classification", "fp32")
    with torch.no_grad():
        for parameter in net.attachment.units.parameters():
            parameter.normal_()
    yield net, build_space(build("bert", labels=2), kinds={"bitfit": {}})
    net.close()


def test_hard_gates_are_the_cut(supernet):
    _, space = supernet
    z = hard_gates(space, torch.arange(float(len(space.candidates))), BUDGET, "greedy")
    used = sum(c.params for c, gate in zip(space.candidates, z, strict=True) if gate)
    assert set(z.tolist()) == {0.0, 1.0} and used <= 200


def test_the_loss_never_rises_and_some_swap_lowers_it(supernet):
    net, space = supernet
    task, alpha = make_task(), torch.randn(len(space.candidates))

    def loss(scores):
        return swaps._loss(net, task, hard_gates(space, scores, BUDGET, "greedy"))

    losses = [loss(swap(net, task, space, alpha, BUDGET, "greedy", n)) for n in (0, 3, 12)]
    assert losses[0] == loss(alpha)
    assert losses[0] >= losses[1] >= losses[2] and losses[2] < losses[0]


def test_units_run_again_afterwards(supernet):
    net, space = supernet
    swap(net, make_task(), space, torch.randn(len(space.candidates)), BUDGET, "greedy", 2)
    assert not any(slot.idle for slot in net.attachment.slots)
