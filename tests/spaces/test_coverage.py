"""What positions reach of a backbone, and that nothing else is passed over in silence."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import OlmoeConfig, OlmoeModel

from sparsearch.spaces import coverage
from sparsearch.spaces.backbone.parameters import base_of, count_with_pooler, positions_of
from sparsearch.spaces.coverage import describe_unreached, find_unreached, reach_of
from sparsearch.spaces.space import build_space

LINEAR, FFN = 32 * 33, 64 * 33 + 32 * 65


class Router(nn.Module):
    """It multiplies by a matrix, and is no linear."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 32))


class Experts(nn.Module):
    """Three experts as one tensor."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.zeros(3, 32, 64))
        self.router = Router()


def test_all_but_the_pooler_is_reached(build, family):
    with torch.device("meta"):
        found = find_unreached(build(family))
    assert [(u.module, u.weights) for u in found] == (
        [("pooler.dense", LINEAR)] if family == "bert" else []
    )


def test_what_each_kind_reaches_is_counted_by_role(build):
    kinds = {
        "lora": {"on": ["layers.1.attn.[qv]"], "max_rank": 3},
        "bitfit": {"on": ["*.ffn.up", "*norm"]},
        "adapter": {"on": ["*.ffn"], "bottleneck": 3},
        "heads": {},
        "neurons": {"block": 32},
    }
    model = build("bert")
    found = {(r.kind, r.role): r for r in reach_of(build_space(model, kinds=kinds))}
    assert {key: (r.positions, r.layers, r.of_layers, r.weights) for key, r in found.items()} == {
        ("lora", "linear"): (2, 1, 2, 2 * LINEAR),
        ("bitfit", "linear"): (2, 2, 2, 2 * 64 * 33),
        ("bitfit", "norm"): (5, 2, 2, 5 * 64),
        ("adapter", "block"): (2, 2, 2, 2 * FFN),
        ("heads", "heads"): (2, 2, 2, 2 * 4 * LINEAR),
        ("neurons", "neurons"): (2, 2, 2, 2 * FFN),
    }
    assert found["lora", "linear"].share == 2 * LINEAR / count_with_pooler(model)


def test_stacks_of_layers_are_told_apart(build):
    kinds = {"lora": {"on": ["decoder.layers.*.cross.q", "encoder.layers.0.attn.q"]}}
    (found,) = reach_of(build_space(build("t5"), kinds=kinds))
    assert (found.layers, found.of_layers) == (3, 4)


def test_a_fused_linear_of_which_a_part_has_no_position_is_named(build, monkeypatch):
    without = [p for p in positions_of(build("gpt2")) if not p.name.endswith("attn.k")]
    monkeypatch.setattr(coverage, "positions_of", lambda model: without)
    found = find_unreached(build("gpt2"))
    assert [(u.module, u.weights) for u in found] == [
        (f"h.{layer}.attn.c_attn", LINEAR) for layer in (0, 1)
    ]


def test_experts_and_what_no_table_names_are_told_with_their_reason(build):
    model = build("llama")
    base_of(model).layers[1].mlp.experts = Experts()
    base_of(model).layers[1].mlp.shared = nn.Linear(32, 32)
    base_of(model).projection = nn.Linear(32, 32)
    found = {u.module: u for u in find_unreached(model)}
    assert {path: (u.what, u.weights) for path, u in found.items()} == {
        "layers.1.mlp.experts": ("expert", 3 * 32 * 64),
        "layers.1.mlp.experts.router": ("expert", 3 * 32),
        "layers.1.mlp.shared": ("linear", LINEAR),
        "projection": ("linear", LINEAR),
    }
    assert "tensors of their own" in found["layers.1.mlp.experts"].reason
    assert "part of a layer" in found["layers.1.mlp.shared"].reason
    assert "outside the layers" in found["projection"].reason


def test_the_experts_of_a_guessed_family_are_named():
    config = OlmoeConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_experts=4,
    )  # fmt: skip
    with torch.device("meta"):
        model = OlmoeModel(config)
    found = {u.module: (u.what, u.weights) for u in find_unreached(model)}
    assert found == {
        f"layers.{n}.mlp.{part}": what
        for n in (0, 1)
        for part, what in (
            ("experts", ("expert", 4 * 3 * 32 * 48)),
            ("gate", ("tensor", 4 * 32)),
        )
    }


@pytest.mark.parametrize("shared", [True, False])
def test_linears_of_relative_positions_feed_heads_and_are_said_to(build, shared):
    model = build("deberta-v2", share_att_key=shared)
    found = find_unreached(model)
    assert {u.module.rpartition(".")[2] for u in found} == (
        set() if shared else {"pos_key_proj", "pos_query_proj"}
    )
    assert all("feeds heads" in u.reason for u in found)
    lines = describe_unreached(found, 10_000)
    assert len(lines) == (0 if shared else 2)
    assert all(line.startswith("encoder.layer.*.attention.self.pos_") for line in lines)
    assert all("(2 linears, 21% of the backbone)" in line for line in lines)
