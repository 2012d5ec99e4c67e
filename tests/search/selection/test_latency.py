"""What cutting saves at inference."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from sparsearch.errors import InfeasibleError
from sparsearch.search.selection.latency import SlimLatency, even_cut, flops_at, measure_latency
from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.backbone.parameters import positions_of
from tests.helpers.command_line import call

TOKENS = 16


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        vocab_size=50,
    )
    return BertForSequenceClassification(config)


def test_layers_are_cut_evenly_within_the_flops(model):
    structure = even_cut(model, 0.6, TOKENS)
    total = dense_flops_per_token(positions_of(model), TOKENS)
    assert 0.5 < 1 + structure.inference_flops(TOKENS) / total <= 0.6
    for kind, of_layer, step in (("heads", 4, 1), ("neurons", 512, 16)):
        first, second = (c.size for c in structure.candidates if c.kind == kind)
        assert 0 < first < of_layer and abs(first - second) <= step


def test_the_dense_model_stays_and_what_cannot_be_reached_is_left_out(model):
    before = {name: p.clone() for name, p in model.named_parameters()}
    measured = measure_latency(model, (0.01, 0.5, 0.8), tokens=TOKENS, rounds=3)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert [round(m.flops, 1) for m in measured] == [0.8, 0.5]
    assert all(m.seconds > 0 and m.low <= m.ratio <= m.high for m in measured)


def test_the_flops_of_a_latency_lie_between_those_measured():
    points = [SlimLatency(f, 0.0, r, r, r) for f, r in ((0.8, 0.9), (0.5, 0.6), (0.4, 0.5))]
    assert flops_at(0.95, points) == pytest.approx(0.9)
    assert flops_at(0.55, points) == pytest.approx(0.45)
    assert flops_at(0.6, points) == pytest.approx(0.5)
    assert flops_at(0.3, points) is None


def test_the_command_tells_the_flops_or_that_there_are_none(tiny_folder):
    done = call("latency", str(tiny_folder), "--target", "99.9%", "--rounds", "3", "--json")
    document = json.loads(done.out)
    assert done.code == (3 if document["max_inference_flops"] is None else 0)
    impossible = call("latency", str(tiny_folder), "--target", "0.01%", "--rounds", "3")
    assert impossible.code == 3 and "not 0.01%" in impossible.err
    assert call("latency", str(tiny_folder), "--target", "much").code == 2
    whole = call("latency", str(tiny_folder), "--target", "150%")
    assert whole.code == 2 and "below 100%" in whole.err
    long = call("latency", str(tiny_folder), "--tokens", "5000", "--rounds", "3")
    assert long.code == 2 and "does not take 1 x 5000 tokens" in long.err


def test_what_cannot_be_cut_so_far_says_what_can(model):
    with pytest.raises(InfeasibleError, match="the least it can reach is"):
        measure_latency(model, (0.01, 0.02), tokens=TOKENS, rounds=3)
