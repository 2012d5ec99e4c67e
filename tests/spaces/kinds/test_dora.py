"""DoRA's change against the paper's formula, and what a search and other units see of it."""

import pytest
import torch

from sparsearch.spaces.attachment.attach import attach_modules
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.families.position import find, weight_at
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.dora.module import DoraUnit
from tests.helpers.logits import logits


def moved(unit):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter += torch.randn(parameter.shape, generator=generator).to(parameter)
    return unit


def by_the_paper(unit, weight):
    """m V / |V|, with V = W + scale B A."""
    v = weight + unit.scale * unit.B @ unit.A
    m = weight.norm(dim=1) + unit.magnitude
    return (m / v.norm(dim=1).detach())[:, None] * v


def test_output_and_gradients_are_those_of_the_changed_weight():
    unit = moved(DoraUnit(6, 5, 2, 0.5).double())
    x, weight = torch.randn(3, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    expected = x @ by_the_paper(unit, weight).T
    found = x @ weight.T + unit(x, None, weight, x @ weight.T)
    assert torch.allclose(found, expected)
    assert torch.allclose(unit.dense(weight, None), by_the_paper(unit, weight) - weight)
    wanted = torch.autograd.grad(expected.square().sum(), [*unit.parameters()])
    given = torch.autograd.grad(found.square().sum(), [*unit.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(given, wanted, strict=True))


def test_a_row_of_zeros_stays_finite():
    unit, weight = DoraUnit(6, 5, 2, 1.0), torch.zeros(5, 6)
    x = torch.ones(1, 6)
    change = unit(x, None, weight, x @ weight.T)
    change.sum().backward()
    assert torch.equal(change, torch.zeros(1, 5))
    assert all(p.grad.isfinite().all() for p in unit.parameters())


@pytest.mark.parametrize("beside", ["lora", "bitfit", "ia3", "weight_mask"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_beside_others_it_reads_the_weight_that_is_there(build, family, inputs, beside):
    """Gates open or not, it merges beside them to the same logits: units of a stage do not see each other."""
    model = build(family)
    position = find(positions_of(model), "layers.0.attn.k")
    kinds = [make_kind(beside, {}), make_kind("dora", {"rank": 2, "alpha": 1.0})]
    units = [(position, kind, sum(kind.sizes(position)), 1) for kind in kinds]
    attachment = attach_modules(model, units, train_head=False)
    for unit in attachment.units.values():
        moved(unit)
    attachment_of(model).advance(0, 1)
    weight = weight_at(position, base_of(model).get_submodule(position.module)).clone()
    dora = next(u for u in attachment.units.values() if isinstance(u, DoraUnit))
    expected = logits(model, inputs)
    if beside == "bitfit":
        assert torch.allclose(
            dora.dense(weight, None) + weight, by_the_paper(dora, weight), atol=1e-5
        )
    assert torch.allclose(logits(merge(model), inputs), expected, atol=1e-5)
