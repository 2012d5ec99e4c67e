"""Optimal Brain Surgeon's prices, and the ranking that is made of them."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch

from sparsearch.config.study import SearchConfig
from sparsearch.config.train import TrainConfig
from sparsearch.errors import ConfigError
from sparsearch.search.selection.selector import Selector
from sparsearch.search.strategies.base import RankingContext
from sparsearch.search.strategies.optimal_brain_surgeon import eliminate, pruning_saliency
from sparsearch.search.strategies.registry import rank
from sparsearch.search.training.warm_start import WarmStarts
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.calibration.calibrate import aligning_at
from sparsearch.spaces.costs import linear_weights
from sparsearch.spaces.families.position import weight_at
from sparsearch.spaces.kinds.prunable.module import ridged
from sparsearch.spaces.space import build_space
from tests.helpers.tiny_task import TRAIN, make_task

BUDGET = Budget(max_trainable_params=400, max_inference_flops=0.7)
LINEAR = {"heads": {"compensate": "linear"}, "neurons": {"block": 8, "compensate": "linear"}}


def tensors(features: int, outputs: int):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, features, generator=generator) @ torch.randn(
        features, features, generator=generator
    )
    g = torch.randn(200, outputs, generator=generator)
    return torch.randn(outputs, features, generator=generator), torch.cov(x.T), g.T @ g


@pytest.mark.parametrize("widths", [(1,) * 6, (2, 2, 2), (4, 2)])
def test_prices_are_those_of_the_regression(widths):
    """The first one cut costs what is left of its features after regression, seen through weight and gradient."""
    weight, covariance, gradient = tensors(6, 3)
    covariance_ = ridged(covariance)
    costs, start = [], 0
    for width in widths:
        gone = torch.arange(start, start + width)
        kept = torch.tensor([i for i in range(6) if i not in gone])
        across = covariance_[gone][:, kept]
        left = covariance_[gone][:, gone] - across @ torch.linalg.solve(
            covariance_[kept][:, kept], across.T
        )
        w = weight[:, gone].double()
        costs.append(float(torch.trace(left @ w.T @ gradient.double() @ w)) / width)
        start += width
    order = list(eliminate(weight, covariance, gradient, widths))
    assert sorted(number for number, _ in order) == list(range(len(widths)))
    assert order[0][0] == min(range(len(widths)), key=lambda k: costs[k])
    assert order[0][1] == pytest.approx(min(costs), rel=1e-6)
    prices = [price for _, price in order]
    assert prices == sorted(prices)


def test_of_twins_one_goes_for_free_and_the_other_is_then_needed():
    weight, covariance, gradient = tensors(4, 3)
    mix = torch.eye(4)[[0, 0, 1, 2]]  # features 0 and 1 are the same
    order = [n for n, _ in eliminate(weight, mix @ covariance @ mix.T, gradient, (1,) * 4)]
    assert order[0] in (0, 1) and order[1] not in (0, 1)


def test_a_ranking_cuts_under_both_budgets_and_leaves_the_model_alone(build):
    model, task = build("bert", labels=2), make_task()
    space = build_space(model, kinds={"lora": {"max_rank": 2}} | LINEAR)
    starts = WarmStarts(model, task, TrainConfig(precision="fp32"))
    aligning = aligning_at(space.kinds.values(), space.positions)
    problem = RankingContext(
        model, space, task, SearchConfig(), TRAIN, (BUDGET,), lambda: starts.get(0, aligning)
    )
    before = {n: t.clone() for n, t in model.base_model.state_dict().items()}
    ranking = rank("surgeon", problem, BUDGET, seed=0)
    assert ranking.scores == rank("surgeon", problem, BUDGET, seed=0).scores
    assert attachment_of(model) is None
    assert all(torch.equal(t, before[n]) for n, t in model.base_model.state_dict().items())
    chosen = Selector(space, BUDGET, "greedy", 8).select(ranking.scores)
    assert {c.kind for c in chosen} == {"lora", "heads"}  # so few neurons all stay
    assert len({ranking.scores[i] for i in space.removals}) > len(space.removals) // 2


@pytest.mark.parametrize("swaps", [0, 4])
def test_a_search_from_prices_moves_modules_and_leaves_cuts_where_the_surgeon_has_them(
    build, swaps
):
    """Its gates close without what stands in for a cut, so that they cannot judge one."""
    model, task = build("bert", labels=2), make_task()
    space = build_space(model, kinds={"lora": {"max_rank": 2}} | LINEAR)
    starts = WarmStarts(model, task, TrainConfig(precision="fp32"))
    aligning = aligning_at(space.kinds.values(), space.positions)

    def scores(strategy: str, steps: int) -> list[float]:
        search = SearchConfig(start="probe", steps=steps, alpha_lr=0.5, swaps=swaps)
        problem = RankingContext(
            model, space, task, search, TRAIN, (BUDGET,), lambda: starts.get(0, aligning)
        )
        return list(rank(strategy, problem, BUDGET, seed=0).scores)

    start, found, prices = scores("s3pet", 0), scores("s3pet", 6), scores("surgeon", 0)
    cuts = list(space.removals)
    assert [found[i] for i in cuts] == [start[i] for i in cuts]
    assert sorted(cuts, key=found.__getitem__) == sorted(cuts, key=prices.__getitem__)
    attached = [i for i in range(len(found)) if i not in cuts]
    assert all(found[i] != start[i] for i in attached)


def test_what_does_not_compensate_is_refused(build):
    model, task = build("bert", labels=2), make_task()
    kinds = {"heads": {}, "neurons": {"compensate": "linear"}}
    space, starts = (
        build_space(model, kinds=kinds),
        WarmStarts(model, task, TrainConfig(precision="fp32")),
    )
    problem = RankingContext(
        model, space, task, SearchConfig(), TRAIN, (BUDGET,), lambda: starts.get(0, ())
    )
    with pytest.raises(ConfigError, match="weighed on data"):
        rank("surgeon", problem, BUDGET, seed=0)


def test_bands_are_priced_by_what_pruning_single_weights_costs(build):
    """Half of W_ij^2 E[g_i^2] E[x_j^2], summed over a band: all bands together cost what the matrix does."""
    model, task = build("bert", labels=2), make_task()
    kinds = {"lora": {"max_rank": 2}, "weight_mask": {"bands": 8, "importance": "saliency"}}
    space, starts = (
        build_space(model, kinds=kinds),
        WarmStarts(model, task, TrainConfig(precision="fp32")),
    )
    start = functools.partial(starts.get, 0, aligning_at(space.kinds.values(), space.positions))
    budget = Budget(min_weight_sparsity=0.5)
    problem = RankingContext(model, space, task, SearchConfig(), TRAIN, (budget,), start)
    prices = pruning_saliency(model, space, start().bases)
    for name, members in space.bands.items():
        own = [prices[i] for i in members]
        assert own == sorted(own) and own[0] >= 0
        gradients, inputs = start().bases[name, "weight_mask"]
        position = space.position(name)
        weight = weight_at(position, model.base_model.get_submodule(position.module)).detach()
        losses = (weight**2 * gradients[:, None] ** 2 * inputs**2).flatten().sort().values
        assert sum(own) == pytest.approx(
            8 * float(losses[: 7 * len(losses) // 8].sum()) / len(losses), rel=1e-3
        )
    chosen = Selector(space, budget, "greedy", 8).select(
        rank("surgeon", problem, budget, seed=0).scores
    )
    assert sum(c.pruned_weights for c in chosen) >= 0.5 * linear_weights(space.positions)
    assert len(set(Counter(c.position for c in chosen if c.role == "mask").values())) > 1
