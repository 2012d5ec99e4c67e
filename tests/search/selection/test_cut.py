from __future__ import annotations

import dataclasses
import itertools
import random
from fractions import Fraction

import pytest

from sparsearch.config.registry import STRATEGIES
from sparsearch.errors import ConfigError, InfeasibleError, SparsearchError
from sparsearch.search.selection.caps import Caps
from sparsearch.search.selection.selector import Selector
from sparsearch.search.strategies.registry import find_strategy
from sparsearch.search.strategies.uniform import largest_uniform, uniform_levels
from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.budget import Budget, resolve
from sparsearch.spaces.families.position import matching
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.limits import StoredBytes
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import build_space


@pytest.fixture
def space(build):
    kinds = {"lora": {"max_rank": 2}, "bitfit": {}, "lnfit": {}, "adapter": {"bottleneck": 4}}
    return build_space(build("bert"), kinds=kinds)


def ranking(scores):
    return Ranking(tuple(scores), "test", 0)


@pytest.mark.parametrize("rule", ["greedy", "density", "knapsack"])
@pytest.mark.parametrize("seed", range(20))
def test_a_cut_never_exceeds_its_budget_and_wastes_nothing_that_fits(space, rule, seed):
    stream = random.Random(seed)
    scores = [stream.gauss(0, 1) for _ in space.candidates]
    budget = Budget(max_trainable_params=stream.randint(32, space.trainable_params))
    kept = Selector(space, budget, rule).select(ranking(scores).scores)
    used = sum(c.params for c in kept)
    assert used <= budget.get("max_trainable_params")
    remaining = list(space.candidates)
    for c in kept:
        remaining.remove(c)
    assert all(used + c.params > budget.get("max_trainable_params") for c in remaining)


def test_greedy_keeps_the_best_that_fits_and_skips_what_does_not(space):
    scores = [0.0] * len(space.candidates)
    big = next(i for i, c in enumerate(space.candidates) if c.kind == "adapter")
    small = next(
        i for i, c in enumerate(space.candidates) if c.kind == "bitfit" and c.params == 32
    )
    scores[big], scores[small] = 2.0, 1.0
    kept = Selector(space, Budget(max_trainable_params=40)).select(ranking(scores).scores)
    assert [(c.position, c.kind) for c in kept] == [(space.candidates[small].position, "bitfit")]


def test_density_prefers_many_small_ones(space):
    scores = [float(c.params) ** 0.5 for c in space.candidates]
    budget = Budget(max_trainable_params=400)
    assert len(Selector(space, budget, "density").select(ranking(scores).scores)) > len(
        Selector(space, budget).select(ranking(scores).scores)
    )


def test_a_least_that_the_selection_does_not_know_is_refused(space, monkeypatch):
    """Held as a most it would be a wrong answer without a word."""
    monkeypatch.setattr(StoredBytes, "name", "min_bytes")
    with pytest.raises(ConfigError, match="budget max_bytes: the selection keeps to a most"):
        Selector(space, Budget(max_bytes=1000)).indices([1.0] * len(space.candidates))


def test_bytes_and_flops_are_limits_too(space):
    scores = ranking([1.0] * len(space.candidates))
    kept = Selector(space, Budget(max_bytes=1000)).select(scores.scores)
    assert sum(c.bytes for c in kept) <= 1000
    kept = Selector(space, Budget(max_trainable_params=10**6, max_inference_flops=1.0)).select(
        scores.scores
    )
    assert all(c.merged_flops_per_token == 0 for c in kept)
    assert {"lora", "bitfit"} <= {c.kind for c in kept}


def test_everything_fits_a_large_budget(space):
    kept = Selector(space, Budget(max_trainable_params=10**9)).select(
        ranking([0.0] * len(space.candidates)).scores
    )
    assert kept == space.candidates


def test_ties_go_to_the_earlier_candidate(space):
    kept = Selector(space, Budget(max_trainable_params=64)).select(
        ranking([0.0] * len(space.candidates)).scores
    )
    assert kept == (space.candidates[0],)


def test_too_small_a_budget_names_the_smallest_candidate(space):
    with pytest.raises(
        InfeasibleError, match=r"smallest is bitfit at \S+ with 32 parameters"
    ) as caught:
        Selector(space, Budget(max_trainable_params=31, text="31")).select(
            ranking([0.0] * len(space.candidates)).scores
        )
    assert caught.value.exit_code == 3


def test_removing_flops_is_infeasible_where_nothing_removes_them(space):
    with pytest.raises(InfeasibleError, match="nothing in this space removes FLOPs"):
        Selector(
            space, Budget(max_trainable_params=100, max_inference_flops=0.75, text="75% FLOPs")
        ).select(ranking([0.0] * len(space.candidates)).scores)


def test_a_ranking_refuses_nan():
    with pytest.raises(SparsearchError, match="not finite"):
        ranking([0.0, float("nan")])


@pytest.mark.parametrize("strategy", STRATEGIES.of_family("uniform"))
@pytest.mark.parametrize("params", [70, 150, 700, 2_000, 50_000])
def test_uniform_structures_fit_and_no_larger_level_would(space, strategy, params):
    budget = Budget(max_trainable_params=params, text=str(params))
    pattern, caps = find_strategy(strategy), Caps(space, budget)
    own = space.kinds.get(pattern.kind) or make_kind(pattern.kind, {})
    positions = [p for p in matching(space.positions, pattern.on) if own.accepts(p)]
    levels = list(uniform_levels(own, positions))
    try:
        chosen, kind = largest_uniform(pattern, space, budget)
    except InfeasibleError as error:
        assert "smallest is" in str(error)
        assert not caps.fits(levels[0])
        return
    fitting = levels.index(chosen)
    assert all(caps.fits(level) for level in levels[: fitting + 1])
    assert chosen == levels[-1] or not caps.fits(levels[fitting + 1])
    assert {c.kind for c in chosen} == {find_strategy(strategy).kind}
    assert len({c.size for c in chosen}) == 1


def test_lora_qv_takes_the_largest_rank_on_all_layers(space):
    chosen, _ = largest_uniform(
        find_strategy("lora-qv"), space, Budget(max_trainable_params=3 * 4 * 64 + 5)
    )
    assert [(c.position, c.size) for c in chosen] == [
        (f"layers.{layer}.attn.{m}", 3) for layer in (0, 1) for m in "qv"
    ]


def test_lora_qv_falls_back_to_the_top_layers(space):
    chosen, _ = largest_uniform(find_strategy("lora-qv"), space, Budget(max_trainable_params=200))
    assert [c.position for c in chosen] == ["layers.1.attn.q", "layers.1.attn.v"]


def test_uniform_covers_cross_attention(build):
    space = build_space(build("t5"), preset="s3pet-l")
    chosen, _ = largest_uniform(
        find_strategy("lora-qv"), space, Budget(max_trainable_params=10**6)
    )
    assert any(".cross.q" in c.position for c in chosen)


def test_uniform_values_have_the_bits_of_the_strategys_name(build):
    space = build_space(build("bert"), kinds={"lora": {"alpha": 2, "bits": [8, 32]}})
    budget = Budget(max_bytes=1500, text="1500")
    found = {n: largest_uniform(find_strategy(n), space, budget) for n in ("lora-qv", "lora-qv@2")}
    assert {n: kind.name for n, (_, kind) in found.items()} == {
        "lora-qv": "lora@8", "lora-qv@2": "lora@2",
    }  # fmt: skip
    assert {kind.alpha for _, kind in found.values()} == {2}
    ranks = [chosen[0].size for chosen, _ in found.values()]
    assert 3 * ranks[0] < ranks[1], "a quarter of the bytes a value"
    for chosen, _ in found.values():
        assert sum(c.bytes for c in chosen) + space.choice_bytes <= 1500
    assert find_strategy("lora-qv@2").name == "lora-qv@2"
    assert STRATEGIES.family("lora-qv@2") == "uniform" and type(
        find_strategy("lora-qv@2")
    ) is type(find_strategy("lora-qv@2"))
    for wrong in ("lora-qv@3", "lora-qv@", "random@4", "full@4", "nothing@4"):
        assert wrong not in STRATEGIES
        with pytest.raises(ConfigError, match="is no strategy"):
            find_strategy(wrong)


def test_uniform_patterns_go_where_they_were_published(build):
    space = build_space(build("bert"), kinds={"vera": {"rank": 8}, "lora_xs": {}})
    places = {
        name: {
            c.position.split(".", 2)[2]
            for c in largest_uniform(
                find_strategy(name), space, Budget(max_trainable_params=10**6)
            )[0]
        }
        for name in ("lora-mlp", "vera", "ia3", "lora-xs")
    }
    assert places["lora-mlp"] == {"ffn.up", "ffn.down"}
    assert places["vera"] == {"attn.q", "attn.v"}
    assert places["ia3"] == {"attn.k", "attn.v", "ffn.down"}
    assert places["lora-xs"] >= {"attn.q", "attn.k", "attn.v", "attn.o", "ffn.up", "ffn.down"}


def test_uniform_cores_are_whole(build):
    space = build_space(build("bert"), kinds={"lora_xs": {"steps": 1}})
    chosen, _ = largest_uniform(find_strategy("lora-xs"), space, Budget(max_trainable_params=800))
    assert [c.size for c in chosen] == 12 * [64], "rank 8, beyond the candidates"


def test_uniform_gives_narrow_positions_no_more_than_they_have(build):
    kinds = {"spectral": {"block": 8, "max_blocks": 4}}
    space = build_space(build("llama"), kinds=kinds)  # keys and values: 16 of 32 features
    chosen, kind = largest_uniform(
        find_strategy("spectral"), space, Budget(max_trainable_params=10**6)
    )
    sizes = {c.position.rpartition(".")[2]: c.size for c in chosen}
    assert (sizes["q"], sizes["k"], sizes["v"]) == (4, 2, 2)
    assert all(c.size <= kind.largest(space.position(c.position)) for c in chosen)


def test_knapsack_is_exact(space):
    """Against all subsets of a few candidates."""
    stream = random.Random(3)
    few = dataclasses.replace(space, candidates=tuple(stream.sample(space.candidates, 10)))
    low = 0.0
    for _ in range(20):
        scores = [low, *(stream.random() for _ in few.candidates[1:])]
        budget = Budget(max_trainable_params=stream.randint(150, few.trainable_params))
        best = max(
            sum(scores[i] for i in subset)
            for size in range(11)
            for subset in itertools.combinations(range(10), size)
            if sum(few.candidates[i].params for i in subset) <= budget.get("max_trainable_params")
        )
        found = Selector(few, budget, "knapsack").indices(scores)
        assert sum(few.candidates[i].params for i in found) <= budget.get("max_trainable_params")
        assert sum(scores[i] for i in found) == pytest.approx(best)


def test_a_flops_cap_is_exact_and_never_lax(space):
    dense = dense_flops_per_token(space.positions, 128)
    for percent in range(1, 120):
        cap = Caps(space, resolve(1, max_inference_flops=f"{percent}%")).get("max_inference_flops")
        assert cap <= (Fraction(percent, 100) - 1) * dense < cap + 1


@pytest.mark.parametrize("rule", ["greedy", "density", "knapsack"])
@pytest.mark.parametrize("share", [0.9, 0.75])
def test_cuts_make_room_for_what_cannot_be_merged(build, rule, share):
    """The ranking attaches what it would without a limit on FLOPs, and the cuts pay for it."""
    kinds = {"lnfit": {}, "adapter": {"bottleneck": 8}, "heads": {}, "neurons": {"block": 16}}
    space = build_space(build("bert", intermediate_size=160), kinds=kinds)
    for seed in range(10):
        stream = random.Random(seed)
        scores = [stream.random() for _ in space.candidates]
        budget = Budget(max_trainable_params=1500, max_inference_flops=share)
        indices = Selector(space, budget, rule).indices(scores)
        assert Caps(space, budget).fits([space.candidates[i] for i in indices])
        free = Selector(space, Budget(max_trainable_params=1500), rule).indices(scores)
        assert any(space.candidates[i].kind == "adapter" for i in free)
        assert free == [i for i in indices if not space.candidates[i].which]


def test_too_few_flops_for_what_cannot_be_merged_are_named(build):
    space = build_space(build("bert"), kinds={"adapter": {"bottleneck": 8}, "heads": {}})
    scores, params = [0.0] * len(space.candidates), 10**6
    with pytest.raises(InfeasibleError, match="the least that can be attached, adapter") as caught:
        Selector(
            space, Budget(max_trainable_params=params, max_inference_flops=1.0, text="100% FLOPs")
        ).indices(scores)
    assert "allow more FLOPs" in caught.value.hint and caught.value.least_flops > 1
    Selector(
        space,
        Budget(max_trainable_params=params, max_inference_flops=caught.value.least_flops + 1e-9),
    ).indices(scores)
    with pytest.raises(InfeasibleError, match="too small for any candidate") as caught:
        Selector(
            space, Budget(max_trainable_params=10, max_inference_flops=0.9, text="10 params")
        ).indices(scores)
    assert "parameters" in caught.value.hint


@pytest.mark.parametrize(
    ("strategy", "share", "message"),
    [("lora", 0.9, "lora cuts nothing"), ("adapter", 1.0, "least that can be attached, adapter")],
)
def test_a_uniform_pattern_that_has_no_flops_left_says_so(space, strategy, share, message):
    budget = Budget(max_trainable_params=10**6, max_inference_flops=share, text="FLOPs")
    with pytest.raises(InfeasibleError, match=message) as caught:
        largest_uniform(find_strategy(strategy), space, budget)
    assert "parameters" not in str(caught.value)
