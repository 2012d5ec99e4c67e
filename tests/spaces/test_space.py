from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5Model

from sparsearch.errors import ConfigError
from sparsearch.spaces.budget import resolve
from sparsearch.spaces.space import build_space


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


@pytest.mark.parametrize("preset", ["s3pet-m", "s3pet-l"])
def test_presets_fit_every_family(build, family, preset):
    space = build_space(build(family), preset=preset)
    assert all(c.params > 0 for c in space.candidates)


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


def test_unknown_preset_lists_the_known(build):
    with pytest.raises(ConfigError, match="s3pet-l, s3pet-m"):
        build_space(build("bert"), preset="s3pet-x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.01%", 2271), ("0.035%", 7949), ("0.1%", 22713), ("100%", 22_713_216)],
)
def test_relative_budgets_resolve_exactly(text, expected):
    assert resolve(22_713_216, max_trainable_params=text).max_trainable_params == expected
