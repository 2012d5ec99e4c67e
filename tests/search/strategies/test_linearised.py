"""Joint selection under a linear model: its derivatives, its ridge fits, and what it selects."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sparsearch.config.study import TrainConfig
from sparsearch.errors import ConfigError, ModelStateError
from sparsearch.search.strategies.linearised import joint, recording
from sparsearch.search.strategies.linearised.directions import find_directions
from sparsearch.search.strategies.linearised.explained import explain
from sparsearch.search.strategies.linearised.forward_selection import (
    LeastSquares,
    forward_selection,
)
from sparsearch.search.strategies.linearised.jacobian import (
    jacobian_columns,
    least_squares,
    moved_units,
)
from sparsearch.search.strategies.linearised.recording import tokens_of_batch
from sparsearch.search.strategies.registry import rank
from sparsearch.search.strategies.supernet_start import open_supernet
from sparsearch.search.tasks.task import Split, batches, token_batches
from sparsearch.search.training.warm_start import WarmStarts
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.calibration.calibrate import aligning_at
from sparsearch.spaces.space import build_space
from sparsearch.workers.preflight import check_study
from tests.conftest import make_model
from tests.helpers.tiny_problem import make_problem

BUDGET = Budget(max_bytes=3000, text="3000 bytes")
KINDS = {
    "lora": {"max_rank": 2},
    "bitfit": {},
    "lnfit": {},
    "ia3": {},
    "adapter": {"bottleneck": 3},
    "low_rank_adapter": {"reduction": 8},
    "sparse_delta": {"smallest": 4, "steps": 2},
    "spectral": {"block": 4, "max_blocks": 2, "directions": "seed"},
}
OTHERS = {
    "dora": {"rank": 2},
    "lora_xs": {"smallest": 2, "steps": 2},
    "vera": {"rank": 4},
    "compacter": {"bottleneck": 4, "division": 2},
}


def over(problem, kinds):
    """A problem over another space, with starts for it."""
    space = build_space(problem.model, kinds=kinds)
    starts = WarmStarts(problem.model, problem.task, TrainConfig(precision="fp32"))
    aligning = aligning_at(space.kinds.values(), space.positions)
    return dataclasses.replace(problem, space=space, start=lambda: starts.get(0, aligning))


@pytest.fixture(
    scope="module",
    params=[("bert", KINDS), ("gpt2", KINDS), ("llama", KINDS | OTHERS)],
    ids=lambda param: param[0],
)
def linear(request):
    """A problem with every kind that attaches, its supernet, what is explained and directions."""
    problem = over(make_problem(make_model, request.param[0]), request.param[1])
    supernet = open_supernet(problem, seed=0, warm=True)
    (explained,) = explain(supernet, problem.task, [problem.task.train], most=8, seed=0)
    moves = find_directions(supernet, explained, 2, problem.train)
    yield problem, supernet, explained, moves
    supernet.close()


def test_columns_are_the_derivatives_of_a_models_own_outputs(linear):
    problem, supernet, explained, moves = linear
    (move,), z = moves, torch.zeros(len(problem.space.candidates))
    batch = next(iter(batches(problem.task.train, 4, torch.device("cpu"))))
    found = jacobian_columns(supernet, batch, explained, moved_units(supernet, moves))
    reach = found.abs().amax(dim=(0, 1))
    assert (reach > 1e-6).double().mean() > 0.8  # biases of keys change nothing
    differences = []
    with torch.no_grad(), supernet.attachment.gated(z):
        for parameter, change in move.items():
            parameter += change
        for i, step in enumerate((3e-3 / reach.clamp_min(1e-3)).tolist()):
            ends = []
            for z[i] in (step, -step):
                ends.append(explained.outputs(supernet, batch))
            z[i] = 0.0
            differences.append((ends[0] - ends[1]) / (2 * step))
        for parameter, change in move.items():
            parameter -= change
    error = (torch.stack(differences, dim=-1) - found).abs().amax(dim=(0, 1))
    assert (error < 0.01 * reach + 5e-7).all(), (error / reach).max()


def test_columns_of_a_prefix_are_derivatives_along_its_values_where_its_gate_is_open():
    """Gates stand inside its softmax, so that it is not linear in them."""
    problem = over(make_problem(make_model, "llama"), {"prefix": {"max_length": 2}})
    supernet = open_supernet(problem, seed=0, warm=True)
    (explained,) = explain(supernet, problem.task, [problem.task.train], most=8, seed=0)
    (move,) = find_directions(supernet, explained, 1, problem.train)
    batch = next(iter(batches(problem.task.train, 4, torch.device("cpu"))))
    found = jacobian_columns(supernet, batch, explained, moved_units(supernet, (move,)))
    assert found.shape[-1] == 4 and (found.abs().amax(dim=(0, 1)) > 1e-6).all()
    for i, gate in enumerate(torch.eye(4)):
        ends = []
        with torch.no_grad(), supernet.attachment.gated(gate):
            for step in (0.1, -0.2, 0.1):
                for parameter, change in move.items():
                    parameter += step * change
                ends.append(explained.outputs(supernet, batch))
        assert torch.allclose((ends[0] - ends[1]) / 0.2, found[..., i], rtol=0.02, atol=1e-5)
    supernet.close()


def test_directions_are_gradients_as_long_as_a_step_of_adam(linear):
    problem, supernet, _, moves = linear
    (batch,) = batches(problem.task.train, 64, torch.device("cpu"))
    loss = problem.task.behaviour.loss(supernet.model, batch, "fp32")
    (move,), alone = moves, {"bitfit", "lnfit", "ia3"}  # with one parameter each
    units = {k: v for k, v in supernet.attachment.units.items() if k.rpartition(":")[2] in alone}
    checked = 0
    for name, unit in units.items():
        (parameter,) = unit.parameters()
        (gradient,) = torch.autograd.grad(loss, [parameter], retain_graph=True)
        if gradient.norm() < 1e-6:  # biases of keys change nothing, and have rounding errors alone
            continue
        checked += 1
        rate = problem.train.kind_lr.get(name.rpartition(":")[2], problem.train.lr)
        expected = gradient * rate * gradient.abs().sum() / gradient.square().sum()
        expected *= torch.sign((move[parameter] * expected).sum())  # a direction has two ends
        scale = float(expected.abs().max())
        assert torch.allclose(move[parameter], expected, rtol=1e-2, atol=1e-3 * scale), name
    assert checked > 10


def test_normal_equations_are_the_sums_of_all_rows(linear):
    problem, supernet, explained, moves = linear
    rows = problem.task.train
    (batch,) = batches(rows, len(rows), torch.device("cpu"))
    columns = (
        jacobian_columns(supernet, batch, explained, moved_units(supernet, moves))
        .flatten(0, 1)
        .double()
    )
    targets = explained.targets(batch).flatten().double()
    found = least_squares(supernet, explained, moves)
    scale = float(found.gram.diagonal().max())
    assert torch.allclose(
        found.gram * len(rows), columns.T @ columns, rtol=1e-3, atol=1e-5 * scale
    )
    assert torch.allclose(found.target * len(rows), columns.T @ targets, rtol=1e-3, atol=1e-5)


def test_batches_shrink_where_much_is_written(linear, monkeypatch):
    _, supernet, explained, moves = linear
    whole = least_squares(supernet, explained, moves)
    monkeypatch.setattr(recording, "_NUMBERS", 2**15)
    assert tokens_of_batch(supernet, 512) < 100
    one, two = (tokens_of_batch(supernet, 512, outputs=n) for n in (1, 2))
    assert 0 < two <= one / 2 < 100
    shrunk = least_squares(supernet, explained, moves)
    assert torch.allclose(shrunk.gram, whole.gram, rtol=1e-4)
    assert torch.allclose(shrunk.target, whole.target, rtol=1e-3, atol=1e-7)


def test_batches_hold_as_many_rows_as_fit_into_their_tokens():
    lengths = torch.tensor([5, 2, 9, 2, 3])
    ids = torch.arange(5)[:, None].expand(5, 9)
    split = Split({"input_ids": ids}, lengths, torch.arange(5))
    found = list(token_batches(split, 8, torch.device("cpu")))
    assert [b["rows"].tolist() for b in found] == [[1, 3], [4], [0], [2]]
    assert [b["input_ids"].shape[1] for b in found] == [2, 3, 5, 9]
    assert all(b["labels"].tolist() == b["rows"].tolist() for b in found)


def _problem(seed, rows=60, groups=6, width=2):
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(rows, groups * width, generator=generator, dtype=torch.float64)
    target = columns @ torch.linspace(2, -1, groups * width, dtype=torch.float64)
    return columns, target + torch.randn(rows, generator=generator, dtype=torch.float64)


def _equations(columns, target):
    return LeastSquares(columns.T @ columns / len(target), columns.T @ target / len(target))


def test_forward_selection_takes_what_a_ridge_fit_of_all_selected_columns_takes():
    (x, y), (x_held, y_held) = _problem(0), _problem(1)
    costs, ridge = torch.tensor([3.0, 1.0, 2.0, 5.0, 1.0, 1.0]), 0.1
    order, drops = forward_selection(_equations(x, y), _equations(x_held, y_held), costs, ridge)
    penalty = ridge * x.square().mean() * len(x)

    def error(selected):
        own = [2 * g + j for g in selected for j in (0, 1)]
        gram = x[:, own].T @ x[:, own] + penalty * torch.eye(len(own))
        fitted = x_held[:, own] @ torch.linalg.solve(gram, x[:, own].T @ y)
        return float((y_held - fitted).square().mean())

    selected, before = [], float(y_held.square().mean())
    for group, drop in zip(order[: len(drops)], drops, strict=True):
        worth = {
            g: (before - error([*selected, g])) / float(costs[g])
            for g in range(6)
            if g not in selected
        }
        assert group == max(worth, key=worth.__getitem__)
        assert drop == pytest.approx(worth[group] * float(costs[group]))
        selected.append(group)
        before -= drop
    assert len(drops) >= 3 and sorted(order) == list(range(6))


def test_what_lowers_no_held_out_error_comes_last():
    (x, y), (x_held, y_held) = _problem(0), _problem(1)
    x_held = torch.cat(
        [x_held[:, :10], -x_held[:, 10:]], dim=1
    )  # the last group says the opposite
    order, drops = forward_selection(
        _equations(x, y), _equations(x_held, y_held), torch.ones(6), 0.1
    )
    assert order[-1] == 5 and len(drops) < 6


def _copies():
    """Scales of the values, and of what attention makes of them: the same where it projects by the identity."""
    model = make_model("bert", labels=2)
    base = model.bert.encoder.layer
    with torch.no_grad():
        for layer in base:
            layer.attention.output.dense.weight.copy_(
                torch.eye(len(layer.attention.output.dense.weight))
            )
            layer.attention.output.dense.bias.zero_()
    return model


def test_the_probe_counts_two_copies_twice_and_joint_selection_once(monkeypatch):
    problem = make_problem(
        lambda *_, **__: _copies(), probe={"rows": 32}, linearised={"ridge": 0.01}
    )
    problem = over(problem, {"ia3": {"on": ["*.1.attn.v", "*.1.attn.o", "*.0.attn.k"]}})
    places = [c.position for c in problem.space.candidates]
    first, second = places.index("layers.1.attn.v"), places.index("layers.1.attn.o")
    probed = rank("probe", problem, BUDGET, seed=0).scores
    assert sorted(range(3), key=lambda i: -probed[i])[:2] in ([first, second], [second, first])
    assert probed[first] == pytest.approx(probed[second], rel=1e-3)
    added, select = {}, joint.forward_selection

    def look(fit, held_out, costs, ridge):  # rows that fit judge too: on them the first copy helps
        order, drops = select(fit, fit, costs, ridge)
        added.update(zip(order, drops, strict=False))
        return order, drops

    monkeypatch.setattr(joint, "forward_selection", look)
    rank("linearised", problem, BUDGET, seed=0)
    once, again = sorted((added.get(first, 0.0), added.get(second, 0.0)), reverse=True)
    assert once > 0 and again < 0.05 * once


def test_equal_seeds_give_equal_rankings_and_leave_nothing_attached(build):
    problem = make_problem(build, linearised={"rows": 16})
    first, again, other = (rank("linearised", problem, BUDGET, seed=s).scores for s in (1, 1, 2))
    assert first == again and first != other
    assert sorted(first) == list(range(len(problem.space.candidates)))
    assert attachment_of(problem.model) is None


def test_a_search_may_start_at_its_order(build):
    problem = make_problem(build, start="linearised", steps=0)
    found, order = (rank(s, problem, BUDGET, seed=0).scores for s in ("s3pet", "linearised"))
    assert torch.tensor(found).argsort().tolist() == torch.tensor(order).argsort().tolist()
    assert float(torch.tensor(found).std()) == pytest.approx(1.0)


@pytest.mark.parametrize("task_type", ["regression", "multi-label"])
def test_other_outputs_of_rows_are_explained_too(build, task_type):
    problem = make_problem(build)
    model = build("bert", labels=1 if task_type == "regression" else 2)
    labels = problem.task.train.labels.float()
    labels = labels if task_type == "regression" else torch.stack([labels, 1 - labels], dim=1)
    rows = dataclasses.replace(problem.task.train, labels=labels)
    task = dataclasses.replace(problem.task, type=task_type, train=rows)
    problem = over(
        dataclasses.replace(problem, model=model, task=task), {"bitfit": {}, "lnfit": {}}
    )
    scores = rank("linearised", problem, BUDGET, seed=0).scores
    assert sorted(scores) == list(range(len(problem.space.candidates)))


def test_values_in_few_bits_have_columns_too(build):
    problem = over(make_problem(build), {"lora": {"max_rank": 2, "bits": [32, 4, 2]}})
    scores = rank("linearised", problem, BUDGET, seed=0).scores
    assert sorted(scores) == list(range(len(problem.space.candidates)))


def test_what_it_cannot_linearise_is_refused_with_what_to_do(build):
    problem, said = make_problem(build), "has heads, which remove"
    space = build_space(problem.model, kinds={"lora": {}, "heads": {}})
    (found,) = joint.misfits(space, problem.task.behaviour)
    assert said in found and "search with s3pet" in found
    with pytest.raises(ConfigError, match=said):
        rank("linearised", dataclasses.replace(problem, space=space), BUDGET, seed=0)


def test_directions_become_fewer_where_candidates_are_many(build, monkeypatch):
    problem, widths = make_problem(build), []
    select = joint.forward_selection

    def look(fit, held_out, costs, ridge):
        widths.append(len(fit.target))
        return select(fit, held_out, costs, ridge)

    monkeypatch.setattr(joint, "forward_selection", look)
    count = len(problem.space.candidates)
    labels = torch.arange(32) % 4
    monkeypatch.setattr(joint, "_MOST_COLUMNS", count - 1)
    (found,) = joint.misfits(problem.space, problem.task.behaviour)
    assert f"{count} candidates, and memory is for {count - 1}" in found
    rows = dataclasses.replace(problem.task.train, labels=labels)
    task = dataclasses.replace(problem.task, train=rows, classes=tuple("abcd"))
    problem = dataclasses.replace(problem, model=build("bert", labels=4), task=task)
    problem = over(problem, {"lora": {"max_rank": 2}, "bitfit": {}, "lnfit": {}})
    for most, columns in (
        (10**4, 3),
        (2 * count + 1, 2),
    ):  # four outputs, their sum has no residual
        monkeypatch.setattr(joint, "_MOST_COLUMNS", most)
        rank("linearised", problem, BUDGET, seed=0)
        assert widths[-1] == columns * count


def test_a_unit_that_reads_no_rows_is_refused(build):
    problem = over(make_problem(build, "deberta-v2"), {"bitfit": {}})
    with pytest.raises(ModelStateError, match="search with the probe"):
        rank("linearised", problem, BUDGET, seed=0)


def test_a_study_is_told_before_it_starts(study):
    kinds = study["space"]["kinds"] | {"heads": {}}
    study |= {"baselines": ["linearised"], "space": {"kinds": kinds}}
    with pytest.raises(
        ConfigError, match="linearised: selects what is attached, and the space has heads"
    ):
        check_study(study)
