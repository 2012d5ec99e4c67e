"""Whisper in a loop of one's own: what is attached learns to transcribe, and comes off without a trace."""

from __future__ import annotations

import copy

import torch

from sparsearch.spaces.attachment.attach import attach, detach
from sparsearch.spaces.attachment.weights_file import load_weights, weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.coverage import find_unreached
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.conftest import inputs_of, make_model
from tests.helpers.logits import logits

KINDS = {"lora": {"max_rank": 2}, "lnfit": {}, "adapter": {"bottleneck": 4}}


def test_whisper_learns_in_a_plain_loop():
    model = make_model("whisper")
    before = copy.deepcopy(model.state_dict())
    inputs = inputs_of(model)
    said = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(2))
    space = build_space(model, kinds=KINDS)
    parts = {c.position.split(".layers.")[0] for c in space.candidates}
    assert {"encoder", "decoder"} <= parts and any(
        ".cross." in c.position for c in space.candidates
    )
    attach(model, make_structure(space, space.candidates, identify(model), "classification"))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == space.trainable_params
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    model.train()
    losses = []
    for _ in range(40):
        loss = model(input_features=inputs["input_features"], labels=said).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    model.eval()
    learnt, weights = logits(model, inputs), weights_of(model)
    detach(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    attach(model, make_structure(space, space.candidates, identify(model), "classification"))
    load_weights(model, weights)
    assert torch.equal(logits(model.eval(), inputs), learnt)


def test_the_front_end_of_whisper_is_named_with_its_reason():
    found = {u.module: u for u in find_unreached(make_model("whisper"))}
    assert found.keys() == {"encoder.conv1", "encoder.conv2"}
    assert {(u.what, u.reason) for u in found.values()} == {
        ("convolution", "a convolution, and kinds go to linears and norms")
    }
