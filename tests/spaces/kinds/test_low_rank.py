"""Low-rank units of one host run as one pair of products, and only what trains has a gradient computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsearch.spaces.attachment.attach import attach_modules
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.lora.module import LoraUnit
from sparsearch.spaces.kinds.low_rank_product import add_low_rank
from sparsearch.spaces.kinds.spectral.module import SpectralUnit


def make_units(order):
    torch.manual_seed(0)
    spectral, lora = SpectralUnit(20, 12, blocks=2, block=4), LoraUnit(20, 12, 3, 2.0)
    for tensor in (spectral.left, spectral.right, spectral.values.data, lora.B.data):
        nn.init.normal_(tensor)
    return [{"spectral": spectral, "lora": lora}[name] for name in order]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "order", [("spectral", "lora"), ("lora", "spectral"), ("lora",), ("spectral",)], ids=str
)
def test_together_they_add_what_each_adds_alone(order, bf16):
    """Values and all gradients: of inputs, of the host, of gates, of factors, of a vector beside."""
    units, host = make_units(order), nn.Linear(20, 12)
    x = torch.randn(5, 7, 20, requires_grad=True)
    vector, weights = torch.randn(12, requires_grad=True), torch.randn(5, 7, 12)
    gates = [torch.rand(2 if u.shared == {"values": 0} else 3, requires_grad=True) for u in units]
    inputs = [x, vector, *host.parameters(), *gates, *(p for u in units for p in u.parameters())]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        joint = add_low_rank(host(x), x, units, gates, [vector])
        apart = host(x) + sum(u(x, g) for u, g in zip(units, gates, strict=True)) + vector
    tolerance = 0.02 if bf16 else 1e-5
    for a, b in [
        (joint, apart),
        *zip(
            *(torch.autograd.grad((y.float() * weights).sum(), inputs) for y in (joint, apart)),
            strict=True,
        ),
    ]:
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_what_is_frozen_costs_no_gradient():
    """Products of the backward pass: with the inputs' two, and one per factor over its trained part alone."""
    (spectral, lora), host = make_units(("spectral", "lora")), nn.Linear(20, 12)
    host.requires_grad_(False)
    x = torch.randn(35, 20, requires_grad=True)
    y = add_low_rank(host(x), x, [spectral, lora], [None, None])
    with torch.profiler.profile(record_shapes=True) as seen:
        y.sum().backward()
    sizes = {tuple(map(tuple, e.input_shapes[:2])) for e in seen.events() if e.name == "aten::mm"}
    assert ((12, 35), (35, 3)) in sizes and ((3, 35), (35, 20)) in sizes
    assert ((12, 35), (35, 11)) not in sizes and ((11, 35), (35, 20)) not in sizes


def test_inference_mode_gives_what_no_grad_does(build, inputs, randomise):
    """Inputs are shared by their version, which tensors of inference mode do not have."""
    model = build("bert")
    kind = make_kind("lora", {"max_rank": 2})
    attach_modules(model, [(p, kind, 2, 1) for p in positions_of(model) if kind.accepts(p)])
    randomise(model)
    found = []
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode, torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(model(**inputs).logits.float())
    assert torch.equal(*found)
