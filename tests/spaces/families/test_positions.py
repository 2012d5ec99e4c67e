from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from sparsearch.errors import StructureError
from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.backbone.parameters import base_of, layers_of, positions_of
from sparsearch.spaces.families.position import find, matching

PER_LAYER = {
    "bert": 12,
    "roberta": 12,
    "deberta-v2": 12,
    "distilbert": 12,
    "gpt2": 12,
    "llama": 13,
    "opt": 12,
    "t5": 31,
}
OUTSIDE = {"deberta-v2": 2, "t5": 2}


def test_every_family_has_every_position(build, family):
    positions = positions_of(build(family))
    assert len(positions) == 2 * PER_LAYER[family] + OUTSIDE.get(family, 1)
    assert len({p.name for p in positions}) == len(positions)


def test_linears_tile_their_modules_without_overlap(build, family):
    model = build(family)
    modules = dict(base_of(model).named_modules())
    covered: dict[str, list[tuple[int, int]]] = {}
    for p in positions_of(model):
        if p.role == "linear":
            covered.setdefault(p.module, []).append((p.start, p.start + p.out_features))
    for name, spans in covered.items():
        spans.sort()
        width = getattr(modules[name], "out_features", None) or modules[name].nf
        assert spans[0][0] == 0 and spans[-1][1] == width
        assert all(a[1] == b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_what_can_be_cut_is_fed_by_linears_and_read_by_one(build, family):
    model = build(family)
    positions = positions_of(model)
    cuts = [p for p in positions if p.role in ("heads", "neurons")]
    assert cuts
    for cut in cuts:
        sibling = "q" if cut.role == "heads" else "up"
        stem = cut.name.rpartition(".")[0]
        assert cut.feeds[0 if cut.role == "heads" else -1].rows == cut.in_features
        assert find(positions, f"{stem}.{sibling}").out_features == cut.in_features
        assert all(feed.rows % cut.units == 0 for feed in cut.feeds)
        grouped = 2 if family == "llama" else 4
        assert cut.units == (grouped if cut.role == "heads" else cut.in_features)


def test_every_linear_of_the_layers_is_a_position(build, family):
    model = build(family)
    known = {p.module for p in positions_of(model)}
    for name, module in base_of(model).named_modules():
        is_linear = isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
        if is_linear and "pooler" not in name:
            assert name in known


def test_gated_t5_names_gate_and_up():
    config = T5Config(
        d_model=16,
        d_ff=32,
        d_kv=4,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        vocab_size=20,
    )
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    found = {p.name: p.module for p in positions_of(model)}
    assert found["encoder.layers.0.ffn.gate"].endswith("wi_0")
    assert found["decoder.layers.0.ffn.up"].endswith("wi_1")


def test_patterns_do_not_reach_cross_attention_by_accident(build):
    names = [p.name for p in matching(positions_of(build("t5")), ["*.attn.[qkvo]"])]
    assert len(names) == 16
    assert not any("cross" in n for n in names)


def test_unknown_position_lists_the_nearest(build):
    with pytest.raises(StructureError) as caught:
        find(positions_of(build("bert")), "layers.1.attn.w")
    assert "layers.1.attn" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["bert", "deberta-v2", "gpt2", "llama", "distilbert", "opt", "t5"]
)
def test_dense_flops_match_torchs_counter(build, name):
    from torch.utils.flop_counter import FlopCounterMode

    rows, tokens = 2, 8
    model = base_of(build(name, attention="eager"))
    ids = torch.randint(3, 60, (rows, tokens))
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "t5":
        arguments["decoder_input_ids"] = ids
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**arguments)
    pooler = 2 * rows * 32 * 32 if name == "bert" else 0
    rotary = sum(
        count
        for module, counts in counter.get_flop_counts().items()
        if module.endswith("rotary_emb")
        for count in counts.values()
    )
    expected = rows * tokens * dense_flops_per_token(positions_of(build(name)), tokens)
    found = counter.get_total_flops() - pooler - rotary
    assert found - relative_flops(model, rows * tokens) == expected


def relative_flops(model, tokens):
    """What DeBERTa's relative positions cost: projected once per layer, scored with every token, both ways."""
    if model.config.model_type != "deberta-v2":
        return 0
    distances, width = model.encoder.rel_embeddings.weight.shape
    return 2 * len(model.encoder.layer) * (2 * distances * width * (width + tokens))


def test_debertas_convolution_has_a_norm_and_forbids_to_skip_layers(build):
    model = build("deberta-v2", conv_kernel_size=3, conv_act="gelu")
    assert find(positions_of(model), "conv.norm").module == "encoder.conv.LayerNorm"
    assert layers_of(model) is None and layers_of(build("deberta-v2")) is not None


def test_opt_without_last_norm_and_with_norms_without_weights(build):
    narrowed_positions = build("opt", do_layer_norm_before=False, word_embed_proj_dim=16)
    names = {p.name for p in positions_of(narrowed_positions)}
    assert len(names) == 2 * PER_LAYER["opt"] and "layers.1.ffn.norm" in names
    bare = positions_of(build("opt", layer_norm_elementwise_affine=False))
    assert not any(p.role == "norm" for p in bare)
