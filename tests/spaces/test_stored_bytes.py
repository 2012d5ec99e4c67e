"""What a task costs to keep, against the tensors that are written."""

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from sparsearch.errors import ConfigError
from sparsearch.results.export.export import write_spec
from sparsearch.spaces.attachment.attach import attach, detach
from sparsearch.spaces.attachment.weights_file import HEAD, load_weights, pack_weights, weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.kinds import KINDS
from sparsearch.spaces.kinds.precision import BITS
from sparsearch.spaces.limits import InferenceFlops, StoredBytes
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import Structure, make_structure
from tests.conftest import make_inputs, make_model
from tests.helpers.kind_table import TABLE

CUTS = [
    ("heads", {"compensate": "linear"}),
    ("neurons", {}),
    ("neurons", {"compensate": "linear"}),
]

DELTA = {"smallest": 4, "factor": 3, "steps": 3}
VALUES_ALONE = [
    *(
        ("spectral", {"block": block, "max_blocks": 3, "directions": directions})
        for block in (4, 1)
        for directions in ("weight", "seed")
    ),
    *(("sparse_delta", {**DELTA, "support": s}) for s in ("residual", "magnitude", "random")),
    ("lora_xs", {"smallest": 2, "steps": 3}),
    ("vera", {"rank": 7}),
]
"""Kinds whose frozen parts the backbone or a seed gives again."""

ATTACHED = [(kind, options) for kind, options in TABLE if KINDS[kind].role == "attach"]


@pytest.fixture(scope="module")
def model():
    return make_model("bert", intermediate_size=128)


@pytest.fixture
def bare(model):
    """The model, which has nothing attached afterwards, whatever happens."""
    yield model
    detach(model)


@pytest.fixture(scope="module")
def identity(model):
    return identify(model)


def test_every_kind_is_counted():
    assert {name for name, _ in TABLE + CUTS} == {*KINDS}


@pytest.mark.parametrize(("kind", "options"), TABLE + CUTS)
def test_it_is_the_files_tensors_and_a_bit_for_each_candidate(model, identity, kind, options):
    space = build_space(model, kinds={kind: options})
    structure = make_structure(space, space.candidates[::2], identity, "classification")
    attach(model, structure)
    tensors = {n: t for n, t in weights_of(model).items() if not n.startswith(HEAD)}
    detach(model)
    written = sum(tensor.nbytes for tensor in tensors.values())
    assert structure.bytes == written
    assert structure.stored_bytes == written + -(-len(space.candidates) // 8)
    assert Structure.from_json(structure.to_json()).stored_bytes == structure.stored_bytes
    assert space.stored_bytes >= structure.stored_bytes
    assert StoredBytes().cap(structure.stored_bytes, space, 16) == written


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("kind", "options"), ATTACHED + VALUES_ALONE)
def test_a_file_of_any_precision_has_these_bytes_and_computes_the_same(
    bare, identity, randomise, kind, options, bits
):
    model = bare
    inputs = make_inputs()
    space = build_space(model, kinds={kind: {**options, "bits": bits}})
    structure = make_structure(space, space.candidates[::2], identity, "classification")
    attach(model, structure)
    randomise(model)
    packed = pack_weights(model, ("a", "b", "c"))
    with torch.no_grad():
        expected = model(**inputs).logits
    attach(detach(model), structure)
    with torch.no_grad():
        assert not torch.allclose(model(**inputs).logits, expected, atol=1e-4)
        load_weights(model, safetensors.torch.load(packed))
        difference = (model(**inputs).logits - expected).abs().max()
    tensors = safetensors.torch.load(packed)
    written = sum(t.nbytes for name, t in tensors.items() if not name.startswith(HEAD))
    assert structure.stored_bytes == written + -(-len(space.candidates) // 8)
    assert difference < 1e-6
    if (kind, options) in VALUES_ALONE:
        assert structure.bytes == sum(c.value_bytes for c in structure.candidates)


def test_a_structure_of_an_unknown_space_stores_a_bit_for_each_that_is_chosen(model, identity):
    space = build_space(model, kinds={"bitfit": {}})
    structure = make_structure(space, space.candidates[:9], identity, "classification")
    raw = structure.to_json().replace(f'"offered": {len(space.candidates)}', '"offered": 0')
    assert Structure.from_json(raw).stored_bytes == structure.bytes + 2


def test_the_exported_file_holds_that_much(tiny_folder, tmp_path):
    model = make_model("bert")
    space = build_space(model, kinds={"lora": {"max_rank": 2}, "spectral": {"block": 4}})
    identity = identify(model, str(tiny_folder))
    structure = make_structure(space, space.candidates[::3], identity, "classification")
    attach(model, structure)
    report = write_spec(structure, pack_weights(model, ("a", "b", "c")), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "modules.safetensors")
    written = sum(t.nbytes for name, t in tensors.items() if not name.startswith(HEAD))
    assert structure.bytes == written
    assert report.notes[0].startswith(f"{structure.stored_bytes:,} stored bytes")


@pytest.mark.parametrize("value", [None, True, 1.5, float("nan"), [817], "much"])
def test_a_limit_that_is_asked_for_must_be_a_number_of_bytes_or_a_share(value):
    with pytest.raises(ConfigError, match="max_bytes"):
        StoredBytes().asked(value)


def test_numbers_of_other_libraries_are_numbers_too():
    assert StoredBytes().asked(np.int64(817)) == StoredBytes().asked(817.0) == 817
    assert InferenceFlops().asked(np.float32(0.5)) == 0.5
