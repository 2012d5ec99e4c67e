"""What weight masks are offered: patterns, sizes and options, with exact counts."""

from __future__ import annotations

import pytest

from sparsearch.errors import ConfigError, StructureError
from sparsearch.spaces.attachment.attach import attach, attach_modules
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.compaction.sparsity import measured_sparsity
from sparsearch.spaces.families.position import find
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.weight_mask.masking import cubic
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import Structure, make_structure
from tests.helpers.masked_model import BANDS, LORA, mask_kind, masked_model, masks_of, weights_at


@pytest.mark.parametrize(("pattern", "kept", "group"), [("2:4", 2, 4), ("1:8", 1, 8)])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_patterns_hold_in_every_group(build, family, pattern, kept, group, randomise):
    model = build(family)
    kind = mask_kind(pattern=pattern, every=1)
    attachment = masked_model(model, kind, group - kept, LORA)
    for steps in range(2):
        for name, unit in masks_of(model).items():
            groups = unit.mask.reshape(len(unit.mask), -1, group)
            assert (groups.sum(-1) == kept).all(), name
        if steps == 0:
            randomise(model)
            for step in (0, 4, 9):
                attachment.advance(step, 10)
                for unit in masks_of(model).values():
                    count = int(cubic(step, 10) * unit.pruned)
                    assert int((~unit.mask).sum()) == count
    shares = measured_sparsity(merge(model))
    assert set(shares.values()) == {1 - kept / group}
    for weight in weights_at(model).values():
        assert ((weight.reshape(len(weight), -1, group) != 0).sum(-1) == kept).all()


def test_a_pattern_is_one_candidate(build):
    space = build_space(build("bert"), kinds={"weight_mask": {"pattern": "2:4"}})
    assert {c.size for c in space.candidates} == {2}
    assert len(space.candidates) == 12
    assert space.candidates[0].pruned_weights == 32 * 32 // 2


def test_a_pattern_that_does_not_divide_the_inputs_is_refused(build):
    with pytest.raises(ConfigError, match=r"3:5 takes groups of 5, but layers.0.attn.q has 32 in"):
        build_space(build("bert"), kinds={"weight_mask": {"pattern": "3:5"}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "4:2"}, "0 < N < M"),
        ({"pattern": "half"}, "must be N:M"),
        ({"pattern": 2}, "pattern must be str"),
        ({"rank": -1}, "rank must be at least 0"),
        ({"bands": 1}, "bands must be at least 2"),
        ({"every": 0}, "every must be positive"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        make_kind("weight_mask", options)


def test_a_pattern_beside_cut_neurons_is_counted(build):
    kinds = {"weight_mask": {"pattern": "2:4"}, "neurons": {"block": 4}}
    model = build("bert", intermediate_size=96)
    space = build_space(model, kinds=kinds)
    chosen = [c for c in space.candidates if c.position == "layers.0.ffn.down" or c.which == (3,)]
    structure = make_structure(space, chosen, identify(model, "here"), "classification")
    (down,) = (c for c in structure.candidates if c.kind == "weight_mask")
    assert down.pruned_weights == 32 * 92 // 2


def test_sizes_add_up_and_scores_are_paid_once(build):
    model = build("bert")
    space = build_space(
        model, kinds={"weight_mask": {"bands": 4, "rank": 3, "on": ["*.0.ffn.up"]}}
    )
    assert [c.size for c in space.candidates] == [1, 1, 1]
    assert {c.params for c in space.candidates} == {(3 + 1) * (32 + 64)}
    assert {c.pruned_weights for c in space.candidates} == {32 * 64 // 4}
    structure = make_structure(space, space.candidates, identify(model, "here"), "classification")
    (candidate,) = structure.candidates
    assert (candidate.size, candidate.params) == (3, 4 * 96)
    assert structure.pruned_weights == candidate.pruned_weights == 3 * 32 * 64 // 4
    assert candidate.frozen_bytes == 32 * 64 // 8 and candidate.which == ()
    assert candidate.flops_per_token == candidate.merged_flops_per_token == 0
    again = Structure.from_json(structure.to_json())
    assert again == structure and again.hash == structure.hash
    attach(model, again)
    assert sum(p.numel() for p in attachment_of(model).parameters()) == structure.trainable_params
    assert measured_sparsity(model)["layers.0.ffn.up"] == 0.75


def test_a_whole_matrix_is_never_pruned(build):
    model = build("bert")
    position = find(positions_of(model), "layers.0.attn.q")
    with pytest.raises(StructureError, match="prunes 0 to 6 of 7 parts, not 7"):
        attach_modules(model, [(position, mask_kind(), BANDS, 1)])
    assert attachment_of(model) is None
