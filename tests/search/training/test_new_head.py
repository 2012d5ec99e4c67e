"""What a new head begins with."""

from dataclasses import replace

import pytest
import torch

from sparsearch.search.training.warm_start import new_head
from sparsearch.spaces.backbone.parameters import head_parameters
from tests.helpers.families import CONFIGS, task_of
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
        vectors = [p for _, p in head_parameters(model) if p.dim() == 1]  # neither has a norm
        if kind == "regression":
            assert vectors[-1].item() == task.train.labels.mean().item()
            vectors = vectors[:-1]
        assert all((p == 0).all() for p in vectors)


def test_an_output_layer_without_a_bias_has_none(build):
    task = moved(make_task(kind="regression"), 100.0)
    model = build("llama", labels=1)
    new_head(model, task, 0)
    assert [p.dim() for _, p in head_parameters(model)] == [2]


@pytest.mark.parametrize("family", [n for n in CONFIGS if task_of(n) == "classification"])
def test_answers_of_a_new_head_depend_on_the_row(build, family):
    """A gain of zero in a norm of the head would make all rows alike, and stop every gradient below it."""
    task = make_task(kind="classification")
    model = build(family, labels=task.num_labels)
    new_head(model, task, 0)
    ids = task.train.inputs["input_ids"][:8].clone()
    if model.config.is_encoder_decoder:
        ids[:, -1] = model.config.eos_token_id  # whose state the head reads
    with torch.no_grad():
        answers = model(input_ids=ids).logits
    assert (answers.std(0) > 1e-4).all()
