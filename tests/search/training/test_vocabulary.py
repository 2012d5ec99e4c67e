from __future__ import annotations

import contextlib

import pytest
import torch

from sparsearch.config.study import TrainConfig
from sparsearch.search.training import train as training
from sparsearch.search.training.embedding_rows import only_rows_read
from sparsearch.search.training.optimiser import learning_rates
from sparsearch.search.training.train import train
from tests.helpers.training_task import make_task

FAMILIES = ["bert", "roberta", "distilbert", "gpt2", "llama", "opt", "deberta-v2", "t5"]


@pytest.mark.parametrize("family", FAMILIES)
def test_training_only_the_rows_read_changes_no_number(build, family, monkeypatch):
    def trained():
        torch.manual_seed(0)
        model = build(family, labels=2)
        model.requires_grad_(True)
        config = TrainConfig(epochs=2, batch_size=8, precision="fp32")
        task = make_task()
        task.train.inputs["input_ids"][:, -1] = 1  # T5 wants an end of sequence
        result = train(model, task, config, learning_rates(model, 1e-3, {}), seed=0)
        return model, result.history

    small, history = trained()
    monkeypatch.setattr(
        training, "only_rows_read", lambda model, task, groups: contextlib.nullcontext(groups)
    )
    whole, expected = trained()
    assert history == expected
    for (name, a), (_, b) in zip(small.named_parameters(), whole.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6, msg=name)


def test_the_optimiser_sees_a_table_of_the_rows_read(build):
    model = build("bert", labels=2)
    model.requires_grad_(True)
    embedding = model.get_input_embeddings()
    whole, padding = embedding.weight, embedding.padding_idx
    before = whole.detach().clone()
    task = make_task()
    read = {*task.train.inputs["input_ids"].flatten().tolist(), padding}
    with only_rows_read(model, task, learning_rates(model, 1e-3, {})) as groups:
        sizes = [len(p) for group in groups for p in group["params"] if p is embedding.weight]
        assert sizes == [len(read)] and len(read) < len(whole)
        embedding.weight.data += 1.0
    assert embedding.weight is whole and embedding.padding_idx == padding
    moved = (whole.detach() - before).abs().amax(1).nonzero().flatten().tolist()
    assert set(moved) == read


def test_tied_or_frozen_embeddings_are_left_alone(build):
    frozen, task = build("bert", labels=2), make_task()
    frozen.get_input_embeddings().weight.requires_grad_(False)
    tied = build("bert", labels=2)
    tied.register_module("decoder", torch.nn.Linear(4, 4, bias=False))
    tied.decoder.weight = tied.get_input_embeddings().weight
    tied.requires_grad_(True)
    for model in (frozen, tied):
        weight = model.get_input_embeddings().weight
        with only_rows_read(model, task, []):
            assert model.get_input_embeddings().weight is weight
