"""Update clipping: steps as AdamW's while gradients stay alike, shorter by the published factor where they grow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sparsearch.config.study import TrainConfig
from sparsearch.search.training import train as training
from sparsearch.search.training.optimiser import (
    ClippedAdamW,
    learning_rates,
    linear_schedule,
    rates_of,
)
from sparsearch.search.training.train import train
from sparsearch.spaces.attachment.attach import attach_modules
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.kinds import make_kind
from tests.helpers.training_task import make_task

RATE, DECAY = 1e-2, 0.999


def moves(adamw, gradients, *, shapes=((3, 4), (5,))):
    """How far a step over each gradient's multiple of fixed directions moves the parameters."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    directions = [torch.randn(shape, generator=generator) for shape in shapes]
    optimizer = adamw([{"params": parameters, "lr": RATE}], weight_decay=0.0, fused=True)
    found = []
    for gradient in gradients:
        before = [p.detach().clone() for p in parameters]
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.grad = gradient * direction
        optimizer.step()
        found.append(
            torch.cat([(p - b).flatten() for p, b in zip(parameters, before, strict=True)])
        )
    assert optimizer.param_groups[0]["lr"] == RATE
    return found


@pytest.mark.parametrize("gradients", [[1.0] * 30, [1.0 / (i + 1) for i in range(30)]])
def test_gradients_that_do_not_grow_move_as_they_do_under_adamw(gradients):
    for clipped, plain in zip(
        moves(ClippedAdamW, gradients), moves(torch.optim.AdamW, gradients), strict=True
    ):
        torch.testing.assert_close(clipped, plain)


@pytest.mark.parametrize("jump", [3.0, 30.0])
def test_gradients_that_jump_move_less_by_the_root_of_their_mean_excess(jump):
    steps, gradients = 40, [*[1.0] * 40, jump]
    clipped, plain = (moves(adamw, gradients)[-1] for adamw in (ClippedAdamW, torch.optim.AdamW))
    # Every entry has the same history up to its size: v = (1 - decay) sum of decay^i g_i^2, debiased.
    mean = sum(DECAY ** (steps - i) for i in range(steps)) * (1 - DECAY) + (1 - DECAY) * jump**2
    excess = math.sqrt(jump**2 / (mean / (1 - DECAY ** (steps + 1))))
    assert excess > 2
    torch.testing.assert_close(clipped, plain / excess, rtol=1e-4, atol=1e-8)


def test_entries_that_never_had_a_gradient_do_not_count():
    def last(width):
        parameter = nn.Parameter(torch.zeros(width))
        optimizer = ClippedAdamW([{"params": [parameter], "lr": RATE}], weight_decay=0.0)
        for size in [1.0] * 20 + [20.0]:
            before = parameter.detach().clone()
            parameter.grad = torch.cat([torch.full((2,), size), torch.zeros(width - 2)])
            optimizer.step()
        return (parameter - before).detach()

    assert torch.equal(last(2), last(2000)[:2])
    assert not last(2000)[2:].any()


def test_a_parameter_whose_gradient_comes_late_or_never_is_stepped_over():
    early, late, never = (nn.Parameter(torch.zeros(3)) for _ in range(3))
    optimizer = ClippedAdamW([{"params": [early, late, never], "lr": RATE}], weight_decay=0.0)
    for step in range(4):
        early.grad = torch.ones(3)
        late.grad = torch.ones(3) if step > 1 else None
        optimizer.step()
    torch.testing.assert_close(early.detach(), torch.full((3,), -4 * RATE))
    torch.testing.assert_close(late.detach(), torch.full((3,), -2 * RATE))
    assert not never.detach().any()


def test_a_closure_makes_the_gradients_that_are_clipped():
    def last(by_closure):
        parameter = nn.Parameter(torch.zeros(3))
        optimizer = ClippedAdamW([{"params": [parameter], "lr": RATE}], weight_decay=0.0)
        for size in [1.0] * 20 + [20.0]:

            def closure(size=size):
                optimizer.zero_grad()
                loss = (size * parameter).sum()
                loss.backward()
                return loss

            if by_closure:
                assert optimizer.step(closure) is not None
            else:
                closure()
                assert optimizer.step() is None
        return parameter.detach()

    assert torch.equal(last(True), last(False))


def test_a_schedule_sees_its_own_rates():
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = ClippedAdamW([{"params": [parameter], "lr": RATE}], weight_decay=0.0, fused=True)
    schedule = linear_schedule(optimizer, 10, 0.0)
    for step in range(10):
        assert schedule.get_last_lr() == [pytest.approx(RATE * (10 - step) / 10)]
        parameter.grad = torch.full((3,), 3.0**step)
        optimizer.step()
        schedule.step()
    assert torch.isfinite(parameter).all()


@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_attached_modules_train_clipped_and_whole_backbones_do_not(
    build, monkeypatch, clipped, whole
):
    made = []

    class Seen(ClippedAdamW):
        def step(self, closure=None):
            made.append(self)
            return super().step(closure)

    monkeypatch.setattr(training, "ClippedAdamW", Seen)
    model = build("bert")
    config = TrainConfig(epochs=1, batch_size=16, precision="fp32", clip_updates=clipped)
    if whole:
        groups = rates_of(model.requires_grad_(True), config, whole=True)
    else:
        kind = make_kind("lora", {})
        attach_modules(model, [(p, kind, 1, 1) for p in positions_of(model) if kind.accepts(p)])
        groups = learning_rates(model, 1e-2, {})
    train(model, make_task(), config, groups, seed=0)
    assert bool(made) is (clipped and not whole)
