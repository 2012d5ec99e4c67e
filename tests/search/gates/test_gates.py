from __future__ import annotations

import pytest
import torch

from sparsearch.search.gates.gates import Gates, GateSettings
from sparsearch.search.gates.targets import Targets

COST = torch.tensor([10, 200, 3000, 40, 500] * 20)
BUDGET = 2500.0
TARGETS = Targets(BUDGET)


def gates(**options) -> Gates:
    made = Gates(COST, GateSettings(**options))
    with torch.no_grad():
        made.alpha.copy_(torch.randn(100, generator=torch.Generator().manual_seed(0)))
    return made


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient": "detach"}, {"control": "tau-theta"}],
    ids=["exact", "detach", "tau"],
)
def test_probabilities_meet_the_budget(options):
    p = gates(**options).probabilities(TARGETS)
    assert float((COST * p).sum()) == pytest.approx(BUDGET, rel=1e-6)


def test_a_new_vector_starts_uniform():
    p = Gates(COST).probabilities(TARGETS)
    assert torch.allclose(p, torch.full((100,), BUDGET / float(COST.sum()), dtype=torch.float64))


def test_the_order_of_probabilities_is_that_of_alpha():
    made = gates()
    assert torch.equal(torch.argsort(made.probabilities(TARGETS)), torch.argsort(made.alpha))


def test_detach_has_the_published_gradient():
    """dL/dalpha_j = p'_j (g_j - sum_i g_i p_i / S): methods, section 1.4."""
    made = gates(gradient="detach")
    p = made.probabilities(TARGETS)
    g = torch.randn(100, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(p, [made.alpha], g)
    q = p.detach()
    expected = q * (1 - q) * (g - (g * q).sum() / q.sum())
    assert torch.allclose(gradient.double(), expected, atol=1e-6)


@pytest.mark.parametrize("relaxation", ["concrete", "hard-concrete", "none"])
@pytest.mark.parametrize("control", ["shift", "tau-theta", "l0"])
def test_samples_lie_between_zero_and_one_and_carry_a_gradient(control, relaxation):
    made = gates(control=control, relaxation=relaxation)
    z = made.sample(TARGETS, made.noise(torch.Generator().manual_seed(0)))
    assert z.dtype == torch.float32 and bool(((z >= 0) & (z <= 1)).all())
    weight = torch.linspace(-1, 1, 100)
    (gradient,) = torch.autograd.grad((weight * z).sum(), [made.alpha])
    assert torch.isfinite(gradient).all() and float(gradient.abs().sum()) > 0


def test_concrete_is_above_its_midpoint_with_probability_p():
    made = gates()
    p = made.probabilities(TARGETS).detach()
    generator = torch.Generator().manual_seed(0)
    open_share = torch.stack(
        [made.sample(TARGETS, made.noise(generator)) > 0.5 for _ in range(1500)]
    )
    assert torch.allclose(open_share.double().mean(0), p, atol=0.055)


def test_hard_concrete_reaches_exactly_zero_and_one():
    made = gates(relaxation="hard-concrete")
    with torch.no_grad():
        made.alpha.mul_(5)
    z = made.sample(Targets(BUDGET * 10), made.noise(torch.Generator().manual_seed(0)))
    assert bool((z == 0).any()) and bool((z == 1).any())


def test_a_low_temperature_hardens_the_samples():
    noise = gates().noise(torch.Generator().manual_seed(0))

    def softness(z):
        return float((z * (1 - z)).mean())

    assert softness(gates(temperature=0.1).sample(TARGETS, noise)) < 0.3 * softness(
        gates().sample(TARGETS, noise)
    )


def test_equal_noise_gives_equal_samples():
    made = gates()
    draws = [made.noise(torch.Generator().manual_seed(9)) for _ in range(2)]
    assert torch.equal(made.sample(TARGETS, draws[0]), made.sample(TARGETS, draws[1]))


def test_l0_penalty_prices_parameters_not_gates():
    made = gates(control="l0", relaxation="hard-concrete")
    (gradient,) = torch.autograd.grad(made.penalty(), [made.alpha])
    assert bool((gradient > 0).all())
    with torch.no_grad():
        made.alpha.zero_()
    (gradient,) = torch.autograd.grad(made.penalty(), [made.alpha])
    assert torch.allclose(gradient / gradient.sum(), COST / COST.sum())
