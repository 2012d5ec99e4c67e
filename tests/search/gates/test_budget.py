"""The budget equation: it holds, it cannot fail, its gradient is exact, it never waits for the device."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsearch.search.gates.shift import shifted_logits, solve_shift, solve_tau


def spread_alpha(gates: int, spread: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    alpha = torch.randn(gates, generator=generator, dtype=torch.float64)
    return alpha * (spread / max(float(alpha.max() - alpha.min()), 1e-9)) if gates > 1 else alpha


def costs(gates: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 10_000, (gates,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999999])
@pytest.mark.parametrize("spread", [0.0, 1.0, 50.0, 1e4])
@pytest.mark.parametrize("gates", [1, 2, 916, 100_000])
def test_expected_cost_equals_the_budget(gates, spread, share, dtype):
    alpha, cost = spread_alpha(gates, spread).to(dtype), costs(gates)
    budget = share * float(cost.sum())
    p = torch.sigmoid(shifted_logits(alpha, cost, budget))
    assert float((cost * p).sum()) == pytest.approx(budget, rel=1e-6)
    assert bool(((p >= 0) & (p <= 1)).all())


@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_two_groups_far_apart(far):
    alpha = torch.tensor([0.0] * 10 + [far] * 10, dtype=torch.float64)
    cost = torch.full((20,), 7)
    for budget in (1.0, 69.0, 70.0, 70.001, 71.0, 139.0):
        p = torch.sigmoid(shifted_logits(alpha, cost, budget))
        assert float((cost * p).sum()) == pytest.approx(budget, rel=1e-6)


def test_budgets_outside_the_range_take_the_nearer_end():
    alpha, cost = spread_alpha(50, 5.0), costs(50)
    nothing = torch.sigmoid(shifted_logits(alpha, cost, 0.0))
    everything = torch.sigmoid(shifted_logits(alpha, cost, 2.0 * float(cost.sum())))
    assert float((cost * nothing).sum()) < 1e-6
    assert float((cost * everything).sum()) == pytest.approx(float(cost.sum()), rel=1e-6)


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_gradient_matches_finite_differences(share, beta):
    alpha, cost = spread_alpha(12, 4.0).requires_grad_(), costs(12)
    weight = torch.randn(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    budget = share * float(cost.sum())

    def loss(a):
        return (weight * torch.sigmoid(shifted_logits(a, cost, budget, beta)).square()).sum()

    (gradient,) = torch.autograd.grad(loss(alpha), [alpha])
    step = 1e-5
    for j in range(12):
        ahead, behind = alpha.detach().clone(), alpha.detach().clone()
        ahead[j] += step
        behind[j] -= step
        difference = (loss(ahead) - loss(behind)) / (2 * step)
        assert float(gradient[j]) == pytest.approx(float(difference), abs=1e-6)


def test_gradient_is_the_formula_and_keeps_the_expected_cost():
    alpha, cost = spread_alpha(40, 6.0).requires_grad_(), costs(40).double()
    p = torch.sigmoid(shifted_logits(alpha, cost, 0.2 * float(cost.sum())))
    g = torch.randn(40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(p, [alpha], g)
    slope = (p * (1 - p)).detach()
    expected = slope * (g - cost * (g * slope).sum() / (cost * slope).sum())
    assert torch.allclose(gradient, expected, atol=1e-10)
    (along,) = torch.autograd.grad(
        (cost * torch.sigmoid(shifted_logits(alpha, cost, 50.0))).sum(), [alpha]
    )
    assert float(along.abs().max()) < 1e-9


def test_saturated_gates_have_a_zero_gradient_and_no_nan():
    alpha = torch.tensor([1e4, -1e4], requires_grad=True)
    p = torch.sigmoid(shifted_logits(alpha, torch.tensor([5, 5]), 5.0))
    (gradient,) = torch.autograd.grad(p.sum(), [alpha])
    assert torch.isfinite(gradient).all()


def test_no_host_synchronisation_in_solve_or_gradient():
    """A fake tensor has no data: reading a value on the host raises."""
    with FakeTensorMode():
        alpha = torch.zeros(916, requires_grad=True)
        cost = torch.ones(916)
        logits = shifted_logits(alpha, cost, 12.0)
        torch.autograd.grad(logits.sum(), [alpha])
        solve_tau(alpha, cost, 12.0)
        with pytest.raises(RuntimeError):
            float(logits.detach().sum())


def test_shift_is_the_known_one_for_equal_gates():
    shift = solve_shift(torch.full((8,), 3.0), torch.full((8,), 10.0), 20.0)
    assert float(shift) == pytest.approx(3.0 - math.log(0.25 / 0.75), abs=1e-9)


@pytest.mark.parametrize("spread", [0.0, 3.0, 1e3])
@pytest.mark.parametrize("share", [0.01, 0.5])
def test_tau_is_the_smallest_without_a_probability_above_one(spread, share):
    alpha, cost = spread_alpha(100, spread), costs(100)
    budget = share * float(cost.sum())
    tau = solve_tau(alpha, cost, budget)
    share_of = torch.softmax(alpha / tau, dim=0)
    p = budget * share_of / (cost * share_of).sum()
    assert float(p.max()) <= 1 + 1e-9
    assert float((cost * p).sum()) == pytest.approx(budget, rel=1e-9)
    if float(tau) > 1:
        tighter = torch.softmax(alpha / (tau * 0.999), dim=0)
        assert float((budget * tighter / (cost * tighter).sum()).max()) > 1
