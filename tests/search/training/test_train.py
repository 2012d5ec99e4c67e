from __future__ import annotations

import pytest
import torch
from sklearn import metrics

from sparsearch.config.study import TrainConfig
from sparsearch.errors import SparsearchError, TrainingDiverged
from sparsearch.search.tasks.task import Split
from sparsearch.search.tasks.types.registry import find_task_type
from sparsearch.search.training.device import frozen_cast_once
from sparsearch.search.training.evaluate import evaluate, predict
from sparsearch.search.training.optimiser import learning_rates, linear_schedule
from sparsearch.search.training.train import train
from sparsearch.spaces.attachment.attach import attach_modules
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.parameters import backbone_parameters, positions_of
from sparsearch.spaces.compaction.merge import merge
from sparsearch.spaces.compaction.sparsity import measured_sparsity
from sparsearch.spaces.kinds import make_kind
from tests.helpers.training_task import make_task


def attached(build, labels=2):
    model = build("bert", labels=labels)
    kinds = [make_kind("lora", {}), make_kind("bitfit", {})]
    units = [(p, k, 1, 1) for k in kinds for p in positions_of(model) if k.accepts(p)]
    attach_modules(model, units)
    return model


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_learns_and_never_touches_the_backbone(build, kind, precision):
    task = make_task(kind=kind)
    model = attached(build, labels=task.num_labels)
    before = {n: p.detach().clone() for n, p in backbone_parameters(model)}
    storage = {n: p.data_ptr() for n, p in backbone_parameters(model)}
    start = evaluate(model, task, task.train, precision)
    config = TrainConfig(epochs=24, batch_size=8, precision=precision)
    result = train(model, task, config, learning_rates(model, 1e-2, {}), seed=0)
    assert result.score > start + 0.1
    assert result.score == max(result.history) == result.history[result.epoch - 1]
    assert evaluate(model, task, task.validation, precision) == pytest.approx(result.score)
    assert all(torch.equal(p, before[n]) for n, p in backbone_parameters(model))
    assert {n: p.data_ptr() for n, p in backbone_parameters(model)} == storage


def test_equal_seeds_train_to_equal_weights(build):
    def trained(seed):
        torch.manual_seed(0)
        model = attached(build)
        config = TrainConfig(epochs=1, batch_size=8, precision="fp32")
        train(model, make_task(), config, learning_rates(model, 1e-2, {}), seed)
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


@pytest.mark.parametrize(
    ("taken", "steps", "epochs"), [(0, 18, 3), (4, 14, 3), (6, 12, 2), (17, 1, 1)]
)
def test_steps_that_a_model_has_had_are_taken_off_the_first_epochs(build, taken, steps, epochs):
    told = []

    def observe(phase, done, total, score=None):
        if score is None:
            told.append((done, total))

    model, config = attached(build), TrainConfig(epochs=3, batch_size=8, precision="fp32")
    groups = learning_rates(model, 1e-2, {})
    result = train(model, make_task(), config, groups, 0, observe, taken=taken)
    assert told == [(i + 1, steps) for i in range(steps)]
    assert len(result.history) == epochs
    assert result.history[result.epoch - (3 - epochs) - 1] == result.score


def test_a_training_of_which_nothing_is_left_is_refused(build):
    model, config = attached(build), TrainConfig(epochs=3, batch_size=8)
    with pytest.raises(SparsearchError, match="start_steps takes 18 of all 18 steps"):
        train(model, make_task(), config, learning_rates(model, 1e-2, {}), 0, taken=18)


def test_each_kind_has_its_own_learning_rate(build):
    model = attached(build)
    groups = learning_rates(model, 0.5, {"lora": 0.1, "head": 0.3})
    sizes = {g["lr"]: sum(p.numel() for p in g["params"]) for g in groups}
    assert set(sizes) == {0.1, 0.5, 0.3}
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes[0.3] == 2 * 32 + 2


def test_divergence_is_an_error_with_advice(build):
    model = attached(build)
    with torch.no_grad():
        model.classifier.weight.fill_(float("inf"))
    config = TrainConfig(epochs=1, batch_size=8, precision="fp32")
    with pytest.raises(TrainingDiverged, match="NaN or infinity by step"):
        train(model, make_task(), config, learning_rates(model, 1e-2, {}), seed=0)


def test_schedule_rises_then_falls_to_zero():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = linear_schedule(optimizer, 10, 0.2)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])


def test_casting_once_gives_the_logits_of_autocast(build):
    model, task = attached(build), make_task()
    expected = predict(model, task.train, "bf16")
    with frozen_cast_once(model, "bf16"):
        assert model.base_model.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
        assert torch.equal(predict(model, task.train, "bf16"), expected)
    assert model.base_model.encoder.layer[0].output.dense.weight.dtype == torch.float32


@pytest.mark.parametrize("classes", [2, 4])
def test_metrics_are_scikit_learns(classes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, classes, generator=generator)
    labels = torch.randint(classes, (60,), generator=generator)
    guess = logits.argmax(-1)
    measure = find_task_type("classification").measure
    assert measure("accuracy", logits, labels) == metrics.accuracy_score(labels, guess)
    assert measure("matthews", logits, labels) == metrics.matthews_corrcoef(labels, guess)
    average = "binary" if classes == 2 else "macro"
    assert measure("f1", logits, labels) == metrics.f1_score(labels, guess, average=average)


def test_pearson():
    measure = find_task_type("regression").measure
    scores = torch.tensor([[1.0], [2.0], [4.0], [3.0]])
    assert measure("pearson", scores, torch.tensor([2.0, 4.0, 8.0, 6.0])) == pytest.approx(1.0)
    assert measure("pearson", torch.ones(4, 1), torch.tensor([2.0, 4.0, 8.0, 6.0])) == 0.0


def test_predictions_come_in_the_order_of_the_rows(build):
    model, ids = attached(build), make_task().train.inputs["input_ids"]
    lengths = torch.arange(48) % 7 + 2
    mask = (torch.arange(8)[None] < lengths[:, None]).long()
    uneven = Split({"input_ids": ids, "attention_mask": mask}, lengths, torch.zeros(48))
    with torch.no_grad():
        alone = [model(ids[i : i + 1, :n]).logits for i, n in enumerate(lengths.tolist())]
    assert torch.allclose(predict(model, uneven), torch.cat(alone), atol=1e-5)


def masked(build, every=2):
    model = build("bert", labels=2)
    kinds = [
        (make_kind("lora", {}), 1),
        (make_kind("weight_mask", {"bands": 4, "every": every}), 2),
    ]
    units = [(p, k, s, 1) for k, s in kinds for p in positions_of(model) if k.accepts(p)]
    attach_modules(model, units)
    return model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_an_epoch_with_the_final_masks_is_kept(build, precision, monkeypatch):
    """Of 2 epochs the first ends at half of the schedule, even if it scores best."""
    import sparsearch.search.training.train as module

    task, model = make_task(), masked(build)
    before = {n: p.detach().clone() for n, p in backbone_parameters(model)}
    dense = []

    def score(runner, *args):
        dense.append(max(measured_sparsity(model).values()) < 0.5)
        return 1.0 - len(dense) / 10

    monkeypatch.setattr(module, "evaluate", score)
    config = TrainConfig(epochs=2, batch_size=8, precision=precision)
    result = train(model, task, config, learning_rates(model, 1e-2, {}), seed=0)
    assert dense == [True, False] and result.history == (0.9, 0.8)
    assert (result.epoch, result.score) == (2, 0.8)
    assert set(measured_sparsity(model).values()) == {0.5}
    assert all(torch.equal(p, before[n]) for n, p in backbone_parameters(model))
    expected = predict(model, task.test)
    assert torch.allclose(predict(merge(model), task.test), expected, atol=1e-5)
    assert set(measured_sparsity(model).values()) == {0.5}


def test_masks_train_alike_from_equal_seeds_and_learn(build):
    def trained(seed):
        torch.manual_seed(0)
        model, task = masked(build), make_task()
        config = TrainConfig(epochs=12, batch_size=8, precision="fp32")
        result = train(model, task, config, learning_rates(model, 1e-2, {}), seed)
        assert result.epoch > 8
        return result.score, {n: t.clone() for n, t in attachment_of(model).state_dict().items()}

    score, first = trained(0)
    again, second = trained(0)
    assert score == again and all(torch.equal(t, second[n]) for n, t in first.items())
    assert score > 0.8
    moved = [t for n, t in first.items() if n.endswith((":weight_mask.R", ":weight_mask.B"))]
    assert all(t.abs().max() > 0 for t in moved)
