"""A limit on weight sparsity: gates, cut, prices, fixed allocations; alone and beside heads and neurons."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from sparsearch.config.registry import STRATEGIES
from sparsearch.config.study import BudgetConfig, SearchConfig, TrainConfig
from sparsearch.errors import ConfigError, InfeasibleError
from sparsearch.search.gates.targets import Targets
from sparsearch.search.selection.masks import equal_shares, without_scores
from sparsearch.search.selection.selector import Selector
from sparsearch.search.strategies.base import RankingContext
from sparsearch.search.strategies.registry import find_strategy, rank
from sparsearch.search.strategies.s3pet import make_gates
from sparsearch.search.strategies.uniform import largest_uniform
from sparsearch.search.training.warm_start import WarmStarts
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.budget import Budget, resolve
from sparsearch.spaces.candidate import count_trainable
from sparsearch.spaces.compaction.compact import compact
from sparsearch.spaces.compaction.sparsity import count_zeros, measured_sparsity
from sparsearch.spaces.costs import linear_weights, narrowed_positions
from sparsearch.spaces.families.position import weight_at
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.helpers.tiny_task import make_task

MASKS = {"lora": {"max_rank": 2}, "weight_mask": {"bands": 7, "rank": 1}}
BOTH = {**MASKS, "heads": {}, "neurons": {"block": 16}}
TOKENS = 8
CPU = torch.device("cpu")


def random_scores(space, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(len(space.candidates), generator=generator).tolist())


def structure_of(space, model, indices):
    chosen = [space.candidates[i] for i in indices]
    return make_structure(space, chosen, identify(model), "classification")


def counted(space, structure):
    """Weights that are zero or gone."""
    gone = linear_weights(space.positions) - linear_weights(
        narrowed_positions(space.positions, structure.candidates)
    )
    return structure.pruned_weights + gone


def zero_or_gone(model, structure):
    """The same, measured on the slim model."""
    small = compact(attach(copy.deepcopy(model), structure), structure)
    zeros, left = count_zeros(small)
    return zeros + linear_weights(positions_of(model)) - left


@pytest.mark.parametrize("kinds", [MASKS, BOTH], ids=["masks", "masks and cuts"])
def test_gates_meet_the_sparsity_and_the_parameters(build, family, kinds):
    space = build_space(build(family, labels=2), kinds=kinds)
    dense = linear_weights(space.positions)
    for share, seed in ((0.3, 0), (0.6, 1)):
        gates = make_gates(space, SearchConfig(), TOKENS, CPU)
        with torch.no_grad():
            gates.alpha.copy_(torch.tensor(random_scores(space, seed)))
        to_save = 0.1 * float(gates.removals.saving.sum()) if space.removals else 0.0
        limit = 0.7 * space.trainable_params
        p = gates.probabilities(Targets(limit, to_save, share * dense))
        pruned = gates.masks.expected(p, gates.removal_probabilities(p))
        assert float(pruned.detach()) == pytest.approx(share * dense, rel=1e-9)
        assert float(gates.expected_params(p).detach()) == pytest.approx(limit, rel=1e-9)
        p.square().sum().backward()
        assert torch.isfinite(gates.alpha.grad).all()
        assert gates.alpha.grad[gates.masks.bands].abs().max() > 0


@pytest.mark.parametrize("rule", ["greedy", "density", "knapsack"])
@pytest.mark.parametrize("kinds", [MASKS, BOTH], ids=["masks", "masks and cuts"])
def test_a_cut_is_as_sparse_as_asked_and_as_the_gates_expect(build, family, kinds, rule):
    model = build(family, labels=2)
    space = build_space(model, kinds=kinds)
    dense, matrices = linear_weights(space.positions), len(space.bands)
    flops = 0.9 if space.removals else None
    largest = max(c.pruned_weights for c in space.candidates)
    for seed, share in enumerate((0.31, 0.5, 0.8)):
        budget = Budget(
            max_trainable_params=8000, max_inference_flops=flops, min_weight_sparsity=share
        )
        indices = Selector(space, budget, rule, TOKENS).indices(random_scores(space, seed))
        structure = structure_of(space, model, indices)
        assert structure.trainable_params <= 8000
        found = counted(space, structure)
        assert math.ceil(share * dense) <= found
        assert not structure.pruned_weights or found < share * dense + largest + matrices
        assert zero_or_gone(model, structure) == found
        gates = make_gates(space, SearchConfig(), TOKENS, CPU)
        z = torch.zeros(len(space.candidates), dtype=torch.float64)
        z[indices] = 1.0
        assert float(gates.expected_params(z)) == pytest.approx(structure.trainable_params)
        expected = float(gates.masks.expected(z, gates.removal_probabilities(z)))
        assert found == pytest.approx(expected, abs=6 * matrices), (
            "bands, and losses, are rounded up"
        )


def test_of_a_matrix_the_smallest_weights_go_whatever_bands_score(build):
    space = build_space(build("bert"), kinds=MASKS)
    found = set(Selector(space, Budget(min_weight_sparsity=0.5)).indices(random_scores(space)))
    for bands in space.bands.values():
        inside = [i in found for i in bands]
        assert inside == sorted(inside, reverse=True)


def test_without_a_limit_nothing_is_masked_and_all_else_as_without_masks(build):
    model = build("bert")
    space, plain = (build_space(model, kinds=k) for k in (MASKS, {"lora": MASKS["lora"]}))
    scores = random_scores(space)
    budget = Budget(max_trainable_params=500)
    chosen = Selector(space, budget).select(scores)
    lora = [s for s, c in zip(scores, space.candidates, strict=True) if c.role != "mask"]
    assert chosen == Selector(plain, budget).select(tuple(lora))


def test_a_masked_matrix_pays_for_its_scores_once(build):
    space = build_space(build("bert"), kinds=MASKS)
    linears = [p for p in space.positions if p.role == "linear"]
    scores = sum((1 + 1) * (p.in_features + p.out_features) for p in linears)
    lora = 2 * scores // 2
    assert space.trainable_params == count_trainable(space.candidates) == scores + lora
    assert space.by_kind["weight_mask"] == {
        "candidates": 72,
        "trainable_params": scores,
        "bytes": 4 * scores + sum(p.in_features * p.out_features // 8 for p in linears),
    }
    found = Selector(
        space, Budget(max_trainable_params=scores + 100, min_weight_sparsity=0.5)
    ).select(equal_shares(space))
    attached = sum(c.params for c in found if c.role != "mask")
    assert 64 <= attached <= 100


def test_where_masks_are_spread_too_thin_fewer_matrices_carry_them(build):
    """What the cheapest order allows, every ranking allows: a search does not end with nothing."""
    space = build_space(
        build("bert"), kinds={"bitfit": {}, "weight_mask": {"bands": 4, "rank": 1}}
    )
    tight, loose = (Budget(max_trainable_params=n, min_weight_sparsity=0.2) for n in (800, 10**6))
    Selector(space, tight, "greedy", TOKENS).indices([-float(c.params) for c in space.candidates])
    spread = set()
    for seed in range(20):
        scores = random_scores(space, seed)
        chosen = [
            space.candidates[i] for i in Selector(space, tight, "greedy", TOKENS).indices(scores)
        ]
        assert count_trainable(chosen) <= 800
        assert sum(c.pruned_weights for c in chosen) >= 0.2 * linear_weights(space.positions)
        free = Selector(space, loose, "greedy", TOKENS).indices(scores)
        spread.add(
            len({space.candidates[i].position for i in free if space.candidates[i].role == "mask"})
        )
    assert max(spread) > 6, (
        "without the limit on parameters more matrices are masked than it pays for"
    )


def test_scores_that_exceed_the_parameters_are_infeasible(build):
    space = build_space(build("bert"), kinds=MASKS)
    with pytest.raises(
        InfeasibleError,
        match=r"masks of 12 matrices reach that sparsity, but their scores have 1,792",
    ):
        Selector(
            space, Budget(max_trainable_params=1700, min_weight_sparsity=0.8, text="1700, 80%")
        ).select(equal_shares(space))


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (MASKS, r"the most that this space reaches is 85\.[78]%"),
        ({"lora": {}, "weight_mask": {"on": ["*.ffn.*"]}}, r"reaches is 47\.5%"),
        ({"weight_mask": {"pattern": "2:4"}}, r"reaches is 50\.0%"),
        ({"lora": {}}, r"nothing in this space masks weights; the most it reaches is 0\.0%"),
    ],
    ids=["bands", "half of the weights", "pattern", "no masks"],
)  # fmt: skip
def test_a_sparsity_that_is_not_reached_names_what_is(build, kinds, message):
    space = build_space(build("bert"), kinds=kinds)
    scores = Ranking(random_scores(space), "random", 0)
    with pytest.raises(InfeasibleError, match=message) as caught:
        Selector(space, Budget(min_weight_sparsity=0.9, text="90% sparsity")).select(scores.scores)
    assert caught.value.hint


@pytest.mark.parametrize("strategy", STRATEGIES.of_family("uniform"))
def test_uniform_patterns_have_no_sparsity(build, strategy):
    space = build_space(build("bert"), kinds=MASKS)
    with pytest.raises(InfeasibleError, match=f"{strategy} sets no weights to zero"):
        largest_uniform(find_strategy(strategy), space, Budget(min_weight_sparsity=0.5))


def test_heads_and_neurons_count_towards_sparsity(build):
    space = build_space(build("bert", labels=2), kinds=BOTH | {"neurons": {"block": 1}})
    scores = Ranking(random_scores(space), "random", 0)
    few = Selector(
        space, Budget(max_inference_flops=0.8, min_weight_sparsity=0.05), "greedy", TOKENS
    ).select(scores.scores)
    assert any(c.which for c in few) and not any(c.role == "mask" for c in few), (
        "what is cut suffices"
    )
    both = Selector(
        space, Budget(max_inference_flops=0.8, min_weight_sparsity=0.6), "greedy", TOKENS
    ).select(scores.scores)
    alone = Selector(space, Budget(min_weight_sparsity=0.6), "greedy", TOKENS).select(
        scores.scores
    )
    assert sum(c.role == "mask" for c in both) < sum(c.role == "mask" for c in alone)


def test_even_is_one_density_and_magnitude_that_without_scores(build):
    model = build("bert", labels=2)
    space = build_space(model, kinds=MASKS)
    budget = Budget(min_weight_sparsity=4 / 7)
    bare = without_scores(space)
    indices = Selector(space, budget).indices(equal_shares(space))
    assert Selector(bare, budget).indices(equal_shares(bare)) == indices
    found, structure = structure_of(space, model, indices), structure_of(bare, model, indices)
    for s in (found, structure):
        assert {c.size for c in s.candidates if c.kind == "weight_mask"} == {4}
        assert {c.size for c in s.candidates if c.kind == "lora"} == {2}
    assert structure.trainable_params == found.trainable_params // 2
    attach(model, structure)
    assert all(4 / 7 <= share < 0.58 for share in measured_sparsity(model).values())
    for slot in attachment_of(model).slots:
        if slot.kind.name == "weight_mask":
            weight = weight_at(slot.position, model.base_model.get_submodule(slot.position.module))
            size, mask = weight.detach().abs(), slot.unit.mask
            assert size[~mask].max() <= size[mask].min() and not list(slot.unit.parameters())


@pytest.mark.parametrize("settings", [{}, {"start": "probe", "final_temperature": 0.2}], ids=str)
def test_a_search_learns_densities_under_the_sparsity(build, settings):
    model, budget = build("bert", labels=2), Budget(min_weight_sparsity=0.5, text="50% sparsity")
    before = {n: t.clone() for n, t in model.base_model.state_dict().items()}
    space, starts = (
        build_space(model, kinds=MASKS),
        WarmStarts(model, make_task(), TrainConfig(precision="fp32")),
    )
    search = SearchConfig(steps=12, batch_size=8, **settings)
    train = TrainConfig(precision="fp32", batch_size=8)
    problem = RankingContext(
        model, space, make_task(), search, train, (budget,), lambda: starts.get(0, ())
    )
    ranking = rank("s3pet", problem, budget, seed=0)
    assert all(torch.equal(t, before[n]) for n, t in model.base_model.state_dict().items())
    structure = structure_of(space, model, Selector(space, budget).indices(ranking.scores))
    densities = set(measured_sparsity(attach(model, structure)).values())
    assert len(densities) > 2, "not the same everywhere"


def test_the_preset_goes_to_every_linear_of_every_family(build, family):
    model = build(family, labels=2)
    space = build_space(model, preset="pst")
    linears = {p.name for p in space.positions if p.role == "linear"}
    for kind in ("lora", "weight_mask"):
        assert {c.position for c in space.candidates if c.kind == kind} == linears
    structure = structure_of(
        space, model, Selector(space, Budget(min_weight_sparsity=0.9)).indices(equal_shares(space))
    )
    assert counted(space, structure) >= 0.9 * linear_weights(space.positions)
    attach(model, structure)
    held = sum(p.numel() for p in attachment_of(model).parameters())
    assert held == structure.trainable_params == space.trainable_params


def test_the_preset_trains_at_most_one_and_a_half_percent_of_minilm():
    config = BertConfig(
        vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    space = build_space(model, preset="pst")
    assert space.backbone_params == 22_713_216
    assert space.trainable_params <= 0.015 * space.backbone_params


@pytest.mark.parametrize("value", ["100%", "0%", "-5%", "120%", 0.5, "half", True])
def test_a_sparsity_that_is_no_share_is_refused(value):
    with pytest.raises(ValueError, match="above 0% and below 100%"):
        BudgetConfig.model_validate({"min_weight_sparsity": value})


def test_a_sparsity_is_a_budget_of_its_own():
    budget = resolve(1000, min_weight_sparsity="90%")
    assert budget == Budget(min_weight_sparsity=0.9, text="90% sparsity")
    assert budget.as_dict() == {"min_weight_sparsity": 0.9, "text": "90% sparsity"}
    with pytest.raises(ValueError, match="limits nothing.*or min_weight_sparsity"):
        BudgetConfig.model_validate({})


def test_a_pattern_that_does_not_divide_is_refused_before_anything_is_attached(build):
    model = build("bert")
    with pytest.raises(ConfigError, match="3:5 takes groups of 5"):
        build_space(model, kinds={"lora": {}, "weight_mask": {"pattern": "3:5"}})
    assert attachment_of(model) is None
