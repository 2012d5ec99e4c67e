"""Identity of a backbone: it sees every weight and every setting that matters, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoModelForTokenClassification, BertModel

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach, detach
from sparsearch.spaces.backbone.fingerprint import fingerprint
from sparsearch.spaces.backbone.identity import identify, same_weights, weight_fingerprint
from sparsearch.spaces.backbone.parameters import backbone_parameters, base_of
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure


def structure_of(model):
    space = build_space(model, kinds={"bitfit": {"on": ["*layers.0.*.q"]}})
    return make_structure(space, space.candidates, identify(model, "here"), "classification")


def build_with_all_parts(build, family):
    """A model whose family's optional parts (a convolution, in DeBERTa-v2) are there."""
    more = {"conv_kernel_size": 3, "conv_act": "tanh"} if family == "deberta-v2" else {}
    return build(family, **more)


def test_identity_sees_each_single_weight_of_the_backbone(build, family):
    model = build_with_all_parts(build, family)
    structure = structure_of(model)
    before = weight_fingerprint(model)
    names = [name for name, _ in backbone_parameters(model)]
    assert any("embed" in name or "wte" in name or "shared" in name for name in names)
    for name, weight in backbone_parameters(model):
        entry = weight.detach().view(-1)[weight.numel() // 2 :][:1]
        kept = entry.clone()
        entry += 2**-10
        assert weight_fingerprint(model) != before, name
        assert not same_weights(model, before), name
        entry.copy_(kept)
    assert weight_fingerprint(model) == before
    weight = dict(backbone_parameters(model))[names[0]]  # of the embeddings
    with torch.no_grad():
        torch.nn.init.normal_(weight)
    with pytest.raises(StructureError, match="belongs to another backbone"):
        attach(model, structure)


def test_identity_sees_two_weights_of_one_shape_in_each_others_place(build):
    model = build("bert")
    before, attention = weight_fingerprint(model), model.bert.encoder.layer[0].attention.self
    attention.query.weight, attention.key.weight = attention.key.weight, attention.query.weight
    assert weight_fingerprint(model) != before


def test_identity_sees_buffers_that_are_saved_with_the_weights(build):
    model = build("bert")
    base_of(model).register_buffer("scale", torch.ones(3))
    before = weight_fingerprint(model)
    base_of(model).scale[1] = 2.0
    assert weight_fingerprint(model) != before


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("bert", {"num_attention_heads": 2}),
        ("bert", {"hidden_act": "relu"}),
        ("bert", {"layer_norm_eps": 1e-5}),
        ("roberta", {"hidden_act": "relu"}),
        ("roberta", {"pad_token_id": 0}),  # its position ids begin behind it
        ("distilbert", {"n_heads": 2}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"n_head": 2}),
        ("llama", {"rms_norm_eps": 1e-3}),
        ("opt", {"do_layer_norm_before": False}),
        ("t5", {"relative_attention_max_distance": 16}),
        ("t5", {"decoder_start_token_id": 5}),
        ("deberta-v2", {"pos_att_type": ["c2p"]}),
    ],
)
def test_identity_sees_settings_with_which_equal_weights_compute_something_else(
    build, family, setting
):
    model = build(family)
    structure = structure_of(model)
    other = build(family, **setting)
    if {n for n, _ in other.named_parameters()} == {n for n, _ in model.named_parameters()}:
        other.load_state_dict(model.state_dict())
    with pytest.raises(StructureError, match="other settings|another backbone"):
        attach(other, structure)


def test_identity_does_not_see_what_does_not_matter(build):
    model = build("bert")
    structure = structure_of(model)
    other = build(
        "bert",
        hidden_dropout_prob=0.3,
        attention_probs_dropout_prob=0.0,
        problem_type="regression",
        use_cache=False,
        initializer_range=0.5,
        task_specific_params={"a": 1},
        pad_token_id=2,
    )
    other.load_state_dict(model.state_dict())
    other.config.id2label = {0: "a", 1: "b", 2: "c"}
    with torch.no_grad():
        other.classifier.weight.zero_()  # the head is another task's
    detach(attach(other, structure))


def test_one_backbone_under_any_head_is_one(build):
    model = build("bert")
    structure = structure_of(model)
    other = AutoModelForTokenClassification.from_config(model.config)  # it has no pooler
    other.bert.load_state_dict(model.bert.state_dict(), strict=False)
    detach(attach(other, structure))
    bare = BertModel(model.config)
    bare.load_state_dict(model.bert.state_dict())
    assert weight_fingerprint(bare) == structure.backbone.weight_fingerprint
    with torch.no_grad():
        model.bert.pooler.dense.weight[0, 0] += 1
    with pytest.raises(StructureError, match="belongs to another backbone"):
        attach(model, structure)


def test_one_backbone_in_any_precision_that_holds_it_is_one(build):
    model = build("bert").bfloat16()
    before = weight_fingerprint(model)
    assert weight_fingerprint(model.float()) == before
    assert weight_fingerprint(model.double()) == before
    model.bert.encoder.layer[0].output.dense.weight.data[0, 0] += 2**-40
    assert weight_fingerprint(model) != before


def test_a_fingerprint_does_not_hang_on_order_layout_or_threads():
    a, b = torch.randn(3, 2**20 + 5), torch.randn(4)
    before = fingerprint([("a", a), ("b", b)])
    torch.set_num_threads(2)
    try:
        assert fingerprint([("b", b), ("a", a.T.contiguous().T)]) == before
    finally:
        torch.set_num_threads(1)
    assert fingerprint([("a", b), ("b", a)]) != before
    assert fingerprint([("a", a.view(-1, 3)), ("b", b)]) != before


def test_attached_modules_and_heads_do_not_change_a_fingerprint(build, randomise, family):
    model = build(family)
    structure = structure_of(model)
    randomise(attach(model, structure))
    assert weight_fingerprint(model) == structure.backbone.weight_fingerprint


def test_config_hashes_of_before_are_not_compared(build):
    model = build("bert")
    structure = structure_of(model)
    backbone = dataclasses.replace(structure.backbone, config_hash="93e7" + "0" * 60)
    attach(model, dataclasses.replace(structure, backbone=backbone))
