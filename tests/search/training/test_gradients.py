"""Gradients at the identity point: alignment of bases, and the probes' scores."""

from __future__ import annotations

import pytest
import torch

from sparsearch.config.study import ProbeConfig, SearchConfig, TrainConfig
from sparsearch.errors import Cancelled, StructureError, TrainingDiverged
from sparsearch.search.bilevel.gradient_probe import probe
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.strategies.base import RankingContext
from sparsearch.search.strategies.registry import rank
from sparsearch.search.strategies.supernet_start import log_density
from sparsearch.search.tasks.task import batches
from sparsearch.search.training.gradients import (
    batch_gradients,
    brief_changes,
    sample_losses,
    sample_rows,
    warm_head,
)
from sparsearch.search.training.warm_start import WarmStarts
from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.parameters import (
    backbone_parameters,
    base_of,
    head_parameters,
    positions_of,
)
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.calibration.calibrate import aligning_at, calibrate
from sparsearch.spaces.families.position import find, weight_at
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.space import build_space
from tests.helpers.tiny_task import TRAIN, make_task

KINDS = {
    "lora": {"max_rank": 2},
    "spectral": {"block": 2, "max_blocks": 2},
    "bitfit": {},
    "sparse_delta": {"on": ["*.attn.q"], "smallest": 4, "factor": 3, "steps": 2},
}
CPU = torch.device("cpu")


def briefly(steps):
    """Settings of a warm start on few rows, with a brief fine-tuning."""
    return TrainConfig(precision="fp32", start_rows=32, start_steps=steps)


def dense_gradient(model, task, rows, path):
    """The mean gradient of a weight, the plain way."""
    weight = model.base_model.get_submodule(path).weight
    weight.requires_grad_(True)
    total = torch.zeros_like(weight)
    for batch in batches(rows, 32, CPU):
        loss = task.behaviour.loss(model, batch, "fp32")
        total += torch.autograd.grad(loss, [weight])[0]
    weight.requires_grad_(False)
    return total


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_bases_span_the_gradients_leading_directions(build, family):
    model, task = build(family, labels=2).eval(), make_task()
    model.config.pad_token_id = 1
    kind = make_kind("spectral", {"block": 3})
    position = find(positions_of(model), "layers.1.attn.v")
    before = {n: p.detach().clone() for n, p in backbone_parameters(model)}
    warm_head(model, task, task.train, 0, "fp32")
    attach_modules(model, [(position, kind, 1, 1)])
    calibrate(model, sample_losses(model, task, task.train, "fp32"))
    unit = attachment_of(model).slots[0].unit
    detach(model)
    assert all(torch.equal(p, before[n]) for n, p in backbone_parameters(model))
    whole = dense_gradient(model, task, task.train, position.module)
    rows = whole.T if whole.shape[0] != whole.shape[1] and family == "gpt2" else whole
    part = rows[position.start : position.start + position.out_features]
    left, size, right = torch.linalg.svd(part)
    captured = (unit.left.float().T @ part @ unit.right.float().T).norm()
    assert captured == pytest.approx(float(size[:3].norm()), rel=1e-3)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_gradients_support_holds_its_largest_entries(build, family):
    model, task = build(family, labels=2).eval(), make_task()
    model.config.pad_token_id = 1
    kind = make_kind("sparse_delta", {"smallest": 5, "steps": 2, "support": "gradient"})
    position = find(positions_of(model), "layers.1.attn.v")
    warm_head(model, task, task.train, 0, "fp32")
    attach_modules(model, [(position, kind, 12, 1)])
    calibrate(model, sample_losses(model, task, task.train, "fp32"))
    unit = attachment_of(model).slots[0].unit
    found = [g for (g,) in batch_gradients(model, task, task.train, [unit.values], "fp32")]
    detach(model)
    whole = dense_gradient(model, task, task.train, position.module)
    part = weight_at(position, model.base_model.get_submodule(position.module), whole)
    largest = part.abs().flatten().sort(descending=True, stable=True).indices[:12]
    assert torch.equal(unit.rows * position.in_features + unit.cols, largest.int())
    assert torch.allclose(sum(found), part[unit.rows, unit.cols], rtol=1e-4, atol=1e-7)


def test_no_loss_is_asked_for_where_nothing_aligns(build):
    model = build("bert", labels=2)

    def losses():
        pytest.fail("a loss was computed")
        yield

    calibrate(model, losses())
    position = find(positions_of(model), "layers.1.attn.v")
    attach_modules(model, [(position, make_kind("lora", {}), 1, 1)])
    calibrate(model, losses())
    assert not any(slot.kind.aligns for slot in attachment_of(model).slots)


def test_a_warm_head_fits_better_and_only_the_head_moves(build):
    model, task = build("bert", labels=2).eval(), make_task()

    def loss():
        with torch.no_grad():
            return float(
                sum(task.behaviour.loss(model, b, "fp32") for b in batches(task.train, 16, CPU))
            )

    before, start = {n: p.detach().clone() for n, p in backbone_parameters(model)}, loss()
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    warm_head(model, task, task.train, 0, "fp32")
    assert loss() < start
    assert all(torch.equal(p, before[n]) for n, p in backbone_parameters(model))
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert attachment_of(model) is None


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_a_brief_fine_tuning_tells_changes_that_lower_the_loss_and_leaves_the_model(build, family):
    model = build(family, labels=2).eval()
    task = make_task(end=model.config.eos_token_id if family == "t5" else None)
    model.config.pad_token_id = 1

    def loss():
        with torch.no_grad():
            return sum(float(found) for found in sample_losses(model, task, task.train, "fp32"))

    warm_head(model, task, task.train, 0, "fp32")
    weights = dict(model.named_parameters())
    before = {n: p.detach().clone() for n, p in weights.items()}
    flags, start = {n: p.requires_grad for n, p in weights.items()}, loss()
    positions = positions_of(model)
    hosts = list(dict.fromkeys(p.module for p in positions if p.role == "linear"))
    changes, head = brief_changes(model, task, hosts, briefly(20), 0)
    again, _ = brief_changes(model, task, hosts, briefly(20), 0)
    assert dict(model.named_parameters()) == weights  # the same objects
    assert all(torch.equal(p, before[n]) for n, p in weights.items())
    assert {n: p.requires_grad for n, p in weights.items()} == flags
    assert attachment_of(model) is None
    assert list(changes) == hosts
    assert all(torch.equal(changes[path], again[path]) for path in hosts)
    with torch.no_grad():
        for path in hosts:
            base_of(model).get_submodule(path).weight.add_(changes[path])
        without_head = loss()
        for name, parameter in head_parameters(model):
            parameter.copy_(head[name])
    assert loss() < without_head < start


@pytest.mark.parametrize("end", ["diverges", "cancelled"])
def test_a_brief_fine_tuning_that_ends_early_leaves_the_model(build, end):
    model, task = build("bert", labels=2).eval(), make_task()
    if end == "diverges":
        with torch.no_grad():
            model.bert.encoder.layer[0].intermediate.dense.weight[0, 0] = float("nan")
    before = dict(model.named_parameters())
    values = {n: p.detach().clone() for n, p in before.items()}

    def observe(phase, done, total, score=None):
        if end == "cancelled" and done == 3:
            raise Cancelled("enough")

    host = "encoder.layer.1.attention.self.query"
    error, words = {
        "diverges": (TrainingDiverged, "start_steps: 0"),
        "cancelled": (Cancelled, "enough"),
    }[end]
    with pytest.raises(error, match=words):
        brief_changes(model, task, [host], briefly(25), 0, observe)
    after = dict(model.named_parameters())
    assert after == before and attachment_of(model) is None
    assert all(torch.equal(p, values[n]) or "layer.0.inter" in n for n, p in after.items())
    assert all(p.grad is None for p in after.values())


def test_what_a_brief_fine_tuning_needs_may_be_too_much(build, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("sparsearch.search.training.warm_start.brief_changes", full)
    model = build("bert", labels=2).eval()
    aligning = [
        (find(positions_of(model), "layers.1.attn.v"), make_kind("spectral", {"block": 3}))
    ]
    with pytest.raises(MemoryError, match=r"start_steps: 0.*no room"):
        WarmStarts(model, make_task(), briefly(5)).get(0, aligning)


def test_no_direction_depends_on_what_else_aligns(build):
    model, task = build("bert", labels=2).eval(), make_task()
    spectral = make_kind("spectral", {"block": 3})
    delta = make_kind("sparse_delta", {"support": "gradient"})
    whole = aligning_at([spectral, delta], positions_of(model))
    part = [(p, k) for p, k in whole if k is spectral and p.name.endswith("attn.v")]
    alone = WarmStarts(model, task, briefly(5)).get(0, part)
    starts = WarmStarts(model, task, briefly(5))
    both = starts.get(0, whole)
    for key, basis in alone.bases.items():
        assert all(torch.equal(a, b) for a, b in zip(basis, both.bases[key], strict=True))
    assert starts.get(0, part) is both and starts.get(1, part) is not both


def test_units_take_the_directions_of_a_brief_fine_tuning(build):
    model, task = build("bert", labels=2).eval(), make_task()
    kind = make_kind("spectral", {"block": 3})
    position = find(positions_of(model), "layers.1.attn.v")
    by_gradient, by_change = (
        WarmStarts(model, task, briefly(steps)).get(0, [(position, kind)]) for steps in (0, 12)
    )
    assert all(torch.equal(by_change.head[n], p) for n, p in by_gradient.head.items())
    by_change.load_head(model)
    linears = [p.module for p in positions_of(model) if p.role == "linear"]
    changes, _ = brief_changes(model, task, linears, briefly(12), 0)
    change = changes[position.module]
    _, size, _ = torch.linalg.svd(change)
    left, right = by_change.bases[position.name, "spectral"]
    captured = (left[:, :3].float().T @ change @ right[:3].float().T).norm()
    assert captured == pytest.approx(float(size[:3].norm()), rel=1e-2)
    assert not torch.equal(left, by_gradient.bases[position.name, "spectral"][0])
    attach_modules(model, [(position, kind, 1, 1)])
    calibrate(model, iter(()), changes)  # no loss is asked for
    assert torch.equal(attachment_of(model).slots[0].unit.left, left[:, :3])
    with pytest.raises(StructureError, match=f"{position.module} is missing .there is"):
        calibrate(model, iter(()), {f"bert.{position.module}": change})
    with pytest.raises(StructureError, match="its weight"):
        calibrate(model, iter(()), {position.module: change[:1]})


def test_a_sample_is_equal_for_equal_seeds(build):
    task = make_task()
    rows = [sample_rows(task, seed, 8).inputs["input_ids"] for seed in (1, 1, 2)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert len(sample_rows(task, 0, 999)) == len(task.train)


@pytest.fixture
def supernet(build):
    torch.manual_seed(0)
    model, task = build("bert", labels=2).eval(), make_task()
    warm_head(model, task, task.train, 0, "fp32")
    return Supernet(model, build_space(model, kinds=KINDS), task.type, "fp32")


@pytest.mark.parametrize("score", ["l1", "l2", "step", "fisher"])
def test_scores_are_the_gradients_of_each_candidates_own_parameters(supernet, score):
    task, train = make_task(), TRAIN
    found = probe(supernet, task, ProbeConfig(score=score, rows=12), train, seed=0)
    rows = sample_rows(task, 0, 12)
    attachment = supernet.attachment
    expected = []
    for name, unit in attachment.units.items():
        parameters = dict(unit.named_parameters())
        total = {n: torch.zeros_like(p) for n, p in parameters.items()}
        for batch in batches(rows, 1 if score == "fisher" else 12, CPU):
            loss = task.behaviour.loss(supernet.model, batch, "fp32")
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for n, g in zip(parameters, gradients, strict=True):
                if g is not None:
                    total[n] += g.square() if score == "fisher" else g
        rate = train.kind_lr.get(name.rpartition(":")[2], train.lr)
        value = {
            n: {"l1": g.abs(), "l2": g.square(), "step": g.abs() * rate, "fisher": g}[score]
            for n, g in total.items()
        }
        if name.endswith(":lora"):  # rank unit i owns row i of A and column i of B
            expected += [value["A"][i].sum() + value["B"][:, i].sum() for i in range(2)]
        elif name.endswith(":spectral"):
            expected += [value["values"][i].sum() for i in range(2)]
        elif name.endswith(":sparse_delta"):  # supports of 4 and 12 entries
            expected += [value["values"][:4].sum(), value["values"][4:].sum()]
        else:
            expected.append(value["bias"].sum())
    assert torch.allclose(found, torch.stack(expected), rtol=1e-4, atol=1e-7)
    assert (found >= 0).all() and found.max() > 0


def test_the_weight_score_needs_steps_because_the_identity_has_no_weights(supernet):
    task = make_task()
    found = probe(supernet, task, ProbeConfig(score="weight", rows=32), TRAIN, seed=0)
    assert found.max() > 0
    moved = [u.bias for n, u in supernet.attachment.units.items() if n.endswith(":bitfit")]
    assert any(bool(b.abs().max() > 0) for b in moved)


@pytest.mark.parametrize("score", ["l1", "l2", "step", "fisher", "weight"])
def test_probe_is_a_strategy_and_repeats_exactly(build, score):
    def ranked():
        torch.manual_seed(0)
        model = build("bert", labels=2)
        search = SearchConfig(probe={"score": score, "rows": 16})
        space, starts = (
            build_space(model, kinds=KINDS),
            WarmStarts(model, make_task(), TrainConfig(precision="fp32")),
        )
        aligning = aligning_at(space.kinds.values(), space.positions)
        problem = RankingContext(
            model, space, make_task(), search, TRAIN, (), lambda: starts.get(4, aligning)
        )
        ranking = rank("probe", problem, Budget(max_trainable_params=100), seed=4)
        assert attachment_of(model) is None
        return ranking.scores

    assert ranked() == ranked()


def test_log_density_is_a_standard_start():
    start = log_density(torch.tensor([0.0, 2.0, 8.0]), torch.tensor([1, 2, 2]))
    assert start.argmax() == 2 and start.argmin() == 0
    assert float(start.mean()) == pytest.approx(0, abs=1e-6)
    assert float(start.std()) == pytest.approx(1, abs=1e-6)
