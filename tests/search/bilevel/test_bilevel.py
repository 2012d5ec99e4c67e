"""The search itself, on tiny models: gradients, memory of the backbone, determinism, divergence."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from sparsearch.config.study import SearchConfig, TrainConfig
from sparsearch.errors import TrainingDiverged
from sparsearch.search.bilevel.search import BilevelSearch, SearchProblem
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.gates.gates import Gates
from sparsearch.search.gates.idle import IdleModules
from sparsearch.search.gates.targets import BudgetSchedule, Targets
from sparsearch.search.strategies.registry import rank
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.space import build_space
from tests.conftest import FAMILIES
from tests.helpers.tiny_problem import BUDGETS, make_problem
from tests.helpers.tiny_task import TRAIN, make_task

PLAIN = TrainConfig(precision="fp32", batch_size=8, head_first=False)
VARIANTS = [
    {},
    {"order": "second"},
    {"bilevel": False},
    {"control": "tau-theta"},
    {"control": "l0", "relaxation": "hard-concrete"},
    {"budget_gradient": "detach"},
    {"relaxation": "hard-concrete"},
    {"relaxation": "none"},
    {"checkpoint": "best", "valid_every": 2},
    {"checkpoint": "hard", "valid_every": 2},
    {"checkpoint": "hard", "valid_every": 2, "skip_below": 0.1, "start": "probe"},
    {"start": "probe", "final_temperature": 0.2},
    {"start": "probe", "skip_below": 0.1},
    {"warmup": 0.5},
    {"budget_schedule": "annealed"},
    {"budget_schedule": "sampled"},
    {"cut": "knapsack"},
    {"swaps": 3},
    {"start": "probe", "steps": 0},
]


@pytest.mark.parametrize(
    "search", VARIANTS, ids=lambda s: "-".join(map(str, s.values())) or "default"
)
def test_every_variant_ranks_and_leaves_the_backbone_bit_identical(build, search):
    problem = make_problem(build, **search)
    base = problem.model.base_model
    before = {n: t.clone() for n, t in base.state_dict().items()}
    found = rank("s3pet", problem, Budget(max_trainable_params=300), seed=0)
    assert len(found.scores) == len(problem.space.candidates)
    assert len(set(found.scores)) > 1
    assert base.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[n]) for n, t in base.state_dict().items())


def test_warm_up_opens_what_is_attached_and_cuts_nothing(build):
    model, task = build("bert", labels=2), make_task()
    kinds = {"lora": {"max_rank": 1}, "heads": {}, "weight_mask": {"bands": 3}}
    space = build_space(model, kinds=kinds)
    supernet = Supernet(model, space, "classification", "fp32")
    seen = []
    loss = supernet.loss
    supernet.loss = lambda batch, z: seen.append(z) or loss(batch, z)
    gates = Gates(torch.tensor([max(1, c.params) for c in space.candidates]))
    search = SearchConfig(steps=2, batch_size=8, warmup=0.5)
    problem, schedule = SearchProblem(task, search, TRAIN), BudgetSchedule(Targets(300.0))
    bilevel = BilevelSearch(supernet, gates, problem, schedule, seed=0)
    alpha = bilevel.run()
    assert list(bilevel.noted) == [1, 2]
    assert not bilevel.noted[1].any() and torch.equal(bilevel.noted[2], alpha)
    assert seen[0].tolist() == [float(c.kind == "lora") for c in space.candidates]
    supernet.close()


@pytest.mark.parametrize(
    ("family", "order"), [*((family, "first") for family in FAMILIES), ("bert", "second")]
)
def test_equal_seeds_give_equal_rankings_and_others_differ(build, family, order):
    def ranked(seed):
        torch.manual_seed(seed + 100)  # the caller's generator must not matter
        problem = make_problem(build, family, order=order, steps=2)
        return rank("s3pet", problem, Budget(max_trainable_params=300), seed).scores

    first = ranked(0)
    assert first == ranked(0)
    assert first != ranked(1)


def learning(problem) -> SearchProblem:
    return SearchProblem(problem.task, problem.search, TRAIN)


def make_search(build, order: str, dropout: float = 0.0, **search) -> BilevelSearch:
    problem = make_problem(build, order=order, dropout=dropout, **search)
    torch.manual_seed(0)
    gates = Gates(torch.tensor([c.params for c in problem.space.candidates]))
    supernet = Supernet(problem.model, problem.space, "classification", "fp32")
    with torch.no_grad():
        for unit in supernet.attachment.units.parameters():
            unit += 0.05 * torch.randn(unit.shape)
    return BilevelSearch(
        supernet, gates, learning(problem), BudgetSchedule(Targets(600.0)), seed=0
    )


def test_the_finite_difference_is_the_mixed_second_derivative(build):
    """d/d alpha <grad_w L_train, direction>, by automatic double differentiation."""
    search = make_search(build, "second")
    search.supernet.model.eval()
    for attention in (m for m in search.supernet.model.modules() if hasattr(m, "config")):
        attention.config._attn_implementation = "eager"
    batch, noise = next(search.weight_batches), search._draw()
    saved = [w.detach().clone() for w in search.weights]
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(w.shape, generator=generator) for w in search.weights]
    epsilon = 0.01 / torch.stack(torch._foreach_norm(direction)).norm()
    found = search._difference(batch, noise, saved, direction, epsilon)
    search._restore(saved)
    loss = search.supernet.loss(batch, search._sample(noise))
    gradients = torch.autograd.grad(loss, search.weights, create_graph=True)
    along = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    (exact,) = torch.autograd.grad(along, [search.gates.alpha])
    cosine = torch.nn.functional.cosine_similarity(found, exact, dim=0)
    assert float(cosine) > 0.995
    assert float(found.norm() / exact.norm()) == pytest.approx(1.0, abs=0.05)


def test_dropout_is_held_fixed_between_the_two_points(build):
    """With fixed dropout a direction of zeros gives exactly no difference."""
    search = make_search(build, "second", dropout=0.5)
    search.supernet.model.train()
    saved = [w.detach().clone() for w in search.weights]
    nothing = [torch.zeros_like(w) for w in saved]
    found = search._difference(
        next(search.weight_batches), search._draw(), saved, nothing, torch.tensor(1.0)
    )
    assert float(found.abs().max()) == 0.0


def test_the_preconditioner_is_adamws(build):
    """A step of AdamW from a fresh state moves each weight by lr * sign(g), and so does P g."""
    search = make_search(build, "second")
    loss = search.supernet.loss(
        next(search.weight_batches), torch.ones(search.gates.alpha.shape[0])
    )
    gradients = torch.autograd.grad(loss, search.weights)
    scales = search._preconditioner(gradients)
    before = [w.detach().clone() for w in search.weights]
    for w, g in zip(search.weights, gradients, strict=True):
        w.grad = g
    search.optimizer.step()
    for w, b, g, s in zip(search.weights, before, gradients, scales, strict=True):
        assert torch.allclose(w.detach() - b, -s * g, atol=1e-6)


def test_clipping_does_not_change_the_first_hypergradient(build, monkeypatch):
    """From a fresh state AdamW steps by lr * sign(g), however g is scaled: so does the virtual step."""
    found, norms = [], []
    for clip in (1e6, 0.05):
        search = make_search(build, "second", clip=clip)
        search.supernet.model.eval()
        monkeypatch.setattr(search, "_step_alpha", lambda g: found.append(g.clone()))
        monkeypatch.setattr(
            search,
            "_step_weights",
            lambda g: norms.append(float(torch.nn.utils.get_total_norm(g))),
        )
        search.step()
    assert norms[1] == pytest.approx(0.05, rel=1e-3) and norms[0] > 0.1
    whole, clipped = found
    assert float((clipped - whole).norm() / whole.norm()) < 0.02


def test_a_second_order_step_holds_one_backbone(build, monkeypatch):
    problem = make_problem(build, order="second")
    monkeypatch.setattr(copy, "deepcopy", lambda *a, **k: pytest.fail("the model was copied"))
    storages = {p.data_ptr() for p in problem.model.base_model.parameters()}
    rank("s3pet", problem, Budget(max_trainable_params=300), seed=0)
    assert {p.data_ptr() for p in problem.model.base_model.parameters()} == storages


def test_passes_over_the_backbone_per_step(build):
    """Two in first order, four in second: counted, not timed."""
    counted = {}
    for order in ("first", "second"):
        problem, passes = make_problem(build, order=order), []
        problem = dataclasses.replace(problem, train=PLAIN)
        handle = problem.model.base_model.embeddings.register_forward_hook(
            lambda *a, passes=passes: passes.append(1)
        )
        rank("s3pet", problem, Budget(max_trainable_params=300), seed=0)
        handle.remove()
        counted[order] = len(passes) / problem.search.steps
    assert counted == {"first": 2, "second": 4}


def test_divergence_is_an_error_with_advice(build):
    problem = make_problem(build)
    with torch.no_grad():
        next(problem.model.base_model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="NaN or infinity") as caught:
        rank("s3pet", problem, Budget(max_trainable_params=300), seed=0)
    assert "train.lr" in caught.value.hint
    assert not hasattr(problem.model, "sparsearch")


def test_one_search_over_drawn_budgets_holds_each_of_them(build, monkeypatch):
    problem, held = make_problem(build, budget_schedule="sampled", steps=12), []
    original = Gates.sample

    def sample(self, targets, noise):
        p = self.probabilities(targets)
        held.append((targets.params, float((p.detach() * self.cost).sum())))
        return original(self, targets, noise)

    monkeypatch.setattr(Gates, "sample", sample)
    rank("s3pet", problem, BUDGETS[0], seed=0)
    assert all(cost == pytest.approx(budget, rel=1e-6) for budget, cost in held)
    budgets = {budget for budget, _ in held}
    assert len(budgets) == 12 and min(budgets) >= 300 and max(budgets) <= 900


def test_an_annealed_budget_falls_from_the_whole_space_to_the_target(build, monkeypatch):
    problem, seen = make_problem(build, budget_schedule="annealed", steps=9), []
    original = BilevelSearch.begin_step

    def begin(self, step):
        original(self, step)
        seen.append(self.targets.params)

    monkeypatch.setattr(BilevelSearch, "begin_step", begin)
    rank("s3pet", problem, BUDGETS[0], seed=0)
    assert seen[0] == pytest.approx(problem.space.trainable_params)
    assert seen == sorted(seen, reverse=True) and seen[-1] == pytest.approx(300)


def test_temperature_reaches_its_end(build):
    problem = make_problem(build, final_temperature=0.25, steps=5)
    space = problem.space
    supernet = Supernet(problem.model, space, "classification", "fp32")
    gates = Gates(torch.tensor([c.params for c in space.candidates]))
    search = BilevelSearch(supernet, gates, learning(problem), BudgetSchedule(Targets(300.0)), 0)
    search.run()
    assert gates.temperature == pytest.approx(0.25)


def test_a_settled_search_stops_early_and_says_how_many_steps_it_took(build):
    search = {"early_stop": True, "stop_every": 2, "stop_length": 2, "stop_distance": 1.0}
    ranking = rank("s3pet", make_problem(build, steps=50, **search), BUDGETS[0], seed=0)
    assert 4 <= ranking.steps < 50  # distance 1.0 accepts what random cuts would give


def test_skipped_units_do_not_run_and_come_back(build):
    problem = make_problem(build)
    supernet = Supernet(problem.model, problem.space, "classification", "fp32")
    attachment, ran = supernet.attachment, []
    for name, unit in attachment.units.items():
        unit.register_forward_hook(lambda *a, name=name: ran.append(name))
    batch = {
        "input_ids": problem.task.train.inputs["input_ids"],
        "labels": problem.task.train.labels,
    }
    count = len(problem.space.candidates)
    z = torch.ones(count)
    with torch.no_grad():
        for parameter in attachment.units.parameters():
            parameter.normal_()
        idle = [i >= 1 for i in range(count)]  # of the first LoRA's two rank units one is awake
        attachment.skip(idle)
        alone = supernet.loss(batch, z)
        attachment.skip([False] * count)
        first = torch.zeros(count)
        first[:2] = 1.0
        expected = supernet.loss(batch, first)
    assert torch.allclose(alone, expected, atol=1e-6)
    supernet.close()


def test_idle_units_are_those_below_the_threshold():
    gates = Gates(torch.tensor([100.0, 100.0, 100.0]))
    with torch.no_grad():
        gates.alpha.copy_(torch.tensor([6.0, 0.0, -6.0]))
    assert IdleModules(gates, 0.05).refresh(Targets(120.0)) == [False, False, True]
    assert IdleModules(gates, 0.0).refresh(Targets(120.0)) == [False, False, False]
