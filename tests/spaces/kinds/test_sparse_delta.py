"""Sparse deltas: products that never see a dense matrix, and costs that are what runs."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.weights_file import load_weights, weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.candidate import make_candidate
from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.sparse_delta.module import SparseDeltaUnit
from sparsearch.spaces.kinds.sparse_delta.spec import SUPPORTS
from sparsearch.spaces.kinds.sparse_delta.supports import find_support
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import Structure, make_structure


def make_unit(out, width, shares, scale=1.0, dtype=torch.float64):
    """A unit with random values at random places."""
    unit = SparseDeltaUnit(out, shares, scale).to(dtype)
    unit.align(*find_support(torch.empty(out, width), sum(shares), "random", "here"))
    torch.nn.init.normal_(unit.values)
    return unit


# The unit


@pytest.mark.parametrize("lead", [(5, 7), (3,), ()])
@pytest.mark.parametrize("gate", [None, (0.5,), (0.0, 0.7, 1.3)])
def test_forward_and_gradients_are_those_of_the_dense_matrix(lead, gate):
    unit = make_unit(20, 24, (4, 12, 48), scale=2.0)
    rows, cols = unit.rows.long(), unit.cols.long()
    x = torch.randn(*lead, 24, dtype=torch.float64, requires_grad=True)
    z = None if gate is None else torch.tensor(gate, dtype=torch.float64, requires_grad=True)
    found = unit(x, z)
    values = unit.values.detach().clone().requires_grad_(True)
    split = torch.tensor([4, 12, 48])
    each = 1.0 if z is None else z if len(z) == 1 else z.repeat_interleave(split)
    dense = torch.zeros(20, 24, dtype=torch.float64).index_put((rows, cols), 2.0 * values * each)
    expected = F.linear(x, dense)
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-12)
    inputs = [x] if z is None else [x, z]
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad(found, [unit.values, *inputs], weights)
    theirs = torch.autograd.grad(expected, [values, *inputs], weights)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_gradients_agree_with_finite_differences():
    unit = make_unit(6, 5, (3, 6))
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    z = torch.tensor([0.4, 0.9], dtype=torch.float64, requires_grad=True)

    def run(x, z, values):
        return torch.func.functional_call(unit, {"values": values}, (x, z))

    assert torch.autograd.gradcheck(run, (x, z, unit.values))


def test_under_bf16_autocast_products_are_summed_in_float32():
    unit = make_unit(64, 64, (64,), dtype=torch.float32)
    x = torch.randn(8, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = unit(x.bfloat16(), None)
        (gradient,) = torch.autograd.grad(found.sum(), [unit.values])
    expected = unit(x.bfloat16().float(), None)
    assert found.dtype == gradient.dtype == torch.float32
    assert torch.equal(found, expected)


class Largest(TorchDispatchMode):
    """The largest tensor that an operation gives, and the multiplications and additions of its entries."""

    def __init__(self):
        super().__init__()
        self.entries = self.work = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // 4)
        if function in (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor) and out.dim() > 1:
            self.work += out.numel()
        elif function is torch.ops.aten.scatter_add_.default:
            self.work += args[3].numel()
        return out


def test_no_dense_matrix_is_ever_allocated(tmp_path):
    wide, tokens, entries = 768, 16, 1024
    rows, cols = find_support(torch.empty(wide, wide), entries, "random", "here")
    x, z = torch.randn(tokens, wide, requires_grad=True), torch.ones(4, requires_grad=True)

    def once():
        unit = SparseDeltaUnit(wide, (16, 48, 192, 768), 1.0)
        unit.align(rows, cols)
        return torch.autograd.grad(unit(x, z).square().sum(), [x, z, unit.values])

    with Largest() as seen:
        once()
    assert seen.entries == tokens * entries
    with profile(profile_memory=True) as record:
        once()
    record.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    taken = [e["args"]["Bytes"] for e in events if e["name"] == "[memory]"]
    assert tokens * entries * 4 <= max(taken) < wide * wide * 4 / 16


def test_many_tokens_hold_few_products(tmp_path):
    """Neither a matrix (tokens, N) nor a dense one, whether kept for the backward pass or passing."""
    wide, tokens, entries = 768, 2048, 1024
    unit = SparseDeltaUnit(wide, (16, 48, 192, 768), 1.0)
    unit.align(*find_support(torch.empty(wide, wide), entries, "random", "here"))
    x, z = torch.randn(tokens, wide, requires_grad=True), torch.ones(4, requires_grad=True)
    gradient, kept = torch.randn(tokens, wide), []

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
            kept.append(tensor.nbytes)
        return tensor

    def once():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            change = unit(x, z)
        return torch.autograd.grad(change, [x, z, unit.values], gradient)

    once()
    assert sum(kept) < 8 * 4 * entries
    with profile(profile_memory=True) as record:
        found = once()
    record.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    steps = [(e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]"]
    held = list(accumulate(size for _, size in sorted(steps)))
    change_and_gradient = 2 * tokens * wide * 4
    assert max(held) - change_and_gradient < min(wide * wide * 4, tokens * entries * 4 / 4)
    weight = unit.dense(torch.zeros(wide, wide), None).detach().requires_grad_()
    expected = torch.autograd.grad(F.linear(x, weight), [x, weight], gradient)
    assert torch.allclose(found[0], expected[0], atol=1e-4)
    places = expected[1][unit.rows.long(), unit.cols.long()]
    assert torch.allclose(found[2], places, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("lead", [(3, 5), (50, 60)], ids=["at once", "in parts"])
def test_flops_are_the_multiplications_and_additions_that_run(lead):
    unit = make_unit(32, 48, (16, 48))
    kind = make_kind("sparse_delta", {})
    with Largest() as seen, torch.no_grad():
        unit(torch.randn(*lead, 48, dtype=torch.float64), None)
    assert seen.work == 2 * 64 * lead[0] * lead[1]
    assert kind.flops_per_token(position_of(48, 32), 64) == 2 * 64


# The kind


def position_of(in_features, out_features):
    return Position("layers.0.attn.q", "linear", "m", "m", 0, in_features, out_features)


@pytest.mark.parametrize(
    ("width", "options", "sizes"),
    [
        (768, {}, (16, 48, 192, 768)),
        (32, {}, (16, 48, 192, 768)),
        (16, {}, (16, 48, 192)),
        (8, {}, (16, 48)),
        (3, {}, (9,)),
        (32, {"smallest": 10, "factor": 3, "steps": 3}, (10, 20, 60)),
        (32, {"factor": 1}, (16,)),
        (32, {"steps": 10**9}, (16, 48, 192, 768)),
    ],
)
def test_candidates_are_the_increments_of_nested_supports(width, options, sizes):
    assert make_kind("sparse_delta", options).sizes(position_of(width, width)) == sizes


@pytest.mark.parametrize(
    ("options", "an_entry"), [({}, 4), ({"indices": "stored"}, 12), ({"support": "gradient"}, 12)]
)
def test_costs_count_values_and_the_indices_that_are_stored(options, an_entry):
    candidate = make_candidate(make_kind("sparse_delta", options), position_of(768, 768), 192)
    assert candidate.params == 192 and candidate.bytes == 192 * an_entry
    assert candidate.flops_per_token == 384 and candidate.merged_flops_per_token == 0


def test_only_the_gradients_support_waits_for_a_task():
    aligning = [s for s in SUPPORTS if make_kind("sparse_delta", {"support": s}).aligns]
    assert aligning == ["gradient"]


def test_a_structure_survives_its_file_and_its_weights(build, inputs, randomise, tmp_path):
    model = build("gpt2")
    kinds = {"sparse_delta": {"smallest": 8, "support": "random", "scale": 2}}
    space = build_space(model, kinds=kinds)
    assert [c.size for c in space.candidates[:4]] == [8, 24, 96, 384]
    chosen = [c for c in space.candidates if c.size in (24, 96) and "attn.k" in c.position]
    structure = make_structure(space, chosen, identify(model, "here"), "classification")
    assert {c.size for c in structure.candidates} == {120}
    (tmp_path / "structure.json").write_text(structure.to_json())
    again = Structure.load(tmp_path)
    assert again == structure and again.hash == structure.hash
    attach(model, structure)
    randomise(model)
    weights = weights_of(model)
    twin = attach(build("gpt2"), again)
    load_weights(twin, weights)
    with torch.no_grad():
        assert torch.equal(twin(**inputs).logits, model(**inputs).logits)
        assert not torch.equal(twin(**inputs).logits, build("gpt2")(**inputs).logits)
    names = {n.rpartition(".")[2] for n in weights if "sparse_delta" in n}
    assert names == {"values"}


def test_a_size_beyond_the_matrix_is_refused(build):
    model = build("bert")
    space = build_space(model, kinds={"sparse_delta": {"on": ["layers.0.attn.q"]}})
    structure = make_structure(space, space.candidates, identify(model, "here"), "classification")
    (whole,) = structure.candidates
    twice = replace(whole, size=2048, params=2048, flops_per_token=4096)
    assert whole.size == 1024
    with pytest.raises(StructureError, match="has size 2048, of at most 1024"):
        attach(model, replace(structure, candidates=(twice,)))
    assert attachment_of(model) is None
