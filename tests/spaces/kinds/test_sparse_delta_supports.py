"""Supports of sparse deltas: as many places as asked for, in one order, found once per weight."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref

import pytest
import torch

import sparsearch.spaces.kinds.sparse_delta.supports as module
from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.families.position import find, weight_at
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.kinds.decomposition import truncated_svd
from sparsearch.spaces.kinds.sparse_delta.spec import SUPPORTS
from sparsearch.spaces.kinds.sparse_delta.supports import find_support

WEIGHT_SUPPORTS = [s for s in SUPPORTS if s != "gradient"]


def random_matrix(out, width, seed=0):
    return torch.randn(out, width, generator=torch.Generator().manual_seed(seed))


def flat(places, width):
    rows, cols = places
    return (rows.long() * width + cols).tolist()


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
