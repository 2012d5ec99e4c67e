"""Values in 16, 8, 4 and 2 bits: what is computed, what is stored, and that nothing changes on the way."""

import copy
import pickle

import pytest
import torch

from sparsearch.errors import ConfigError, StructureError
from sparsearch.spaces.attachment.attach import attach, attach_modules, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.weights_file import HEAD, load_weights, values_of, weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.rounding import Rounding, pack, rounded_tensors, settled, unpack
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import Structure, make_structure
from tests.conftest import make_inputs, make_model
from tests.helpers.kind_table import TABLE, units_of

BITS = (16, 8, 4, 2)
ROUNDED = [row for row in TABLE if row[0] != "weight_mask"]


@pytest.fixture(scope="module")
def model():
    return make_model("bert")


@pytest.fixture(scope="module")
def identity(model):
    return identify(model)


@pytest.fixture(autouse=True)
def _detached(model):
    yield
    detach(model)


@torch.no_grad()
def move(model, seed=7):
    """Every trained value away from where it was."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)


def structure_of(model, identity, kind, options, bits):
    space = build_space(model, kinds={kind: options | {"bits": bits}})
    return make_structure(space, space.candidates[::2], identity, "classification")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("kind", "options"), ROUNDED)
def test_every_kind_trains_stores_and_loads_rounded_values(model, identity, kind, options, bits):
    """The identity at first; gradients reach what trains; the file has the bytes that were counted, and loads."""
    structure = structure_of(model, identity, kind, options, bits)
    inputs = make_inputs()
    plain = model(**inputs).logits
    attach(model, structure)
    assert torch.equal(model(**inputs).logits, plain)
    move(model)
    model(**inputs).logits.square().sum().backward()
    trained = [p for unit in attachment_of(model).units.values() for p, _ in rounded_tensors(unit)]
    assert sum(p.numel() for p in trained) == structure.trainable_params
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert any(p.grad.abs().sum() > 0 for p in trained)
    expected, weights = model(**inputs).logits, weights_of(model)
    assert not torch.equal(expected, plain)
    stored = sum(t.nbytes for name, t in weights.items() if not name.startswith(HEAD))
    assert structure.bytes == stored
    again = Structure.from_json(structure.to_json())
    assert again.hash == structure.hash and again.stored_bytes == structure.stored_bytes
    detach(model)
    attach(model, again)
    load_weights(model, weights)
    assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(copy.deepcopy(model)(**inputs).logits, expected)
    saved = weights_of(model)
    assert all(torch.equal(saved[name], tensor) for name, tensor in weights.items())
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize(("kind", "options"), ROUNDED)
def test_the_values_computed_with_are_few(model, identity, kind, options):
    attach(model, structure_of(model, identity, kind, options, 2))
    move(model)
    names = {n for n in values_of(model) if f"{kind}@2" in n and not n.endswith(("left", "right"))}
    made_again = ("rows", "cols", *((".A", ".B") if kind == "vera" else ()))
    for name in names - {n for n in names if n.endswith(made_again)}:
        assert len(values_of(model)[name].unique()) <= 3, name


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize(("kind", "options"), ROUNDED)
def test_a_settled_copy_computes_the_same_and_rounds_no_more(model, identity, kind, options, bits):
    attach(model, structure_of(model, identity, kind, options, bits))
    move(model)
    inputs = make_inputs()
    expected = model(**inputs).logits
    for slot in attachment_of(model).slots:
        unit, slot.unit = slot.unit, settled(slot.unit)
        assert not any(isinstance(module, Rounding) for module in slot.unit.modules())
        assert not any(parameter.requires_grad for parameter in slot.unit.parameters())
        rounded = {id(b) for _, rounding in rounded_tensors(unit) for b in rounding.buffers()}
        shared = [b for b in unit.buffers() if id(b) not in rounded]
        assert all(a is b for a, b in zip(shared, slot.unit.buffers(), strict=True))
    assert torch.equal(model(**inputs).logits, expected)


def test_merging_folds_what_was_computed_with(build, identity):
    model = build("bert")
    kinds = {"lora": {"bits": 4}, "bitfit": {"bits": 2}, "lnfit": {"bits": 8}, "ia3": {"bits": 4}}
    space = build_space(model, kinds=kinds)
    attach(model, make_structure(space, space.candidates, identity, "classification"))
    move(model)
    inputs = make_inputs()
    expected = model(**inputs).logits
    assert torch.allclose(merge(model)(**inputs).logits, expected, atol=1e-5)


def test_each_precision_makes_candidates_of_its_own(model):
    place = {"max_rank": 2, "on": ["*.attn.q"]}
    space = build_space(model, kinds={"lora": place | {"bits": [32, 8, 4, 8]}})
    assert [c.kind for c in space.candidates] == ["lora"] * 4 + ["lora@8"] * 4 + ["lora@4"] * 4
    sizes = {c.kind: (c.params, c.bits, c.bytes) for c in space.candidates}
    assert sizes == {"lora": (64, 32, 256), "lora@8": (64, 8, 72), "lora@4": (64, 4, 40)}
    assert {kind: row["bytes"] for kind, row in space.by_kind.items()} == {
        "lora": 1024, "lora@8": 288, "lora@4": 160
    }  # fmt: skip
    plain = build_space(model, kinds={"lora": place})
    assert (
        build_space(model, kinds={"lora": place | {"bits": 32}}).fingerprint == plain.fingerprint
    )
    assert space.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("kinds", "problem"),
    [
        ({"lora": {"bits": 3}}, "kind lora: values have 32, 16, 8, 4, 2 bits, not 3"),
        ({"lora": {"bits": []}}, r"kind lora: bits must be a whole number or a list of them, not \[\]"),
        ({"lora": {"bits": "4"}}, "bits must be a whole number or a list"),
        ({"heads": {"bits": 8}}, "kind heads: values have 32 bits, not 8"),
        ({"weight_mask": {"bits": [32, 8]}}, "kind weight_mask: values have 32 bits, not 8"),
        ({"lora@4": {}}, "space.kinds.lora@4: bits are an option of the kind"),
    ],
)  # fmt: skip
def test_wrong_bits_are_refused(model, kinds, problem):
    with pytest.raises(ConfigError, match=problem):
        build_space(model, kinds=kinds)


@pytest.mark.parametrize("name", ["lora@", "lora@4.0", "lora@04", "lora@4@8", "@4"])
def test_a_kind_of_no_such_name_is_unknown(name):
    with pytest.raises(ConfigError, match="unknown kind"):
        make_kind(name, {})


def test_two_precisions_of_a_kind_at_one_place_are_refused(model, identity):
    space = build_space(model, kinds={"bitfit": {"bits": [32, 4], "on": ["layers.0.attn.q"]}})
    structure = make_structure(space, space.candidates, identity, "classification")
    with pytest.raises(StructureError, match=r"bitfit@4 at layers.0.attn.q is there twice"):
        attach(model, structure)


def test_the_file_of_another_unit_is_refused_and_one_with_floats_too(model, identity):
    attach(model, structure_of(model, identity, "bitfit", {"on": ["layers.0.attn.q"]}, 4))
    weights = weights_of(model)
    name = "layers.0.attn.q:bitfit@4.codes"
    for wrong in (weights[name][:-1], weights[name].float()):
        with pytest.raises(StructureError, match="other shape|not 16 of torch.float32"):
            load_weights(model, weights | {name: wrong})


def test_a_rounded_kind_survives_another_process():
    kind = make_kind("lora@4", {"max_rank": 2})
    again = pickle.loads(pickle.dumps(kind))
    assert again == kind and type(again) is type(kind)
    assert kind != make_kind("lora", {"max_rank": 2}) and kind.set_options == {"max_rank": 2}


def test_a_kind_that_miscounts_its_tensors_is_told(model, monkeypatch):
    kind = make_kind("lora@4", {})
    monkeypatch.setattr(type(kind), "tensors", 1)
    with pytest.raises(StructureError, match="trains 2 tensors, the kind says 1"):
        attach_modules(model, units_of(model, kind))


@pytest.mark.parametrize("bits", BITS)
def test_any_number_of_codes_survives_packing(bits):
    draw, most = torch.Generator().manual_seed(0), 2 ** (bits - 1) - 1
    parts = [
        torch.randint(-most, most + 1, s, generator=draw).float() for s in ((3, 5), (1,), (2, 2))
    ]
    packed = pack(parts, bits)
    assert packed.nbytes == -(-20 * bits // 8)
    found = unpack(packed, [part.shape for part in parts], bits)
    assert all(torch.equal(a, b) for a, b in zip(found, parts, strict=True))


@pytest.mark.parametrize(("bits", "most"), [(16, 1e-4), (8, 0.01), (4, 0.125), (2, 0.45)])
def test_more_bits_lose_less(bits, most):
    """Of normal values; the numbers are the roots of the quantisers' squared errors, with some air."""
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    lost = (Rounding(bits)(values) - values).square().mean().sqrt()
    assert lost < most
    outlier = torch.tensor([0.0, 0.0, 1e-3, 5.0])
    assert Rounding(bits)(outlier).isfinite().all()


def test_values_that_have_moved_get_a_new_scale(model, identity):
    attach(model, structure_of(model, identity, "bitfit", {"on": ["layers.0.attn.q"]}, 8))
    move(model)
    weights = weights_of(model)
    load_weights(model, weights)
    move(model, seed=8)
    (key,) = (name for name in weights if name.endswith(".scales"))
    assert not torch.equal(weights_of(model)[key], weights[key])


@pytest.mark.parametrize("bits", [2, 4])  # 127 levels lie closer than bfloat16 tells apart
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_that_were_loaded_keep_their_levels_in_half_precision(bits, dtype):
    rounding = Rounding(bits)
    values = torch.randn(200, generator=torch.Generator().manual_seed(3))
    codes, scale = rounding.codes(values)
    rounding.scale.copy_(scale)
    half, again = rounding.to(dtype).codes((codes * scale).to(dtype))
    assert torch.equal(half, codes) and again == scale.to(dtype)
