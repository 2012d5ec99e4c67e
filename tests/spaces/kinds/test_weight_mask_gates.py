"""Gates of weight masks: bands fade, gates of one are a structure, gradients are right."""

from __future__ import annotations

import pytest
import torch

from sparsearch.spaces.attachment.attach import attach_modules
from sparsearch.spaces.attachment.weights_file import load_weights, weights_of
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.families.position import find
from tests.helpers.logits import logits
from tests.helpers.masked_model import (
    BANDS,
    INSIDE,
    LORA,
    linears,
    mask_kind,
    masked_model,
    share_of,
    weights_at,
)


def test_gates_fade_bands_of_the_smallest_weights(build):
    model = build("bert")
    name = "layers.0.ffn.up"
    kind, position = mask_kind(), find(positions_of(model), name)
    attachment = attach_modules(model, [(position, kind, BANDS - 1, BANDS - 1)])
    weight = weights_at(model)[name]
    order = torch.argsort(weight.abs().flatten(), stable=True)
    z = torch.tensor([0.1, 0.2, 0.0, 0.5, 1.0, 0.3])
    (masked,) = attachment.masked
    with attachment.gated(z):
        found = masked.used(attachment.slots[0].position).flatten()[order]
    edges = [share_of(2048, band) for band in range(BANDS + 1)]
    for band, (a, b) in enumerate(zip(edges, edges[1:], strict=False)):
        gate = float(z[band]) if band < 6 else 0.0
        assert torch.allclose(found[a:b], weight.flatten()[order[a:b]] * (1 - gate))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"pattern": "2:4"}], ids=str)
def test_gates_of_one_are_the_structure_of_that_size(build, family, options, inputs, randomise):
    kind = mask_kind(**options)
    wholes = [0, 2, 6] if not options else [0, 2]
    for size in wholes:
        model = build(family)
        units = [(p, kind, sum(kind.sizes(p)), len(kind.sizes(p))) for p in linears(model)]
        lora = [(p, LORA, 2, 2) for p in linears(model)]
        attachment = attach_modules(model, [*units, *lora])
        torch.manual_seed(1)
        randomise(model)
        weights = weights_of(model)
        if options:
            gates = torch.full((len(units),), float(size == 2))
        else:
            gates = (torch.arange(6) < size).float().repeat(len(units))
        with attachment.gated(torch.cat([gates, torch.ones(2 * len(units))])):
            found = logits(model, inputs)
        other = build(family)
        masked_model(other, kind, size, LORA)
        loaded = {**weights_of(other), **{n: t for n, t in weights.items() if "packed" not in n}}
        load_weights(other, loaded)
        assert torch.allclose(logits(other, inputs), found, atol=1e-5)


def test_gradients_of_gates_are_finite_differences(build, inputs, randomise):
    model = build("bert").double()
    kind = mask_kind()
    places = [p for p in linears(model) if p.layer == 1]
    units = [(p, kind, 6, 6) for p in places]
    units += [(p, k, sum(k.sizes(p)), len(k.sizes(p))) for k in INSIDE for p in places]
    attachment = attach_modules(model, units)
    model.double()
    randomise(model)
    count = sum(attachment.gate_sizes)
    z = torch.rand(count, generator=torch.Generator().manual_seed(0)).double()
    z.requires_grad_()

    def loss(gates):
        with attachment.gated(gates):
            return model(**inputs).logits.square().sum()

    (gradient,) = torch.autograd.grad(loss(z), [z])
    with torch.no_grad():
        for i in range(0, len(z), 3):
            step = torch.zeros_like(z)
            step[i] = 1e-5
            difference = (loss(z + step) - loss(z - step)) / 2e-5
            assert float(gradient[i]) == pytest.approx(float(difference), rel=1e-5, abs=1e-9)
