"""Sparse deltas: exact supports, products that never see a dense matrix, and costs that are what runs."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

import sparsearch.spaces.kinds.sparse_delta.supports as module
from sparsearch.errors import StructureError
from sparsearch.spaces.attachment.attach import attach, attach_modules, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.attachment.weights_file import load_weights, weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.candidate import make_candidate
from sparsearch.spaces.families.position import Position, find, weight_at
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.decomposition import truncated_svd
from sparsearch.spaces.kinds.sparse_delta.module import SparseDeltaUnit
from sparsearch.spaces.kinds.sparse_delta.spec import SUPPORTS
from sparsearch.spaces.kinds.sparse_delta.supports import find_support
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import Structure, make_structure

WEIGHT_SUPPORTS = [s for s in SUPPORTS if s != "gradient"]


def random_matrix(out, width, seed=0):
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed))


def flat(places, width):
    rows, cols = places
    return (rows.long() * width + cols).tolist()


def make_unit(out, width, shares, scale=1.0, dtype=torch.float64):
    """A unit with random values at random places."""
    unit = SparseDeltaUnit(out, shares, scale).to(dtype)
    unit.align(*find_support(torch.empty(out, width), sum(shares), "random", "here"))
    torch.nn.init.normal_(unit.values)
    return unit


# Supports


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("count", [0, 1, 64])
@pytest.mark.parametrize("width", [16, 64, 768])
@pytest.mark.parametrize("constant", [False, True])
def test_a_support_has_exactly_as_many_places_as_asked_for(width, count, support, constant):
    matrix = torch.full((width, width), 0.3) if constant else random_matrix(width, width)
    rows, cols = find_support(matrix, count, support)
    assert rows.dtype == cols.dtype == torch.int32
    assert len(set(flat((rows, cols), width))) == len(rows) == len(cols) == count
    assert all(0 <= int(i) < width for i in (*rows, *cols))


@pytest.mark.parametrize("support", ["residual", "magnitude", "gradient"])
@pytest.mark.parametrize("value", [0.0, -0.3])
def test_equal_entries_are_taken_row_by_row(support, value):
    assert flat(find_support(torch.full((3, 4), value), 7, support), 4) == list(range(7))


def test_ties_at_the_edge_go_to_the_earlier_place():
    matrix = torch.tensor([[1.0, 2.0, -1.0], [3.0, 1.0, -3.0]])
    assert flat(find_support(matrix, 5, "magnitude"), 3) == [3, 5, 1, 0, 2]


@pytest.mark.parametrize("support", SUPPORTS)
def test_a_shorter_support_begins_a_longer_one_up_to_the_whole_matrix(support):
    matrix = random_matrix(24, 40)
    whole = flat(find_support(matrix, 960, support), 40)
    assert sorted(whole) == list(range(960))
    for count in (1, 16, 64, 256):
        assert flat(find_support(matrix, count, support), 40) == whole[:count]


def test_residual_is_what_the_leading_quarter_of_directions_leaves():
    left, _ = torch.linalg.qr(random_matrix(96, 64))
    right, _ = torch.linalg.qr(random_matrix(64, 64, seed=1))
    sizes = 0.9 ** torch.arange(64.0)
    rest = (left[:, 16:] * sizes[16:]) @ right[:, 16:].T
    matrix = (left * sizes) @ right.T
    expected = set(flat(find_support(rest, 64, "magnitude"), 64))
    assert len(expected & set(flat(find_support(matrix, 64, "residual"), 64))) >= 60
    assert len(expected & set(flat(find_support(matrix, 64, "magnitude"), 64))) < 40


@pytest.mark.parametrize("width", [1, 3, 16])
def test_the_residual_never_vanishes_on_small_widths(width):
    matrix = random_matrix(width, width)
    matrix[-1, -1] = 50.0 if width < 4 else matrix[-1, -1]
    places = flat(find_support(matrix, 1, "residual"), width)
    assert width >= 4 or places == [width * width - 1]
    assert len(flat(find_support(matrix, width * width, "residual"), width)) == width * width


def test_random_places_hang_on_the_name_alone():
    state = torch.get_rng_state()
    torch.manual_seed(1)
    first = flat(find_support(torch.zeros(32, 32), 64, "random", "layers.0.attn.q"), 32)
    torch.manual_seed(2)
    assert flat(find_support(torch.ones(32, 32), 64, "random", "layers.0.attn.q"), 32) == first
    assert flat(find_support(torch.ones(32, 32), 64, "random", "layers.0.attn.k"), 32) != first
    assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(2).get_state())
    torch.set_rng_state(state)


def test_a_decomposition_seeds_no_other_stream(monkeypatch):
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("seeds every device"))
    matrix, state = random_matrix(40, 24), torch.get_rng_state()
    for given in (matrix, matrix.T):
        left, values, right = truncated_svd(given, 5)
        assert torch.allclose(values, torch.linalg.svdvals(given)[:5], rtol=1e-3)
        assert torch.allclose(left.T @ given @ right.T, torch.diag(values), atol=1e-3)
    assert torch.equal(torch.get_rng_state(), state)


PRINT = """
import torch
from sparsearch.spaces.kinds.sparse_delta.spec import SUPPORTS
from sparsearch.spaces.kinds.sparse_delta.supports import find_support
torch.set_num_threads(1)
matrix = torch.randn(64, 48, generator=torch.Generator().manual_seed(5))
print([[p.tolist() for p in find_support(matrix, 64, s, "layers.3.ffn.up")] for s in SUPPORTS])
"""


def test_supports_are_equal_in_another_process():
    matrix = torch.randn(64, 48, generator=torch.Generator().manual_seed(5))
    here = [[p.tolist() for p in find_support(matrix, 64, s, "layers.3.ffn.up")] for s in SUPPORTS]
    done = subprocess.run(
        [sys.executable, "-c", PRINT], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == here


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


def test_costs_count_values_and_indices():
    candidate = make_candidate(make_kind("sparse_delta", {}), position_of(768, 768), 192)
    assert candidate.params == 192 and candidate.bytes == 192 * 12
    assert candidate.flops_per_token == 384 and candidate.merged_flops_per_token == 0


def test_only_the_gradients_support_waits_for_a_task():
    aligning = [s for s in SUPPORTS if make_kind("sparse_delta", {"support": s}).aligns]
    assert aligning == ["gradient"]


@pytest.mark.parametrize("support", WEIGHT_SUPPORTS)
def test_a_unit_of_any_size_holds_the_first_places_of_its_own_slice(build, family, support):
    model = build(family)
    kind = make_kind("sparse_delta", {"support": support, "smallest": 4, "steps": 3})
    position = find(
        positions_of(model), ("encoder." if family == "t5" else "") + "layers.1.attn.v"
    )
    host = model.base_model.get_submodule(position.module)
    whole = find_support(weight_at(position, host), 100, support, position.name)
    for size in (4, 20, 33, 100):
        attach_modules(model, [(position, kind, size, 1)])
        unit = attachment_of(model).slots[0].unit
        assert flat((unit.rows, unit.cols), 32) == flat(whole, 32)[:size]
        assert sum(unit.shares) == size
        detach(model)


@pytest.fixture
def searches(monkeypatch):
    """Names of the positions whose support is computed, not remembered."""
    seen = []
    monkeypatch.setattr(
        module, "find_support", lambda *args: seen.append(args[3]) or find_support(*args)
    )
    return seen


def test_supports_are_found_once_per_weight(build, searches):
    model, kind = build("gpt2"), make_kind("sparse_delta", {"smallest": 4})
    positions = [p for p in positions_of(model) if kind.accepts(p)]
    units = [(p, kind, sum(kind.sizes(p)), len(kind.sizes(p))) for p in positions]
    attach_modules(model, units)
    assert searches == [p.name for p in positions]
    kept = [slot.unit.rows.clone() for slot in attachment_of(model).slots]
    for again in (units, [(p, kind, 5, 1) for p in positions]):
        detach(model)
        attach_modules(model, again)
    assert len(searches) == len(positions)
    for slot, rows in zip(attachment_of(model).slots, kept, strict=True):
        assert torch.equal(slot.unit.rows, rows[:5])
    detach(model)
    attach_modules(model, [(positions[0], make_kind("sparse_delta", {"support": "random"}), 5, 1)])
    assert searches[len(positions) :] == [positions[0].name]


def test_a_changed_weight_is_searched_anew_and_a_dead_one_forgotten(build, searches):
    model, kind = build("bert"), make_kind("sparse_delta", {"support": "magnitude"})
    position = find(positions_of(model), "layers.0.attn.q")
    weight = model.base_model.get_submodule(position.module).weight
    attach_modules(model, [(position, kind, 16, 1)])
    detach(model)
    with torch.no_grad():
        weight[31, 7] = 100.0
    attach_modules(model, [(position, kind, 16, 1)])
    unit = attachment_of(model).slots[0].unit
    assert (int(unit.rows[0]), int(unit.cols[0])) == (31, 7) and len(searches) == 2
    gone = weakref.ref(weight)
    del model, weight, unit
    gc.collect()
    assert gone() is None


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
    assert names == {"values", "rows", "cols"}


def test_a_size_beyond_the_matrix_is_refused(build):
    model = build("bert")
    space = build_space(model, kinds={"sparse_delta": {"on": ["layers.0.attn.q"]}})
    structure = make_structure(space, space.candidates, identify(model, "here"), "classification")
    (whole,) = structure.candidates
    twice = replace(whole, size=2048, params=2048, flops_per_token=4096, frozen_bytes=8 * 2048)
    assert whole.size == 1024
    with pytest.raises(StructureError, match="has size 2048, of at most 1024"):
        attach(model, replace(structure, candidates=(twice,)))
    assert attachment_of(model) is None
