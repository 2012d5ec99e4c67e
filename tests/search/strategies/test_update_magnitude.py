"""DSEE's scores: how far fine-tuning moves what feeds a head or a neuron."""

from __future__ import annotations

import pytest
import torch

from sparsearch.config.study import SearchConfig
from sparsearch.config.train import TrainConfig
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.selection.selector import Selector
from sparsearch.search.strategies.base import RankingContext
from sparsearch.search.strategies.registry import rank
from sparsearch.search.strategies.update_magnitude import update_magnitudes
from sparsearch.search.training.warm_start import WarmStarts
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.families.position import find, weight_at
from sparsearch.spaces.space import build_space
from tests.helpers.tiny_task import TRAIN, make_task

KINDS = {
    "lora": {"on": ["*.attn.[qv]"], "max_rank": 2},
    "sparse_delta": {"on": ["*.attn.[qv]"], "smallest": 8, "steps": 1},
    "heads": {},
    "neurons": {"block": 16},
}


def test_heads_count_updates_and_neurons_weights(build, family):
    if family == "t5":
        KINDS_, prefix = KINDS | {"lora": {"on": ["decoder.*.attn.[qv]"]}}, "decoder."
    else:
        KINDS_, prefix = KINDS, ""
    model = build(family, labels=2)
    space = build_space(model, kinds=KINDS_)
    supernet = Supernet(model, space, "classification", "fp32")
    positions = positions_of(model)
    heads = find(positions, f"{prefix}layers.0.attn.heads")
    rows = find(positions, f"{prefix}layers.0.attn.v").out_features // heads.units
    attachment = attachment_of(model)
    lora = next(
        s
        for s in attachment.slots
        if (s.position.name, s.kind.name) == (f"{prefix}layers.0.attn.v", "lora")
    )
    with torch.no_grad():
        lora.unit.B[rows : 2 * rows] = 1.0  # the second head
    found = update_magnitudes(model, space)
    supernet.close()
    change = lora.unit.scale * lora.unit.B @ lora.unit.A
    expected = change.abs().sum(1).view(heads.units, -1).sum(1)
    at = [i for i in space.removals if space.candidates[i].position == heads.name]
    assert torch.allclose(found[at], expected) and found[at].count_nonzero() == 1
    block = next(i for i in space.removals if space.candidates[i].kind == "neurons")
    feeds = space.position(space.candidates[block].position).feeds
    weights = [
        weight_at(p, base_of(model).get_submodule(p.module))
        for p in positions
        if p.role == "linear" and (p.module, p.start) in {(f.module, f.start) for f in feeds}
    ]
    assert found[block] == pytest.approx(
        sum(float(w[:16].detach().abs().sum()) for w in weights) / 16, rel=1e-4
    )


def test_a_ranking_cuts_as_many_heads_as_neurons_and_leaves_the_model_alone(build):
    model, task = build("bert", labels=2, intermediate_size=160), make_task()
    space, starts = (
        build_space(model, kinds=KINDS),
        WarmStarts(model, task, TrainConfig(precision="fp32")),
    )
    budget = Budget(max_trainable_params=400, max_inference_flops=0.75)
    problem = RankingContext(
        model, space, task, SearchConfig(steps=3), TRAIN, (budget,), lambda: starts.get(0, ())
    )
    before = {n: t.clone() for n, t in model.base_model.state_dict().items()}
    ranking = rank("update-magnitude", problem, budget, seed=0)
    assert ranking.steps == 4, "one epoch of 32 rows"
    assert ranking.scores == rank("update-magnitude", problem, budget, seed=0).scores
    assert attachment_of(model) is None
    assert all(torch.equal(t, before[n]) for n, t in model.base_model.state_dict().items())
    chosen = Selector(space, budget, "greedy", 8).select(ranking.scores)
    assert {c.kind for c in chosen} >= {"lora", "heads", "neurons"}


def test_masks_are_idle_while_the_rest_trains_and_the_ticket_is_drawn_in_whole_epochs(build):
    found = []
    for kinds in (KINDS, KINDS | {"weight_mask": {"bands": 10}}):
        model, task = build("bert", labels=2), make_task()
        space, starts = (
            build_space(model, kinds=kinds),
            WarmStarts(model, task, TrainConfig(precision="fp32")),
        )
        problem = RankingContext(
            model,
            space,
            task,
            SearchConfig(steps=3, draw=1.25),
            TRAIN,
            (),
            lambda s=starts: s.get(0, ()),
        )
        ranking = rank("update-magnitude", problem, Budget(max_trainable_params=400), seed=0)
        assert ranking.steps == 8, "5 steps are drawn, of 4 in an epoch"
        found.append([ranking.scores[i] for i in space.removals])
        bands = {ranking.scores[i] for group in space.bands.values() for i in group}
        assert len(bands) == (9 if space.bands else 0), "evenly"
    assert found[0] == found[1]
