"""Weight masks: scores and their gradients, schedule, exact counts, bands, and what merging and files keep."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import safetensors.torch
import torch
from torch import nn

import sparsearch
from sparsearch.errors import ConfigError, ExportError, StructureError
from sparsearch.results.export.export import export, write_spec
from sparsearch.results.records import Best
from sparsearch.search.training.device import frozen_cast_once
from sparsearch.search.training.evaluate import forward
from sparsearch.spaces.attachment.attach import attach, attach_modules, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.weights_file import load_weights, weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.calibration.calibrate import align, find_bases
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.compaction.sparsity import measured_sparsity
from sparsearch.spaces.families.position import Position, find, weight_at
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.module_base import Unit
from sparsearch.spaces.kinds.weight_mask.masking import cubic, pack, smallest, unpack
from sparsearch.spaces.kinds.weight_mask.module import WeightMaskUnit
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import Structure, make_structure

LORA = make_kind("lora", {"max_rank": 2})
POSITION = Position("layers.0.attn.q", "linear", "q", "q", 0, in_features=32, out_features=32)
INSIDE = [
    LORA,
    make_kind("spectral", {"block": 2, "max_blocks": 3}),
    make_kind("sparse_delta", {"smallest": 4, "factor": 3, "steps": 3}),
]
"""Kinds whose changes are masked with the weight."""
BANDS = 7
"""Does not divide a matrix of the tiny models: 32 x 32, 32 x 64."""


def mask_kind(**options):
    return make_kind("weight_mask", {"rank": 2, "bands": BANDS, **options})


def share_of(weights, size):
    """Weights that a size prunes, rounded up."""
    return -(-size * weights // BANDS)


def linears(model):
    return [p for p in positions_of(model) if p.role == "linear"]


def masked_model(model, kind, size, *others, names=None):
    """A mask of one size, and other kinds, on all linears or some."""
    places = [p for p in linears(model) if names is None or p.name in names]
    units = [(p, kind, size, 1) for p in places]
    units += [(p, k, sum(k.sizes(p)), len(k.sizes(p))) for k in others for p in places]
    return attach_modules(model, [u for u in units if u[1].accepts(u[0])])


def masks_of(model):
    slots = attachment_of(model).slots
    return {s.position.name: s.unit for s in slots if isinstance(s.unit, WeightMaskUnit)}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def weights_at(model):
    return {
        p.name: weight_at(p, model.base_model.get_submodule(p.module)).detach().clone()
        for p in linears(model)
    }


def test_at_the_start_the_score_is_the_magnitude_and_no_band_is_the_backbone(
    build, family, inputs
):
    model = build(family)
    before = logits(model, inputs)
    masked_model(model, mask_kind(), 0, LORA)
    assert torch.allclose(logits(model, inputs), before, rtol=0, atol=1e-6)
    weights = weights_at(model)
    for name, unit in masks_of(model).items():
        assert torch.allclose(unit.scores(weights[name]), weights[name].abs())
        assert unit.mask.all()


@pytest.mark.parametrize("importance", ["magnitude", "saliency"])
@pytest.mark.parametrize("options", [{}, {"rank": 0}, {"structured": False}], ids=str)
def test_gradients_are_those_of_pst(options, importance):
    """dL/dS = G * W', dL/dW' = G * (M + U * |W'|), by hand and by autograd of a surrogate."""
    torch.manual_seed(0)
    host = nn.Linear(12, 10).double()
    kind = mask_kind(alpha_low_rank=0.5, alpha_structured=2.0, importance=importance, **options)
    position = dataclasses.replace(POSITION, in_features=12, out_features=10)
    unit = kind.build(position, 3, host).double()
    factor = torch.ones(10, 12, dtype=torch.float64)
    if importance == "saliency":
        gradients, inputs = torch.rand(10).double(), torch.rand(12).double()
        unit.align(gradients, inputs, host.weight.detach())
        factor = torch.outer(gradients, inputs) / torch.outer(gradients, inputs).mean()
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    unit.settled = False
    weight = (host.weight + 0.1 * torch.randn(10, 12)).detach().requires_grad_()
    gradient = torch.randn(10, 12, dtype=torch.float64)
    parameters = [weight, *unit.parameters()]
    found = torch.autograd.grad(unit.masked(weight), parameters, gradient)

    scale = (factor * host.weight.abs()).mean().detach()
    score = factor * weight.abs()
    if unit.A is not None:
        score = score + scale * 0.5 * unit.A @ unit.B
    if unit.R is not None:
        score = score + scale * 2.0 * (unit.R[:, None] + unit.C[None, :])
    assert torch.allclose(unit.scores(weight), score, rtol=1e-12)
    through = (unit.mask + score - score.detach()) * weight
    expected = torch.autograd.grad(through, parameters, gradient)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)

    to_score = scale * gradient * weight.detach()
    by_hand = {"weight": gradient * (unit.mask + factor * weight.detach().abs())}
    if unit.A is not None:
        by_hand |= {"A": 0.5 * to_score @ unit.B.T, "B": 0.5 * unit.A.T @ to_score}
    if unit.R is not None:
        by_hand |= {"R": 2.0 * to_score.sum(1), "C": 2.0 * to_score.sum(0)}
    names = ["weight", *dict(unit.named_parameters())]
    assert set(by_hand) == set(names)
    for name, a in zip(names, found, strict=True):
        assert torch.allclose(a, by_hand[name], rtol=1e-12, atol=1e-14), name


@pytest.mark.parametrize("family", ["gpt2", "deberta-v2"])
def test_saliency_is_the_root_mean_square_of_single_gradients(build, inputs, family):
    """Over tokens that a gradient reaches, in fused projections too, and not over DeBERTa's relative positions."""
    model = build(family)
    kind = mask_kind(importance="saliency")
    places = [p for p in linears(model) if p.name in ("layers.0.attn.k", "layers.1.ffn.up")]
    inputs = {**inputs, "labels": torch.zeros(len(inputs["input_ids"]), dtype=torch.long)}
    found = find_bases(
        model, [(p, kind) for p in places], (model(**inputs).loss for _ in range(2))
    )
    for p in places:
        seen = {}
        host = model.base_model.get_submodule(p.module)
        hook = host.register_forward_hook(
            lambda m, x, y, s=seen: s.update({"x": x[0], "y": y} | s)
        )
        loss = model(**inputs).loss
        hook.remove()
        (g,) = torch.autograd.grad(loss, seen["y"])
        g, x = g.flatten(0, 1), seen["x"].flatten(0, 1)
        x, g = x[(g != 0).any(1)], g[(g != 0).any(1)][:, p.start : p.start + p.out_features]
        gradients, columns = found[p.name, "weight_mask"]
        batch = len(inputs["input_ids"])
        assert torch.allclose(columns, x.square().mean(0).sqrt(), rtol=1e-4)
        assert torch.allclose(gradients, batch * g.square().mean(0).sqrt(), rtol=1e-4)


def test_masks_by_saliency_prune_what_hurts_least(build, inputs):
    model = build("bert")
    name = "layers.0.attn.q"
    masked_model(model, mask_kind(importance="saliency"), 3, names=[name])
    unit, weight = masks_of(model)[name], weights_at(model)[name]
    by_magnitude = unit.mask.clone()
    batch = {**inputs, "labels": torch.zeros(len(inputs["input_ids"]), dtype=torch.long)}
    align(model, (model(**batch).loss for _ in range(1)))
    size = unit.factor * weight.abs()
    assert not torch.equal(unit.mask, by_magnitude) and unit.mask.sum() == by_magnitude.sum()
    assert size[~unit.mask].max() <= size[unit.mask].min()
    assert float(unit.factor.mean()) == pytest.approx(1.0, rel=1e-5)
    assert "factor" not in unit.state_dict() and unit.double().factor.dtype == torch.float64


def test_a_final_mask_is_a_constant():
    torch.manual_seed(0)
    unit = mask_kind().build(POSITION, 3, nn.Linear(32, 32))
    weight = torch.randn(32, 32, requires_grad=True)
    gradient = torch.randn(32, 32)
    unit.masked(weight).backward(gradient)
    assert torch.equal(weight.grad, gradient * unit.mask)
    assert all(p.grad is None for p in unit.parameters())


def test_the_schedule_is_monotone_from_dense_to_final():
    for steps in (1, 2, 3, 7, 100, 1001):
        shares = [cubic(step, steps) for step in range(steps + 1)]
        assert shares == sorted(shares) and shares[-1] == 1.0
        assert all(s == 1.0 for s in shares[7 * steps // 10 :])
        assert steps == 1 or all(s == 0.0 for s in shares[: steps // 10 + 1])
    # s(t) of PST, section 2.1, with t_i = 0.1 T, t_f = 0.3 T.
    assert cubic(25, 100) == pytest.approx(1 - (1 - 15 / 60) ** 3)


def test_density_is_one_minus_the_sparsity_of_each_matrix(build, family, randomise):
    model = build(family)
    size, steps = 5, 60
    attachment = masked_model(model, mask_kind(every=4), size, LORA)
    randomise(model)
    totals = {name: unit.mask.numel() for name, unit in masks_of(model).items()}
    assert len(set(totals.values())) > 1
    due = 0
    for step in range(steps + 1):
        attachment.advance(step, steps)
        due = step if step % 4 == 0 or step >= 42 else due
        assert attachment.settled == (step >= 42)
        for name, unit in masks_of(model).items():
            count = int(cubic(due, steps) * share_of(totals[name], size))
            assert int((~unit.mask).sum()) == count
    shares = {n: share_of(t, size) / t for n, t in totals.items()}
    assert measured_sparsity(model) == shares
    assert measured_sparsity(merge(model)) == shares


def test_a_new_mask_follows_the_learnt_scores(build):
    model = build("bert")
    name = "layers.0.attn.q"
    attachment = masked_model(model, mask_kind(), 1, names=[name])
    unit = masks_of(model)[name]
    magnitude = unit.mask.clone()
    with torch.no_grad():
        unit.R[0] = -100.0
    attachment.advance(70, 100)
    assert torch.equal(unit.mask, magnitude), "final until a training starts"
    for step in (0, 70):
        attachment.advance(step, 100)
    assert not unit.mask[0].any() and int((~unit.mask).sum()) == share_of(1024, 1)
    assert torch.equal(unpack(unit.packed, (32, 32)), unit.mask)


def test_w_prime_is_what_is_ranked(build):
    model = build("bert")
    name = "layers.0.attn.q"
    attachment = masked_model(model, mask_kind(), 3, LORA, names=[name])
    lora = attachment.slots[1].unit
    with torch.no_grad():
        lora.B.normal_()
    for step in (0, 9):
        attachment.advance(step, 10)
    changed = (weights_at(model)[name] + lora.scale * lora.B @ lora.A).detach()
    order = torch.argsort(changed.abs().flatten())
    assert not masks_of(model)[name].mask.flatten()[order[: share_of(1024, 3)]].any()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 12])
def test_among_equal_scores_the_first_go(count):
    scores = torch.tensor([5.0, 1, 1, 0, 1, 5, 1, 1, 2, 5, 5, 5])
    order = sorted(range(12), key=lambda i: (float(scores[i]), i))
    assert smallest(scores, count).nonzero().flatten().tolist() == sorted(order[:count])


def test_constant_weights_are_pruned_exactly():
    host = nn.Linear(32, 32)
    nn.init.constant_(host.weight, 0.5)
    unit = mask_kind().build(POSITION, 2, host)
    assert (~unit.mask).flatten().nonzero().flatten().tolist() == list(range(share_of(1024, 2)))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8), (7, 9)])
def test_masks_pack_into_bits(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8 and len(packed) == -(-mask.numel() // 8)
    assert torch.equal(unpack(packed, shape), mask)


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


@pytest.mark.parametrize("kind", INSIDE, ids=lambda k: k.name)
def test_any_linear_unit_has_a_dense_change(kind, randomise):
    torch.manual_seed(0)
    sizes = kind.sizes(POSITION)
    unit = kind.build(POSITION, sum(sizes), nn.Linear(32, 32))
    randomise(unit)
    weight = torch.zeros(32, 32)
    for z in (None, torch.rand(len(sizes))):
        assert torch.allclose(Unit.dense(unit, weight, z), unit.dense(weight, z), atol=1e-6)
    assert torch.equal(unit.dense(weight, None), unit.fold(weight, None)[0])


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


def test_a_slice_of_a_fused_projection_has_its_own_mask(build, inputs, randomise):
    model = build("gpt2")
    names = [f"layers.0.attn.{part}" for part in "qkv"]
    before = weights_at(model)
    attach_modules(
        model,
        [
            (find(positions_of(model), names[0]), LORA, 2, 1),
            (find(positions_of(model), names[1]), LORA, 2, 1),
            (find(positions_of(model), names[1]), mask_kind(), 2, 1),
            (find(positions_of(model), names[2]), mask_kind(), 3, 1),
        ],
    )
    randomise(model)
    expected = logits(model, inputs)
    shares = measured_sparsity(model)
    assert [shares[n] for n in names] == [0.0, 293 / 1024, 439 / 1024]
    plain = logits(detach(copy.deepcopy(model)), inputs)
    assert not torch.allclose(plain, expected, atol=1e-4)
    merge(model)
    assert torch.allclose(logits(model, inputs), expected, atol=1e-6)
    after = weights_at(model)
    assert not torch.equal(after[names[0]], before[names[0]])
    assert torch.equal(after["layers.1.attn.k"], before["layers.1.attn.k"])
    shares = measured_sparsity(model)
    assert [shares[n] for n in names] == [0.0, 293 / 1024, 439 / 1024]


def test_a_training_that_goes_on_keeps_its_schedule(build, randomise):
    """``load_state_dict`` brings back a mask, ``load_weights`` a finished one."""
    model, again = build("bert"), build("bert")
    first, second = (masked_model(m, mask_kind(every=1), 3) for m in (model, again))
    first.advance(0, 10)
    first.advance(4, 10)
    second.advance(0, 10)
    again.load_state_dict(model.state_dict())
    for name, unit in masks_of(again).items():
        assert torch.equal(unit.mask, masks_of(model)[name].mask)
    assert not second.settled
    load_weights(again, weights_of(model))
    assert second.settled


def test_merging_keeps_the_zeros_and_the_logits(build, family, inputs, randomise):
    model = build(family)
    attachment = masked_model(
        model, mask_kind(), 4, *INSIDE, make_kind("ia3", {}), make_kind("bitfit", {})
    )
    randomise(model)
    for step in (0, 9):
        attachment.advance(step, 10)
    masks = {name: unit.mask.clone() for name, unit in masks_of(model).items()}
    expected = logits(model, inputs)
    attached = sparsearch.measured_sparsity(model)
    merge(model)
    scale = max(1.0, float(expected.abs().max()))
    assert float((logits(model, inputs) - expected).abs().max()) / scale < 1e-5
    weights = weights_at(model)
    assert all(torch.equal(weights[n] != 0, masks[n]) for n in masks)
    assert measured_sparsity(model) == attached
    assert not any("forward" in vars(m) for m in model.modules())


def test_masks_come_back_from_a_file(build, inputs, randomise, tmp_path):
    model = build("bert")
    attachment = masked_model(model, mask_kind(), 4, LORA)
    randomise(model)
    for step in (0, 9):
        attachment.advance(step, 10)
    expected = logits(model, inputs)
    weights = weights_of(model)
    stored = weights["layers.0.attn.q:weight_mask.packed"]
    assert stored.dtype == torch.uint8 and stored.nbytes == 128
    safetensors.torch.save_file(weights, tmp_path / "weights.safetensors")
    again = build("bert")
    masked_model(again, mask_kind(), 4, LORA)
    assert not torch.allclose(logits(again, inputs), expected, atol=1e-3)
    load_weights(again, safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(logits(again, inputs), expected)
    third = build("bert")
    masked_model(third, mask_kind(), 4, LORA)
    third.load_state_dict(model.state_dict())
    assert torch.equal(logits(third, inputs), expected)


def test_a_spec_holds_the_mask_and_peft_is_refused(build, inputs, randomise, tmp_path):
    folder = tmp_path / "backbone"
    build("bert").save_pretrained(folder)
    model = load_model(str(folder), num_labels=3)
    kinds = {"lora": {"max_rank": 1}, "weight_mask": {"bands": 4}}
    space = build_space(model, kinds=kinds)
    backbone = identify(model, str(folder))
    structure = make_structure(space, space.candidates, backbone, "classification")
    attach(model, structure)
    randomise(model)
    expected = logits(model.eval(), inputs)
    weights = safetensors.torch.save(weights_of(model), {"classes": json.dumps(["a", "b", "c"])})
    write_spec(structure, weights, tmp_path / "spec")
    fresh = attach(load_model(str(folder), num_labels=3), tmp_path / "spec").eval()
    assert torch.equal(logits(fresh, inputs), expected)
    assert set(measured_sparsity(fresh).values()) == {0.75}
    best = Best(
        "s", 0, "s3pet", "accuracy", 0.9, 0.9, structure, structure.trainable_params, 1, 1.0,
        None, 0, str(folder), "t",
    )  # fmt: skip
    with pytest.raises(
        ExportError, match=r"weight_mask .PEFT does not change .*: layers.0.attn.q"
    ):
        export(best, weights, "peft", tmp_path / "adapter")


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
        found = masked.used(attachment.slots[0]).flatten()[order]
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


def test_bfloat16_rounds_the_sum_alone(build, inputs, randomise):
    model = build("bert", labels=2)
    masked_model(model, mask_kind(), 3, LORA)
    randomise(model)
    expected = forward(model, inputs, "fp32").detach()
    query = model.base_model.encoder.layer[0].attention.self.query
    with frozen_cast_once(model, "bf16"):
        assert query.weight.dtype == torch.float32
        assert model.base_model.pooler.dense.weight.dtype == torch.bfloat16
        found = forward(model, inputs, "bf16")
        found.sum().backward()
    assert torch.allclose(found, expected, rtol=0.05, atol=0.05)
    loras = [s.unit for s in attachment_of(model).slots if s.kind == LORA]
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() for p in loras[0].parameters())


def test_a_model_in_bfloat16_runs(build, inputs):
    model = build("llama").bfloat16()
    attachment = masked_model(model, mask_kind(), 3, LORA)
    model.bfloat16()
    for step in (0, 5, 9):
        attachment.advance(step, 10)
        model(**inputs).logits.sum().backward()
    expected = logits(model, inputs)
    assert expected.dtype == torch.bfloat16
    assert torch.allclose(logits(merge(model), inputs), expected, atol=0.05)
    assert set(measured_sparsity(model).values()) == {220 / 512, 439 / 1024, 878 / 2048}
