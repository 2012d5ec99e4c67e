from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5Model

from sparsearch.config.presets import preset_names
from sparsearch.errors import ConfigError
from sparsearch.spaces.budget import resolve
from sparsearch.spaces.space import build_space
from tests.helpers.feed_forward import WIDTH


@pytest.fixture(scope="module")
def t5_large():
    config = T5Config(
        d_model=1024, d_ff=4096, d_kv=64, num_heads=16, num_layers=24, vocab_size=32128
    )
    with torch.device("meta"):
        return T5Model(config)


@pytest.mark.parametrize(
    ("preset", "gates", "params"), [("s3pet-m", 916, 1_881_088), ("s3pet-l", 288, 884_736)]
)
def test_presets_give_the_references_counts_on_t5_large(t5_large, preset, gates, params):
    space = build_space(t5_large, preset=preset)
    assert (len(space.candidates), space.trainable_params) == (gates, params)


def test_s3pet_m_by_kind(t5_large):
    table = build_space(t5_large, preset="s3pet-m").by_kind
    assert {k: row["candidates"] for k, row in table.items()} == {
        "lora": 288,
        "bitfit": 410,
        "lnfit": 122,
        "low_rank_adapter": 96,
    }


@pytest.mark.parametrize("preset", preset_names())
def test_presets_fit_every_family(build, family, preset):
    wide = {WIDTH.get(family, "intermediate_size"): 128}  # neurons that may be cut
    space = build_space(build(family, **wide), preset=preset)
    assert all(c.params > 0 or c.which for c in space.candidates)
    assert {c.kind for c in space.candidates} == space.kinds.keys()


def test_rank_units_stand_together(build):
    space = build_space(build("bert"), kinds={"lora": {"max_rank": 3, "on": ["*.attn.q"]}})
    assert [c.position for c in space.candidates] == ["layers.0.attn.q"] * 3 + [
        "layers.1.attn.q"
    ] * 3
    assert all(c.size == 1 and c.params == 64 and c.bytes == 256 for c in space.candidates)


def test_the_order_in_a_file_means_nothing(build):
    kinds = {"bitfit": {}, "heads": {}, "lora": {"max_rank": 2}}
    turned = dict(reversed(kinds.items()))
    one, other = (build_space(build("bert"), kinds=k) for k in (kinds, turned))
    assert one.candidates == other.candidates and list(one.kinds) == list(other.kinds)


def test_all_problems_of_a_space_are_reported_together(build):
    with pytest.raises(ConfigError) as caught:
        build_space(
            build("bert"), kinds={"lora": {"rank": 1}, "foo": {}, "bitfit": {"on": ["*.attn.x"]}}
        )
    assert len(caught.value.problems) == 3


STAND_INS = {"neurons": {"block": 16, "compensate": "linear"}}
PATTERN = {"pattern": "2:4", "on": ["*.ffn.down"]}


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"ia3": {}} | STAND_INS, "stands in for layers.0.ffn.neurons does not merge with ia3"),
        ({"weight_mask": {}, "heads": {"compensate": "linear"}}, "with weight_mask at .*attn.o"),
        ({"weight_mask": PATTERN, "neurons": {"block": 6}}, "6 inputs .* set block to a multiple"),
        ({"weight_mask": {"pattern": "4:16"}, "heads": {}}, "parts of 8 .* pattern 4:16; leave"),
    ],
)
def test_kinds_that_cannot_be_chosen_together_are_refused(build, kinds, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_space(build("bert", intermediate_size=96), kinds=kinds)
    assert len(caught.value.problems) == 1, "not one for each layer"


@pytest.mark.parametrize(
    ("kinds", "width"),
    [
        ({"ia3": {"on": ["*.attn.[kv]"]}} | STAND_INS, 96),
        ({"ia3": {}} | STAND_INS, 64),  # so few neurons all stay
        ({"ia3": {}, "weight_mask": {}, "neurons": {"block": 1}}, 96),
        ({"weight_mask": PATTERN, "neurons": {"block": 8}, "heads": {}}, 96),
    ],
)
def test_kinds_that_never_meet_are_not(build, kinds, width):
    assert build_space(build("bert", intermediate_size=width), kinds=kinds).candidates


def test_a_fingerprint_knows_the_options_of_kinds(build):
    def fingerprint(alpha, **kinds):
        kinds = {"lora": {"alpha": alpha}, "bitfit": {}} | kinds
        return build_space(build("bert"), kinds=kinds).fingerprint

    assert fingerprint(16) == fingerprint(16.0) != fingerprint(8)


def test_unknown_preset_lists_the_known(build):
    with pytest.raises(ConfigError, match="s3pet-l, s3pet-m"):
        build_space(build("bert"), preset="s3pet-x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.01%", 2271), ("0.035%", 7949), ("0.1%", 22713), ("100%", 22_713_216)],
)
def test_relative_budgets_resolve_exactly(text, expected):
    assert resolve(22_713_216, max_trainable_params=text).get("max_trainable_params") == expected
