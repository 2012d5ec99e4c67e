"""EarlyBERT's coefficients: what they learn, and the ticket that is drawn from them."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from sparsearch.config.study import SearchConfig, TrainConfig
from sparsearch.errors import ConfigError
from sparsearch.search.selection.selector import Selector
from sparsearch.search.strategies.base import RankingContext
from sparsearch.search.strategies.network_slimming import learn_coefficients, shares
from sparsearch.search.strategies.registry import rank
from sparsearch.search.training.warm_start import WarmStarts
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.space import build_space
from tests.helpers.tiny_task import TRAIN, make_task

KINDS = {"heads": {}, "neurons": {"block": 8}}


def learn(model, settled=lambda scores: False, **search):
    space = build_space(model, kinds=KINDS)
    settings = SearchConfig(**{"steps": 6} | search)
    context = RankingContext(model, space, make_task(), settings, TRAIN, (), dict)
    return learn_coefficients(context, settled, 0)


def test_a_ticket_is_learnt_on_a_copy_and_repeats_exactly(build):
    model = build("bert", labels=2)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    first, steps = learn(model)
    assert steps == 6 and len(set(first)) > 2
    assert learn(model)[0] == first
    assert attachment_of(model) is None
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags


def test_it_stops_when_the_ticket_has_settled(build):
    looks = []

    def settled(scores):
        looks.append(scores)
        return len(looks) == 2

    _, steps = learn(build("bert", labels=2), settled, steps=50, early_stop=True, stop_every=3)
    assert steps == 6 and len(looks) == 2


def test_coefficients_follow_the_loss_not_only_the_penalty(build):
    plain, _ = learn(build("bert", labels=2), l1=0.0)
    assert len(set(plain)) > 2
    assert plain != learn(build("bert", labels=2), l1=10.0)[0]


@pytest.mark.parametrize("allocation", ["global", "layerwise"])
def test_the_smallest_coefficients_are_cut_first_the_same_share_of_each_kind(build, allocation):
    model = build("gpt2", labels=2)
    space = build_space(model, kinds={"heads": {}, "neurons": {"block": 16}})
    values = torch.linspace(2, 1, len(space.candidates))  # later layers have the smaller ones
    scores = shares(space, values, allocation)
    budget = Budget(max_inference_flops=0.72)
    cut = [space.candidates[i] for i in Selector(space, budget, "greedy", 8).indices(scores)]
    layers = [c.position.split(".")[1] for c in cut]
    if allocation == "global":
        assert set(layers) == {"1"}
    else:
        assert abs(layers.count("0") - layers.count("1")) <= 2
    assert {c.kind for c in cut} == {"heads", "neurons"}


def test_ties_go_to_the_earlier_one(build):
    space = build_space(build("bert"), kinds={"heads": {}})
    scores = shares(space, torch.ones(8), "global")
    assert scores == tuple(1 - i / 8 for i in range(8))


def test_each_kind_may_have_its_own_allocation(build):
    space = build_space(build("bert"), kinds=KINDS)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(len(space.candidates), generator=generator)
    mixed = shares(space, values, {"heads": "layerwise"})
    for kind, allocation in (("heads", "layerwise"), ("neurons", "global")):
        at = [i for i, c in enumerate(space.candidates) if c.kind == kind]
        alike = shares(space, values, allocation)
        assert [mixed[i] for i in at] == [alike[i] for i in at]
    assert mixed not in (shares(space, values, "global"), shares(space, values, "layerwise"))
    with pytest.raises(ValidationError, match="allocation is for heads and neurons, not for lora"):
        SearchConfig(allocation={"heads": "layerwise", "lora": "global"})


@pytest.mark.parametrize(("draw", "expected"), [(0.2, 1), (0.5, 2), (1.3, 6)])
def test_the_ticket_is_drawn_at_a_share_of_an_epoch(build, draw, expected):
    """Of 32 rows in batches of 8."""
    assert learn(build("bert", labels=2), draw=draw, steps=3)[1] == expected


def test_other_kinds_are_refused(build):
    model = build("bert", labels=2)
    space = build_space(model, kinds={"heads": {}, "lora": {}})
    budget = Budget(max_inference_flops=0.8)
    starts = WarmStarts(model, make_task(), TrainConfig(precision="fp32"))
    problem = RankingContext(
        model, space, make_task(), SearchConfig(), TRAIN, (budget,), lambda: starts.get(0, ())
    )
    with pytest.raises(ConfigError, match="ranks heads and neurons"):
        rank("slimming", problem, budget, seed=0)
