"""What a new head begins with."""

from dataclasses import replace

import torch

from sparsearch.search.training.warm_start import new_head
from sparsearch.spaces.backbone.parameters import head_parameters
from tests.helpers.training_task import make_task


def moved(task, by):
    return replace(task, train=replace(task.train, labels=task.train.labels + by))


def test_a_regression_begins_at_the_mean_target(build):
    task = moved(make_task(kind="regression"), 100.0)
    model = build("bert", labels=1)
    new_head(model, task, 0)
    assert model.classifier.bias.item() == task.train.labels.mean().item() > 50
    ids = task.train.inputs["input_ids"]
    with torch.no_grad():
        answers = model(input_ids=ids).logits.squeeze(-1)
    assert (answers - task.train.labels.mean()).abs().max() < 1


def test_other_vectors_and_other_tasks_begin_at_zero(build):
    for family, kind in (("roberta", "regression"), ("bert", "classification")):
        task = make_task(kind=kind)
        model = build(family, labels=task.num_labels)
        new_head(model, task, 0)
        vectors = [p for _, p in head_parameters(model) if p.dim() == 1]
        if kind == "regression":
            assert vectors[-1].item() == task.train.labels.mean().item()
            vectors = vectors[:-1]
        assert all((p == 0).all() for p in vectors)


def test_an_output_layer_without_a_bias_has_none(build):
    task = moved(make_task(kind="regression"), 100.0)
    model = build("llama", labels=1)
    new_head(model, task, 0)
    assert [p.dim() for _, p in head_parameters(model)] == [2]
