"""Weight masks: scores and their gradients, saliency, the schedule, which weights go first."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from sparsearch.errors import StructureError
from sparsearch.spaces.calibration.calibrate import calibrate, find_bases
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.compaction.sparsity import measured_sparsity
from sparsearch.spaces.kinds.weight_mask.masking import cubic, pack, smallest, unpack
from tests.helpers.logits import logits
from tests.helpers.masked_model import (
    LORA,
    POSITION,
    linears,
    mask_kind,
    masked_model,
    masks_of,
    share_of,
    weights_at,
)


def test_at_the_start_the_score_is_the_magnitude_and_no_band_is_the_backbone(
    build, family, inputs
):
    model = build(family)
    before = logits(model, inputs)
    masked_model(model, mask_kind(), 0, LORA)
    assert torch.allclose(logits(model, inputs), before, rtol=0, atol=1e-6)
    weights = weights_at(model)
    for name, unit in masks_of(model).items():
        assert torch.allclose(unit.scores(weights[name]), weights[name].abs())
        assert unit.mask.all()


@pytest.mark.parametrize("importance", ["magnitude", "saliency"])
@pytest.mark.parametrize("options", [{}, {"rank": 0}, {"structured": False}], ids=str)
def test_gradients_are_those_of_pst(options, importance):
    """dL/dS = G * W', dL/dW' = G * (M + U * |W'|), by hand and by autograd of a surrogate."""
    torch.manual_seed(0)
    host = nn.Linear(12, 10).double()
    kind = mask_kind(alpha_low_rank=0.5, alpha_structured=2.0, importance=importance, **options)
    position = dataclasses.replace(POSITION, in_features=12, out_features=10)
    unit = kind.build(position, 3, host).double()
    factor = torch.ones(10, 12, dtype=torch.float64)
    if importance == "saliency":
        gradients, inputs = torch.rand(10).double(), torch.rand(12).double()
        unit.align(gradients, inputs, host.weight.detach())
        factor = torch.outer(gradients, inputs) / torch.outer(gradients, inputs).mean()
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    unit.settled = False
    weight = (host.weight + 0.1 * torch.randn(10, 12)).detach().requires_grad_()
    gradient = torch.randn(10, 12, dtype=torch.float64)
    parameters = [weight, *unit.parameters()]
    found = torch.autograd.grad(unit.masked(weight), parameters, gradient)

    scale = (factor * host.weight.abs()).mean().detach()
    score = factor * weight.abs()
    if unit.A is not None:
        score = score + scale * 0.5 * unit.A @ unit.B
    if unit.R is not None:
        score = score + scale * 2.0 * (unit.R[:, None] + unit.C[None, :])
    assert torch.allclose(unit.scores(weight), score, rtol=1e-12)
    through = (unit.mask + score - score.detach()) * weight
    expected = torch.autograd.grad(through, parameters, gradient)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)

    to_score = scale * gradient * weight.detach()
    by_hand = {"weight": gradient * (unit.mask + factor * weight.detach().abs())}
    if unit.A is not None:
        by_hand |= {"A": 0.5 * to_score @ unit.B.T, "B": 0.5 * unit.A.T @ to_score}
    if unit.R is not None:
        by_hand |= {"R": 2.0 * to_score.sum(1), "C": 2.0 * to_score.sum(0)}
    names = ["weight", *dict(unit.named_parameters())]
    assert set(by_hand) == set(names)
    for name, a in zip(names, found, strict=True):
        assert torch.allclose(a, by_hand[name], rtol=1e-12, atol=1e-14), name


@pytest.mark.parametrize("family", ["gpt2", "deberta-v2"])
def test_saliency_is_the_root_mean_square_of_single_gradients(build, inputs, family):
    """Over tokens that a gradient reaches, in fused projections too, and not over DeBERTa's relative positions."""
    model = build(family)
    kind = mask_kind(importance="saliency")
    places = [p for p in linears(model) if p.name in ("layers.0.attn.k", "layers.1.ffn.up")]
    inputs = {**inputs, "labels": torch.zeros(len(inputs["input_ids"]), dtype=torch.long)}
    found = find_bases(
        model, [(p, kind) for p in places], (model(**inputs).loss for _ in range(2))
    )
    for p in places:
        seen = {}
        host = model.base_model.get_submodule(p.module)
        hook = host.register_forward_hook(
            lambda m, x, y, s=seen: s.update({"x": x[0], "y": y} | s)
        )
        loss = model(**inputs).loss
        hook.remove()
        (g,) = torch.autograd.grad(loss, seen["y"])
        g, x = g.flatten(0, 1), seen["x"].flatten(0, 1)
        x, g = x[(g != 0).any(1)], g[(g != 0).any(1)][:, p.start : p.start + p.out_features]
        gradients, columns = found[p.name, "weight_mask"]
        batch = len(inputs["input_ids"])
        assert torch.allclose(columns, x.square().mean(0).sqrt(), rtol=1e-4)
        assert torch.allclose(gradients, batch * g.square().mean(0).sqrt(), rtol=1e-4)


def test_masks_by_saliency_prune_what_hurts_least(build, inputs):
    model = build("bert")
    name = "layers.0.attn.q"
    masked_model(model, mask_kind(importance="saliency"), 3, names=[name])
    unit, weight = masks_of(model)[name], weights_at(model)[name]
    by_magnitude = unit.mask.clone()
    batch = {**inputs, "labels": torch.zeros(len(inputs["input_ids"]), dtype=torch.long)}
    calibrate(model, (model(**batch).loss for _ in range(1)))
    size = unit.factor * weight.abs()
    assert not torch.equal(unit.mask, by_magnitude) and unit.mask.sum() == by_magnitude.sum()
    assert size[~unit.mask].max() <= size[unit.mask].min()
    assert float(unit.factor.mean()) == pytest.approx(1.0, rel=1e-5)
    assert "factor" not in unit.state_dict() and unit.double().factor.dtype == torch.float64


def test_a_final_mask_is_a_constant():
    torch.manual_seed(0)
    unit = mask_kind().build(POSITION, 3, nn.Linear(32, 32))
    weight = torch.randn(32, 32, requires_grad=True)
    gradient = torch.randn(32, 32)
    unit.masked(weight).backward(gradient)
    assert torch.equal(weight.grad, gradient * unit.mask)
    assert all(p.grad is None for p in unit.parameters())


def test_the_schedule_is_monotone_from_dense_to_final():
    for steps in (1, 2, 3, 7, 100, 1001):
        shares = [cubic(step, steps) for step in range(steps + 1)]
        assert shares == sorted(shares) and shares[-1] == 1.0
        assert all(s == 1.0 for s in shares[7 * steps // 10 :])
        assert steps == 1 or all(s == 0.0 for s in shares[: steps // 10 + 1])
    # s(t) of PST, section 2.1, with t_i = 0.1 T, t_f = 0.3 T.
    assert cubic(25, 100) == pytest.approx(1 - (1 - 15 / 60) ** 3)


def test_density_is_one_minus_the_sparsity_of_each_matrix(build, family, randomise):
    model = build(family)
    size, steps = 5, 60
    attachment = masked_model(model, mask_kind(every=4), size, LORA)
    randomise(model)
    totals = {name: unit.mask.numel() for name, unit in masks_of(model).items()}
    assert len(set(totals.values())) > 1
    due = 0
    for step in range(steps + 1):
        attachment.advance(step, steps)
        due = step if step % 4 == 0 or step >= 42 else due
        assert attachment.settled == (step >= 42)
        for name, unit in masks_of(model).items():
            count = int(cubic(due, steps) * share_of(totals[name], size))
            assert int((~unit.mask).sum()) == count
    shares = {n: share_of(t, size) / t for n, t in totals.items()}
    assert measured_sparsity(model) == shares
    assert measured_sparsity(merge(model)) == shares


def test_a_new_mask_follows_the_learnt_scores(build):
    model = build("bert")
    name = "layers.0.attn.q"
    attachment = masked_model(model, mask_kind(), 1, names=[name])
    unit = masks_of(model)[name]
    magnitude = unit.mask.clone()
    with torch.no_grad():
        unit.R[0] = -100.0
    attachment.advance(71, 100)
    assert torch.equal(unit.mask, magnitude), "final until a training starts"
    for step in (0, 70):
        attachment.advance(step, 100)
    assert not unit.mask[0].any() and int((~unit.mask).sum()) == share_of(1024, 1)
    assert torch.equal(unpack(unit.packed, (32, 32)), unit.mask)


@pytest.mark.parametrize("importance", ["magnitude", "saliency"])
@pytest.mark.parametrize("told", [True, False], ids=["told", "not-told"])
@pytest.mark.parametrize("stop", range(0, 12, 2))
def test_a_mask_that_goes_on_develops_as_if_never_stopped(build, inputs, importance, told, stop):
    """Whether or not the loop tells the step that it goes on from, before the next one."""
    kind, name, steps = mask_kind(importance=importance, every=3), "layers.0.attn.q", 12
    model, again = build("bert"), build("bert")
    first, second = (masked_model(m, kind, 3, names=[name]) for m in (model, again))
    if importance == "saliency":
        batch = {**inputs, "labels": torch.zeros(len(inputs["input_ids"]), dtype=torch.long)}
        calibrate(model, (model(**batch).loss for _ in range(1)))
    unit, other = masks_of(model)[name], masks_of(again)[name]
    for step in range(steps + 1):
        with torch.no_grad():
            unit.R += 0.1 * torch.randn_like(unit.R)
            other.R.copy_(unit.R)
        first.advance(step, steps)
        if step == stop:
            again.load_state_dict(model.state_dict())
        if step > stop or (step == stop and told):
            second.advance(step, steps)
            assert torch.equal(other.mask, unit.mask) and second.settled == first.settled


def test_masks_by_saliency_do_not_train_before_it_is_known(build):
    model = build("bert")
    attachment = masked_model(model, mask_kind(importance="saliency"), 3)
    with pytest.raises(StructureError, match="goes by saliency, and at step 1") as error:
        for step in range(2):
            attachment.advance(step, 10)
    assert "calibrate" in error.value.hint


def test_w_prime_is_what_is_ranked(build):
    model = build("bert")
    name = "layers.0.attn.q"
    attachment = masked_model(model, mask_kind(), 3, LORA, names=[name])
    lora = attachment.slots[1].unit
    with torch.no_grad():
        lora.B.normal_()
    for step in (0, 9):
        attachment.advance(step, 10)
    changed = (weights_at(model)[name] + lora.scale * lora.B @ lora.A).detach()
    order = torch.argsort(changed.abs().flatten())
    assert not masks_of(model)[name].mask.flatten()[order[: share_of(1024, 3)]].any()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 12])
def test_among_equal_scores_the_first_go(count):
    scores = torch.tensor([5.0, 1, 1, 0, 1, 5, 1, 1, 2, 5, 5, 5])
    order = sorted(range(12), key=lambda i: (float(scores[i]), i))
    assert smallest(scores, count).nonzero().flatten().tolist() == sorted(order[:count])


def test_constant_weights_are_pruned_exactly():
    host = nn.Linear(32, 32)
    nn.init.constant_(host.weight, 0.5)
    unit = mask_kind().build(POSITION, 2, host)
    assert (~unit.mask).flatten().nonzero().flatten().tolist() == list(range(share_of(1024, 2)))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8), (7, 9)])
def test_masks_pack_into_bits(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8 and len(packed) == -(-mask.numel() // 8)
    assert torch.equal(unpack(packed, shape), mask)
