from __future__ import annotations

import itertools

import pytest
import torch

from sparsearch.config.study import StudyConfig
from sparsearch.results.records import Trial
from sparsearch.search.bilevel import local_search as swaps
from sparsearch.search.bilevel.local_search import hard_gates, swap
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.selection.selector import Selector
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.space import build_space
from sparsearch.workers.trials.ranking_key import shared_ranking
from tests.helpers.tiny_task import make_task

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
    z = hard_gates(Selector(space, BUDGET, "greedy"), torch.arange(float(len(space.candidates))))
    used = sum(c.params for c, gate in zip(space.candidates, z, strict=True) if gate)
    assert set(z.tolist()) == {0.0, 1.0} and used <= 200


def test_the_loss_never_rises_and_some_swap_lowers_it(supernet):
    net, space = supernet
    task, alpha = make_task(), torch.randn(len(space.candidates))

    def loss(scores):
        return swaps._loss(net, task, hard_gates(Selector(space, BUDGET, "greedy"), scores))

    losses = [
        loss(swap(net, task, Selector(space, BUDGET, "greedy"), alpha, n)) for n in (0, 3, 12)
    ]
    assert losses[0] == loss(alpha)
    assert losses[0] >= losses[1] >= losses[2] and losses[2] < losses[0]


def test_units_run_again_afterwards(supernet):
    net, space = supernet
    swap(
        net, make_task(), Selector(space, BUDGET, "greedy"), torch.randn(len(space.candidates)), 2
    )
    assert not any(slot.idle for slot in net.attachment.slots)


def test_swaps_stay_within_one_limit_and_change_the_cut(build, monkeypatch):
    """Whatever is tried is taken here: the scores of each group are exchanged among themselves."""
    kinds = {
        "bitfit": {},
        "heads": {},
        "weight_mask": {"bands": 4, "rank": 0, "structured": False},
    }
    space = build_space(build("bert"), kinds=kinds)
    budget = Budget(max_trainable_params=200, max_inference_flops=0.9, min_weight_sparsity=0.3)
    tried = []

    def loss(supernet, task, z):
        tried.append(z)
        return -len(tried)

    monkeypatch.setattr(swaps, "_loss", loss)
    alpha = torch.randn(len(space.candidates), generator=torch.Generator().manual_seed(0))
    found = swap(None, make_task(), Selector(space, budget, "greedy"), alpha, 9)
    assert len(tried) == 10
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(tried))
    for kind in kinds:
        group = torch.tensor([c.kind == kind for c in space.candidates])
        assert torch.equal(found[group].sort().values, alpha[group].sort().values)
        assert not torch.equal(found[group], alpha[group])


@pytest.mark.parametrize(
    ("search", "rankings"),
    [({}, 1), ({"swaps": 1}, 2), ({"checkpoint": "hard"}, 2), ({"checkpoint": "best"}, 1)],
)
def test_what_is_judged_at_one_budget_is_a_ranking_of_its_own(study, search, rankings):
    """Else it would depend on which trial of a sampled search comes first."""
    config = StudyConfig.model_validate(
        study | {"search": {"budget_schedule": "sampled"} | search}
    )
    budgets = tuple(Budget(max_trainable_params=n, text=str(n)) for n in (200, 600))
    trials = [Trial(n, "s3pet", budget, 0) for n, budget in enumerate(budgets)]
    assert len({shared_ranking(config, budgets, trial) for trial in trials}) == rankings
