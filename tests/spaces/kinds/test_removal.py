"""Heads and neurons: what is cut, by gates and by structures, and what that saves."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach, attach_modules, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.weights_file import HEAD, weights_of
from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.calibration.calibrate import aligning_at, calibrate, find_bases
from sparsearch.spaces.costs import narrowed_positions, overlaps
from sparsearch.spaces.families.position import find
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import Structure, make_structure
from tests.helpers.feed_forward import WIDTH
from tests.helpers.logits import logits

KINDS = {"heads": {}, "neurons": {"block": 24}, "lora": {"max_rank": 2}, "bitfit": {}}
CUTS = {"heads": {"compensate": "linear"}, "neurons": {"block": 16, "compensate": "linear"}}


@pytest.fixture
def wide(build):
    """Builds a model whose feed-forwards have neurons to lose."""
    return lambda family: build(family, **{WIDTH.get(family, "intermediate_size"): 112})


def masked_logits(model, inputs, removed):
    """The plain way: features of removed units are set to zero before they are read."""
    handles = []
    for position, features in removed:

        def zero(module, args, features=features):
            x = args[0].clone()
            x[..., features] = 0
            return (x, *args[1:])

        handles.append(
            base_of(model).get_submodule(position.module).register_forward_pre_hook(zero)
        )
    found = logits(model, inputs)
    for handle in handles:
        handle.remove()
    return found


def cuts(model):
    """Position, candidates to cut, features that they are."""
    for position in positions_of(model):
        if position.role == "heads":
            width = position.in_features // position.units
            yield position, make_kind("heads", {}), (1,), list(range(width, 2 * width))
        elif position.role == "neurons":
            yield (
                position,
                make_kind("neurons", {"block": 24}),
                (0, 1),
                [*range(48)],
            )


def test_a_cut_by_gates_and_by_a_structure_is_zero_in_front_of_the_reader(wide, family, inputs):
    model = wide(family)
    dense, wanted = logits(model, inputs), list(cuts(model))
    expected = masked_logits(model, inputs, [(p, features) for p, _, _, features in wanted])
    assert not torch.allclose(expected, dense)
    units = [(p, k, p.units, len(k.sizes(p))) for p, k, _, _ in wanted]
    attachment = attach_modules(model, units)
    z = torch.cat(
        [
            torch.zeros(len(k.sizes(p))).index_fill(0, torch.tensor(which), 1.0)
            for p, k, which, _ in wanted
        ]
    )
    with attachment.gated(z):
        assert torch.allclose(logits(model, inputs), expected, atol=1e-6)
    with attachment.gated(torch.zeros_like(z)):
        assert torch.equal(logits(model, inputs), dense)
    detach(model)
    space = build_space(model, kinds={"heads": {}, "neurons": {"block": 24}})
    chosen = [
        c
        for c in space.candidates
        for p, k, which, _ in wanted
        if (c.position, c.kind) == (p.name, k.name) and c.which[0] in which
    ]
    structure = make_structure(space, chosen, identify(model), "classification")
    again = Structure.from_json(structure.to_json())
    assert again == structure and again.hash == structure.hash
    attach(model, again)
    assert torch.allclose(logits(model, inputs), expected, atol=1e-6)
    assert not [n for n in weights_of(model) if not n.startswith("head:")]
    detach(model)
    assert torch.equal(logits(model, inputs), dense)


def test_everything_cut_costs_all_the_dense_flops(build, family):
    space = build_space(build(family), kinds={"heads": {}, "neurons": {"block": 24}})
    for tokens in (1, 7, 128):
        saved = sum(c.inference_flops(tokens) for c in space.candidates)
        assert saved == -dense_flops_per_token(space.positions, tokens)
    assert all(c.params == 0 and c.bytes == 0 for c in space.candidates)


def test_projections_of_relative_positions_run_once_not_on_every_token(build):
    model = build("deberta-v2", share_att_key=False)
    space = build_space(model, kinds={"heads": {}, "neurons": {"block": 24}})
    assert any(not feed.per_token for p in space.positions for feed in p.feeds)
    saved = sum(c.inference_flops(16) for c in space.candidates)
    assert saved == -dense_flops_per_token(space.positions, 16)


def test_what_is_cut_makes_the_rest_cheaper(wide, family):
    model = wide(family)
    space = build_space(model, kinds=KINDS)
    prefix = "decoder." if family == "t5" else ""
    names = {f"{prefix}layers.1.{n}" for n in ("attn.q", "attn.o", "attn.v", "ffn.down", "ffn.up")}
    chosen = [c for c in space.candidates if c.position in names]
    whole = make_structure(space, chosen, identify(model), "classification")
    removed = [
        c
        for c in space.candidates
        if c.position == f"{prefix}layers.1.attn.heads"
        and c.which == (0,)
        or c.position == f"{prefix}layers.1.ffn.neurons"
        and c.which == (1,)
    ]
    cut = make_structure(space, [*chosen, *removed], identify(model), "classification")
    heads = find(space.positions, f"{prefix}layers.1.attn.heads")
    q, v = (feed.rows // heads.units for feed in (heads.feeds[0], heads.feeds[2]))
    # rank 2 and a bias: rows of q, v and up, columns of o and down; biases of q, v and up
    lora, bias = 2 * (q + v + q + 24 + 24), q + v + 24
    assert whole.trainable_params - cut.trainable_params == lora + bias
    attach(model, cut)
    assert attachment_of(model) is not None


@pytest.mark.parametrize("compensate", ["none", "linear"])
def test_costs_beside_a_cut_are_what_trains_and_what_is_stored(
    wide, family, inputs, randomise, compensate
):
    model = wide(family)
    kinds = {
        "spectral": {"block": 4, "max_blocks": 2},
        "lora": {"max_rank": 2},
        "bitfit": {"on": ["*.q", "*.k", "*.v", "*.up"]},
        "heads": {"compensate": compensate},
        "neurons": {"block": 16, "compensate": compensate},
    }
    space = build_space(model, kinds=kinds)
    where = "encoder.layers.0" if family == "t5" else "layers.0"
    chosen = [
        i
        for i, c in enumerate(space.candidates)
        if c.position.startswith(where)
        and (c.which in ((), (1,)) if c.kind != "neurons" else c.which[0] < 2)
        and not (c.kind == "bitfit" and c.position.endswith(".k"))  # softmax does not see it
    ]
    candidates = [space.candidates[i] for i in chosen]
    structure = make_structure(space, candidates, identify(model), "classification")
    losses = (model(**inputs).logits.square().mean() for _ in range(3))
    calibrate(attach(model, structure), losses)
    randomise(model)
    model(**inputs).logits.square().sum().backward()
    units = attachment_of(model).units
    seen = sum(int((p.grad != 0).sum()) for p in units.parameters())
    assert seen == structure.trainable_params
    stored = {n: t for n, t in weights_of(model).items() if not n.startswith(HEAD)}
    assert sum(t.nbytes for t in stored.values()) == structure.bytes
    lost = sum(params for i, j, params, _ in overlaps(space) if {i, j} <= set(chosen))
    assert sum(c.params for c in candidates) - lost == pytest.approx(seen)


def test_files_from_before_stand_ins_were_read_still_attach(wide):
    model = wide("bert")
    kinds = {"lora": {"on": ["*.ffn.down"]}, "neurons": {"compensate": "linear", "block": 16}}
    space = build_space(model, kinds=kinds)
    chosen = [c for c in space.candidates if c.kind == "lora" or c.which == (0,)]
    structure = make_structure(space, chosen, identify(model), "classification")
    lora, cut = structure.candidates[1], structure.candidates[0]
    assert (lora.kind, cut.kind) == ("lora", "neurons")
    less = {"params": lora.params - 4 * 16, "flops_per_token": lora.flops_per_token - 8 * 16}
    earlier = dataclasses.replace(lora, **less)
    attach(model, dataclasses.replace(structure, candidates=(cut, earlier)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"which": (9,)}, "cannot be cut"),
        ({"which": (1, 1), "size": 2}, "cannot be cut"),
        ({"which": ()}, "cannot be cut"),
        ({"size": 2}, "2 heads cannot be cut"),
        ({"which": (0, 1, 2, 3), "size": 4}, "4 heads cannot be cut at .*: of 4, 1 stay"),
        ({"flops_per_pair": 0}, "does not cost"),
    ],
)
def test_a_cut_that_cannot_be_is_refused_and_nothing_is_attached(build, change, message):
    model = build("bert")
    space = build_space(model, kinds={"heads": {}})
    good = make_structure(space, space.candidates[1:2], identify(model), "classification")
    bad = dataclasses.replace(
        good, candidates=(dataclasses.replace(good.candidates[0], **change),)
    )
    with pytest.raises(StructureError, match=message):
        attach(model, bad)
    assert attachment_of(model) is None


def test_neurons_that_always_stay_cannot_be_cut(wide, build):
    kinds = {"neurons": {"block": 24}}
    for model, count in ((wide("bert"), 3), (build("bert"), 1)):
        space = build_space(model, kinds=kinds)
        chosen = space.candidates[:count]
        structure = make_structure(space, chosen, identify(model), "classification")
        with pytest.raises(StructureError, match=f"{24 * count} neurons .*, 64 stay"):
            attach(model, structure)
        assert attachment_of(model) is None


def test_what_is_attached_cannot_name_parts_to_cut(build):
    model = build("bert")
    space = build_space(model, kinds={"lora": {}})
    good = make_structure(space, space.candidates[:1], identify(model), "classification")
    bad = dataclasses.replace(
        good, candidates=(dataclasses.replace(good.candidates[0], which=(0,)),)
    )
    with pytest.raises(StructureError, match="cannot be cut"):
        attach(model, bad)


def test_positions_narrow_only_where_something_is_cut(build, family):
    model = build(family)
    space = build_space(model, kinds={"heads": {}})
    narrowed = narrowed_positions(space.positions, space.candidates[:1])
    changed = {p.name for p, q in zip(space.positions, narrowed, strict=True) if p != q}
    stem = space.candidates[0].position.removesuffix("heads")
    assert changed == {stem + part for part in "qkvo"}


@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_a_unit_that_others_predict_is_cut_without_a_trace(wide, inputs, kind):
    """The second unit says twice what the first one says, plus a constant: nothing is lost."""
    model = wide("bert").double()
    space = build_space(
        model, kinds={kind: {"compensate": "linear"} | ({"block": 8} if kind == "neurons" else {})}
    )
    chosen = [c for c in space.candidates if c.which == (1,)]
    structure = make_structure(space, chosen, identify(model), "classification")
    unit = next(
        iter(
            attach_modules(
                model, [(space.position(chosen[0].position), space.kinds[kind], 8, 1)]
            ).slots
        )
    ).unit
    unit.cut((1,))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, len(unit.removed), generator=generator, dtype=torch.float64)
    width = len(unit.gone)
    x[:, width : 2 * width] = 2 * x[:, :width] + 3
    unit.double().align(torch.cov(x.T), x.mean(0))
    assert torch.allclose(unit(x, None), x, atol=0.1)
    assert torch.equal(unit(x, None)[:, unit.kept], x[:, unit.kept])
    assert not torch.allclose(unit(x, torch.eye(len(unit.widths))[1].double()), x, atol=1.0), (
        "gates do not compensate"
    )
    detach(model)
    assert structure.bytes == sum(c.frozen_bytes for c in structure.candidates) > 0
    attach(model, structure)
    stored = weights_of(model)
    assert (
        sum(t.numel() * 2 for n, t in stored.items() if n.endswith("stand_in")) == structure.bytes
    )


@pytest.mark.parametrize("kinds", [{"weight_mask": {"importance": "saliency"}}, CUTS])
def test_finding_bases_leaves_no_trace(build, family, inputs, kinds):
    """Fused projections are one module for three positions, and are seen once."""
    model = build(family)
    space = build_space(model, kinds=kinds)

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before = hooks()
    losses = (model(**inputs).logits.square().mean() for _ in range(2))
    find_bases(model, aligning_at(space.kinds.values(), space.positions), losses)
    assert hooks() == before
    copy.deepcopy(model)


def test_padding_and_what_is_cut_do_not_disturb_the_regression(build):
    """Aligning under a cut sees the whole backbone; tokens without a gradient do not count."""
    model = build("bert")
    ids = torch.randint(3, 60, (16, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[:, 6:] = 0
    space = build_space(model, kinds={"heads": {"compensate": "linear"}})
    aligning = aligning_at(space.kinds.values(), space.positions)

    def losses(tokens):
        yield (
            model(input_ids=ids[:, :tokens], attention_mask=mask[:, :tokens])
            .logits.square()
            .mean()
        )

    padded, plain = (find_bases(model, aligning, losses(n)) for n in (9, 6))
    for key in plain:
        for a, b in zip(padded[key], plain[key], strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-7)
    structure = make_structure(space, space.candidates[:1], identify(model), "classification")
    attach(model, structure)
    calibrate(model, losses(6))
    (unit,) = (slot.unit for slot in attachment_of(model).slots)
    found = unit.stand_in.clone()
    unit.align(*plain[space.candidates[0].position, "heads"])
    assert torch.equal(unit.stand_in, found)
