"""Trainable parameters and inference FLOPs in one search: gates, probe, cut, and a whole ranking."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from sparsearch.config.study import ProbeConfig, SearchConfig, TrainConfig
from sparsearch.errors import InfeasibleError
from sparsearch.search.bilevel.gradient_probe import probe
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.gates.targets import Targets
from sparsearch.search.selection.selector import Selector
from sparsearch.search.strategies.base import RankingContext
from sparsearch.search.strategies.registry import rank
from sparsearch.search.strategies.s3pet import make_gates
from sparsearch.search.training.warm_start import WarmStarts
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.costs import narrowed_positions, recompute_costs
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.helpers.tiny_problem import make_problem
from tests.helpers.tiny_task import TRAIN, make_task

KINDS = {"lora": {"max_rank": 2}, "bitfit": {}, "heads": {}, "neurons": {"block": 16}}
TOKENS = 8


@pytest.fixture
def space(build, family):
    return build_space(build(family, labels=2), kinds=KINDS)


def random_scores(space, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(len(space.candidates), generator=generator).tolist())


def test_each_budget_has_its_shift_and_meets_it(space):
    gates = make_gates(space, SearchConfig(), TOKENS, torch.device("cpu"))
    with torch.no_grad():
        gates.alpha.copy_(torch.tensor(random_scores(space)))
    to_save = 0.3 * dense_flops_per_token(space.positions, TOKENS)
    p = gates.probabilities(Targets(300.0, to_save))
    assert float((gates.removals.saving * p).sum()) == pytest.approx(to_save, rel=1e-9)
    assert float((gates.expected_cost(p) * p).sum()) == pytest.approx(300.0, rel=1e-9)
    assert float((gates.cost * p).sum()) > 300.0, "what is cut makes the rest cheaper"
    p.square().sum().backward()
    gradient = gates.alpha.grad
    assert torch.isfinite(gradient).all()
    assert gradient[gates.removed].abs().max() > 0 and gradient[gates.attached].abs().max() > 0


def test_nothing_is_cut_while_nothing_is_to_be_saved(space):
    gates = make_gates(space, SearchConfig(), TOKENS, torch.device("cpu"))
    p = gates.probabilities(Targets(300.0))
    assert float(p[gates.removed].max()) < 1e-9
    assert float((gates.cost * p).sum()) == pytest.approx(300.0, rel=1e-6)


@pytest.mark.parametrize("rule", ["greedy", "density", "knapsack"])
@pytest.mark.parametrize("share", [0.9, 0.82])
def test_a_cut_meets_both_limits_and_costs_what_the_gates_expect(
    build, family, space, rule, share
):
    budget = Budget(max_trainable_params=400, max_inference_flops=share)
    for seed in range(5):
        ranking = Ranking(random_scores(space, seed), "random", seed)
        indices = Selector(space, budget, rule, TOKENS).indices(ranking.scores)
        chosen = [space.candidates[i] for i in indices]
        structure = make_structure(
            space, chosen, identify(build(family, labels=2)), "classification"
        )
        assert 0 < structure.trainable_params <= 400
        dense = dense_flops_per_token(space.positions, TOKENS)
        largest = max(-space.candidates[i].inference_flops(TOKENS) for i in space.removals)
        spare = share - 1 - structure.inference_flops(TOKENS) / dense
        assert 0 <= spare < largest / dense, "no more than needed"
        gates = make_gates(space, SearchConfig(), TOKENS, torch.device("cpu"))
        z = torch.zeros(len(space.candidates), dtype=torch.float64)
        z[indices] = 1.0
        assert float((gates.expected_cost(z) * z).sum()) == pytest.approx(
            structure.trainable_params
        )
        assert float((gates.removals.saving * z).sum()) == -structure.inference_flops(TOKENS)


def test_what_many_cuts_of_a_layer_save_is_spent(build):
    """Prices know all that is cut, so that nothing that would still fit is left out."""
    model = build("bert", labels=2)
    space, backbone = build_space(model, kinds=KINDS), identify(model)
    budget = Budget(max_trainable_params=400, max_inference_flops=0.82)
    for seed in range(5):
        ranking = Ranking(random_scores(space, seed), "random", seed)
        chosen = Selector(space, budget, "greedy", TOKENS).select(ranking.scores)
        cuts = [c for c in chosen if c.which]
        assert len(cuts) > len({c.position for c in cuts}), "several at one position"
        narrowed = narrowed_positions(space.positions, cuts)
        costs = {
            c: recompute_costs(c, space.kinds[c.kind], narrowed).params for c in space.candidates
        }
        spent = sum(costs[c] for c in chosen)
        structure = make_structure(space, chosen, backbone, "classification")
        assert spent == structure.trainable_params <= 400
        left = Counter(space.candidates) - Counter(chosen)
        assert all(spent + costs[c] > 400 for c in left if not c.which)


def test_what_stands_in_for_a_cut_counts_as_bytes(build):
    model = build("bert", labels=2)
    kinds = {"bitfit": {}, "heads": {"compensate": "linear"}}
    space = build_space(model, kinds=kinds)
    ranking = Ranking(random_scores(space), "random", 0)
    whole = Selector(space, Budget(max_inference_flops=0.82), "greedy", TOKENS).select(
        ranking.scores
    )
    whole = make_structure(space, whole, identify(model), "classification")
    stored = sum(c.frozen_bytes for c in whole.candidates if c.which)
    assert stored > 0
    budget = Budget(max_bytes=stored + 400, max_inference_flops=0.82)
    chosen = Selector(space, budget, "greedy", TOKENS).select(ranking.scores)
    structure = make_structure(space, chosen, identify(model), "classification")
    assert stored < structure.bytes <= stored + 400
    with pytest.raises(InfeasibleError, match=f"takes {stored:,} bytes alone"):
        Selector(
            space, Budget(max_bytes=stored - 1, max_inference_flops=0.82), "greedy", TOKENS
        ).select(ranking.scores)


def test_guards_hold_however_lopsided_the_scores(space):
    first = space.candidates[space.removals[0]].position
    scores = tuple(10.0 if c.position == first else 0.0 for c in space.candidates)
    budget = Budget(max_trainable_params=400, max_inference_flops=0.82)
    chosen = Selector(space, budget, "greedy", TOKENS).select(scores)
    heads = [c for c in chosen if c.position == first]
    assert len(heads) == space.position(first).units - 1
    again = Selector(space, budget, "greedy", TOKENS).select(scores)
    assert chosen == again


def test_a_limit_below_the_guarded_rest_names_what_is_reached(space):
    budget = Budget(max_trainable_params=400, max_inference_flops=0.01, text="1% FLOPs")
    with pytest.raises(
        InfeasibleError, match="one head and 64 neurons stay .* least it can reach"
    ):
        Selector(space, budget, "greedy", TOKENS).select(random_scores(space))


def test_a_space_that_removes_nothing_cannot_save(build):
    space = build_space(build("bert"), kinds={"lora": {}})
    with pytest.raises(InfeasibleError, match="nothing in this space removes FLOPs"):
        Selector(
            space, Budget(max_trainable_params=400, max_inference_flops=0.9), "greedy"
        ).select(random_scores(space))


def test_a_flops_limit_alone_buys_cuts_alone(build):
    space = build_space(build("bert"), kinds={"heads": {}, "neurons": {"block": 16}})
    chosen = Selector(space, Budget(max_inference_flops=0.8)).select(random_scores(space))
    assert chosen and all(c.which for c in chosen)


@pytest.mark.parametrize(
    "budget", [Budget(max_inference_flops=1.0), Budget(max_trainable_params=100)]
)
def test_a_space_that_only_removes_must_have_something_to_remove(build, budget):
    space = build_space(build("bert"), kinds={"heads": {}})
    with pytest.raises(InfeasibleError, match="only removes, and nothing has to go") as caught:
        Selector(space, budget).select(random_scores(space))
    assert "below 100%" in caught.value.hint


@pytest.mark.parametrize("score", ["step", "fisher"])
def test_the_probe_scores_cuts_by_the_gradient_of_their_gates(build, score):
    model, task = build("bert", labels=2), make_task()
    space = build_space(model, kinds=KINDS)
    supernet = Supernet(model, space, task.type, "fp32")
    found = probe(supernet, task, ProbeConfig(score=score, rows=8), TRAIN, seed=0)
    cuts = supernet.removals
    assert (found[cuts] <= 0).all() and found[cuts].min() < 0
    assert (found[~cuts] >= 0).all() and found[~cuts].max() > 0
    supernet.close()
    plain = build_space(model, kinds={"lora": {"max_rank": 2}, "bitfit": {}})
    torch.manual_seed(0)
    supernet = Supernet(model, plain, task.type, "fp32")
    alone = probe(supernet, task, ProbeConfig(score=score, rows=8), TRAIN, seed=0)
    bias = torch.tensor([c.kind == "bitfit" for c in plain.candidates])
    assert torch.allclose(found[~cuts][bias], alone[bias], rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"start": "probe", "skip_below": 0.01},
        {"order": "second"},
        {"swaps": 2},
        {"swaps": 2, "budget_schedule": "sampled"},
        {"budget_schedule": "annealed"},
        {"checkpoint": "best", "valid_every": 2},
    ],
)
def test_a_search_under_two_budgets_ranks_and_leaves_the_backbone_as_it_was(build, options):
    model = build("bert", labels=2)
    before = {n: t.clone() for n, t in model.base_model.state_dict().items()}
    space, starts = (
        build_space(model, kinds=KINDS),
        WarmStarts(model, make_task(), TrainConfig(precision="fp32")),
    )
    budget = Budget(max_trainable_params=300, max_inference_flops=0.7)
    problem = RankingContext(
        model, space, make_task(), SearchConfig(**{"steps": 6, "batch_size": 8} | options), TRAIN,
        (budget,), lambda: starts.get(0, ()),
    )  # fmt: skip
    ranking = rank("s3pet", problem, budget, seed=0)
    assert attachment_of(model) is None
    assert all(torch.equal(t, before[n]) for n, t in model.base_model.state_dict().items())
    moved = [ranking.scores[i] for i in space.removals]
    assert len(set(moved)) > 1
    assert Selector(space, budget, "greedy", TOKENS).select(ranking.scores)


def test_a_search_that_only_removes_may_anneal(build):
    problem = make_problem(build, steps=3, budget_schedule="annealed")
    space = build_space(problem.model, kinds={"heads": {}, "neurons": {"block": 16}})
    ranking = rank("s3pet", replace(problem, space=space), Budget(max_inference_flops=0.9), 0)
    assert len(set(ranking.scores)) > 1


def test_the_best_checkpoint_is_judged_under_the_limits_at_the_end(build, monkeypatch):
    problem = make_problem(build, steps=5, checkpoint="best", valid_every=1, skip_below=0.5)
    space = build_space(problem.model, kinds=KINDS)
    budget = Budget(max_trainable_params=300, max_inference_flops=0.7)
    judged, alone = [], Supernet.alone

    def look(self, z):
        judged.append(z)
        return alone(self, z)

    def score(model, *args):
        assert not any(slot.idle for slot in attachment_of(model).slots)
        return 0.0

    monkeypatch.setattr(Supernet, "alone", look)
    monkeypatch.setattr("sparsearch.search.bilevel.search.evaluate", score)
    rank("s3pet", replace(problem, space=space), budget, seed=0)
    saving = make_gates(space, SearchConfig(), TOKENS, torch.device("cpu")).removals.saving
    to_save = 0.3 * dense_flops_per_token(space.positions, TOKENS)
    assert len(judged) == 5
    assert [float((saving * z).sum()) for z in judged] == pytest.approx([to_save] * 5, rel=1e-4)


def test_masks_are_searched_like_what_is_cut(build, inputs):
    kinds = {"lora": {"max_rank": 2}, "weight_mask": {"bands": 4, "rank": 1}}
    model = build("bert", labels=2)
    space = build_space(model, kinds=kinds)
    with torch.no_grad():
        before = model(**inputs).logits
    supernet = Supernet(model, space, "classification", "fp32")
    with torch.no_grad():
        assert torch.allclose(model(**inputs).logits, before, atol=1e-6), "nothing is pruned"
    scores = probe(supernet, make_task(), ProbeConfig(), TRAIN, seed=0)
    pruning = torch.tensor([c.kind == "weight_mask" for c in space.candidates])
    assert torch.equal(supernet.removals, pruning)
    assert (scores[pruning] < 0).all() and (scores[~pruning] >= 0).all()
    supernet.close()
    for settings in ({"warmup": 0.5}, {"start": "probe", "checkpoint": "hard", "order": "second"}):
        search = SearchConfig(steps=4, batch_size=8, **settings)
        budget = Budget(max_trainable_params=2000, text="2000")
        starts = WarmStarts(model, make_task(), TrainConfig(precision="fp32"))
        problem = RankingContext(
            model, space, make_task(), search, TRAIN, (budget,), lambda s=starts: s.get(0, ())
        )
        ranking = rank("s3pet", problem, budget, 0)
        chosen = Selector(space, budget).select(ranking.scores)
        structure = make_structure(space, chosen, identify(model, "here"), "classification")
        assert structure.trainable_params <= 2000
        assert torch.isfinite(torch.tensor(ranking.scores)).all()
