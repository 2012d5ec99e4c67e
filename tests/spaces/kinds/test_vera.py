"""Scalings of random matrices that all positions share."""

from __future__ import annotations

import math

import pytest
import torch

from sparsearch.results.export.export import export
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.weights_file import HEAD, load_weights, weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.kinds.vera.module import VeraUnit
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from tests.conftest import make_inputs, make_model
from tests.helpers.exported import train_on


def test_it_computes_what_peft_does_with_the_same_matrices():
    import peft

    unit = VeraUnit(12, 20, 6)
    torch.nn.init.normal_(unit.d, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(unit.b, generator=torch.Generator().manual_seed(1))
    host = torch.nn.Sequential(torch.nn.Linear(12, 20))
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(2))
    before = host(x)
    model = peft.get_peft_model(host, peft.VeraConfig(r=6, target_modules=["0"]))
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.vera_lambda_d["default"].copy_(unit.d)
        layer.vera_lambda_b["default"].copy_(unit.b)
        layer.vera_A["default"].copy_(unit.A)
        layer.vera_B["default"].copy_(unit.B)
    assert torch.allclose(model(x), before + unit(x, None), atol=1e-6)
    assert unit(x, None).detach().abs().max() > 0.1


def test_matrices_are_kaiming_uniform_and_shared():
    small, large = VeraUnit(100, 40, 64), VeraUnit(200, 80, 64)
    assert float(small.A.abs().max()) == pytest.approx(math.sqrt(6 / 100), rel=0.01)
    assert float(small.B.abs().max()) == pytest.approx(math.sqrt(6 / 64), rel=0.01)
    assert torch.equal(small.B, large.B[:40])
    assert torch.allclose(small.A.float(), large.A[:, :100].float() * math.sqrt(2), rtol=0.02)
    assert abs(float(large.A.float().mean())) < 0.01


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_scalings_alone_are_stored_and_compute_the_same_elsewhere(family, randomise):
    model, again, inputs = make_model(family), make_model(family), make_inputs()
    space = build_space(model, kinds={"vera": {"rank": 9, "bits": [8]}})
    assert {c.params - space.position(c.position).out_features for c in space.candidates} == {9}
    identity = identify(model)
    structure = make_structure(space, space.candidates[::2], identity, "classification")
    attach(model, structure)
    randomise(model)
    weights = weights_of(model)
    stored = {n: t for n, t in weights.items() if not n.startswith(HEAD)}
    assert {n.rpartition(".")[2] for n in stored} == {"codes", "scales"}
    assert structure.bytes == sum(t.nbytes for t in stored.values())
    attach(again, structure)
    load_weights(again, weights)
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_all_positions_of_one_width_have_the_same_matrices():
    model = make_model("bert")
    space = build_space(model, kinds={"vera": {"on": ["*.attn.[qkv]"]}})
    identity = identify(model)
    attach(model, make_structure(space, space.candidates, identity, "classification"))
    units = [slot.unit for slot in attachment_of(model).slots]
    assert len(units) == 6 and units[0].A.shape == (256, 32)
    assert all(torch.equal(u.A, units[0].A) and torch.equal(u.B, units[0].B) for u in units)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", ["spec", "peft", "checkpoint"])
def test_each_export_computes_the_same_and_says_what_it_takes(
    tiny_folder, randomise, tmp_path, to
):
    case = train_on(tiny_folder, {"vera": {"rank": 8}}, randomise, pad=0)
    report = export(case.best, case.weights, to, tmp_path / to)
    assert report.max_difference < (1e-6 if to == "spec" else 1e-4)
    if to == "peft":
        assert any("PEFT has no vera units" in note for note in report.notes)
