"""Cores between the singular directions of a weight."""

from __future__ import annotations

import pytest
import torch

from sparsearch.results.export.export import export
from sparsearch.spaces.attachment.attach import attach, attach_modules, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.weights_file import HEAD, load_weights, weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.families.position import Position, find, weight_at
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.decomposition import exact_svd
from sparsearch.spaces.kinds.lora_xs.module import core_of
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.conftest import make_inputs, make_model
from tests.helpers.exported import train_on

OPTIONS = {"smallest": 2, "steps": 3}


def unit_of(model, name, size):
    position = find(positions_of(model), name)
    attach_modules(model, [(position, make_kind("lora_xs", OPTIONS), size, 1)])
    (slot,) = attachment_of(model).slots
    return slot.unit, weight_at(position, model.base_model.get_submodule(position.module))


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 16)])
def test_the_decomposition_is_torchs_with_signs_that_stay(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(3))
    left, values, right = exact_svd(matrix, 5)
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    assert torch.allclose(values, s[:5], rtol=1e-10)
    assert torch.allclose((left * values) @ right, (u[:, :5] * s[:5]) @ v[:5], atol=1e-10)
    near = left if shape[0] <= shape[1] else right.T
    assert bool((near.gather(0, near.abs().argmax(0, keepdim=True)) > 0).all())


def test_what_has_no_rank_left_gives_no_directions():
    _, values, right = exact_svd(torch.ones(6, 9), 3)
    assert values[0] == pytest.approx(54**0.5) and float(values[1]) < 1e-6
    assert torch.equal(right[1:], torch.zeros(2, 9, dtype=torch.float64))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_core_of_whole_rank_is_the_published_form(family):
    model = make_model(family)
    unit, weight = unit_of(model, "layers.1.attn.v", 16)
    torch.nn.init.normal_(unit.values, generator=torch.Generator().manual_seed(0))
    left, values, right = (t.float() for t in exact_svd(weight, 4))
    core = core_of(unit.values.detach(), 4)
    expected = left @ core @ torch.diag(values) @ right
    found = unit.dense(weight.float(), None).detach()
    assert float((found - expected).norm() / expected.norm()) < 0.01  # bfloat16


def test_a_larger_core_begins_with_a_smaller_one():
    values = torch.arange(1.0, 17.0)
    whole = core_of(values, 4)
    assert sorted(whole.flatten().tolist()) == values.tolist()
    for rank in (1, 2, 3):
        assert torch.equal(core_of(values[: rank * rank], rank), whole[:rank, :rank])
    model = make_model("bert")
    small, _ = unit_of(model, "layers.0.ffn.up", 4)
    detach(model)
    large, _ = unit_of(model, "layers.0.ffn.up", 400)  # rank 20, beyond the candidates
    assert large.right.shape[0] == 20
    assert torch.equal(small.left, large.left[:, :2]) and torch.equal(small.right, large.right[:2])


def test_gates_act_on_what_each_candidate_adds():
    model = make_model("bert")
    unit, weight = unit_of(model, "layers.0.attn.q", 64)
    assert unit.shares == (4, 12, 48)
    torch.nn.init.normal_(unit.values, generator=torch.Generator().manual_seed(0))
    gated = unit.dense(weight, torch.tensor([1.0, 0.5, 0.0]))
    with torch.no_grad():
        unit.values[4:16] *= 0.5
        unit.values[16:] = 0
    assert torch.allclose(gated, unit.dense(weight, None), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "options", "sizes", "ranks"),
    [
        ((384, 384), {}, (16, 48, 192), [4, 8, 16]),
        ((6, 384), {}, (16, 20), [4, 6]),
        ((32, 32), {"smallest": 3, "factor": 1}, (9,), [3]),
    ],
)
def test_costs_are_those_of_whole_cores(shape, options, sizes, ranks):
    kind = make_kind("lora_xs", options)
    position = Position("layers.0.attn.q", "linear", "m", "m", 0, shape[1], shape[0])
    assert kind.sizes(position) == sizes
    found = [kind.flops_per_token(position, r * r) for r in ranks]
    assert found == [2 * r * (shape[0] + shape[1] + r) for r in ranks]
    assert kind.levels(position)[:3] == (1, 4, 9)
    assert kind.levels(position)[-1] == kind.largest(position) == min(shape) ** 2


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_cores_alone_are_stored_and_compute_the_same_elsewhere(family, randomise):
    model, again, inputs = make_model(family), make_model(family), make_inputs()
    space = build_space(model, kinds={"lora_xs": OPTIONS | {"bits": [32, 4]}})
    chosen = [c for i, c in enumerate(space.candidates) if i % 5 == 0 and c.bits == 32]
    taken = {c.position for c in chosen}
    chosen += [c for c in space.candidates if c.bits == 4 and c.position not in taken]
    structure = make_structure(space, chosen, identify(model), "classification")
    attach(model, structure)
    randomise(model)
    weights = weights_of(model)
    stored = {n: t for n, t in weights.items() if not n.startswith(HEAD)}
    assert {n.rpartition(".")[2] for n in stored} == {"values", "codes", "scales"}
    assert structure.bytes == sum(t.nbytes for t in stored.values())
    attach(again, structure)
    load_weights(again, weights)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", ["spec", "peft", "checkpoint"])
def test_each_export_computes_the_same_and_says_what_it_takes(
    tiny_folder, randomise, tmp_path, to
):
    case = train_on(tiny_folder, {"lora_xs": OPTIONS}, randomise, pad=0)
    report = export(case.best, case.weights, to, tmp_path / to)
    assert report.max_difference < (1e-6 if to == "spec" else 1e-4)
    if to == "peft":
        assert any("PEFT has no lora_xs units" in note for note in report.notes)
        stored = case.best.structure.stored_bytes
        assert any(f"the structure stores {stored:,}" in note for note in report.notes)
