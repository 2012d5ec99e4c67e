"""Recomputed layers: the same gradients, no dropout that was off, and the model as it was afterwards."""

from __future__ import annotations

import copy

import pytest
import torch

from sparsearch.config.study import SearchConfig, TrainConfig
from sparsearch.errors import BackboneError
from sparsearch.search.bilevel.search import BilevelSearch, SearchProblem
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.gates.gates import Gates
from sparsearch.search.gates.targets import BudgetSchedule, Targets
from sparsearch.search.training.optimiser import learning_rates
from sparsearch.search.training.recomputing import prepared
from sparsearch.search.training.train import train
from sparsearch.spaces.attachment.attach import attach_modules
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.kinds import make_kind
from sparsearch.spaces.space import build_space
from tests.helpers.kind_table import TABLE, units_of
from tests.helpers.odd_family import OddConfig, OddForSequenceClassification
from tests.helpers.training_task import make_task


def mixed(build, family):
    """Every kind everywhere, away from the identity."""
    model = build(family, labels=2)
    kinds = [make_kind(name, dict(options)) for name, options in dict(TABLE).items()]
    attachment = attach_modules(model, [unit for kind in kinds for unit in units_of(model, kind)])
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    attachment.advance(0, 10)
    return model


def state(model):
    return [{n: v for n, v in vars(m).items() if n[0] != "_"} for m in model.modules()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "opt"])
def test_gradients_are_the_same_and_layers_run_twice(build, family, precision):
    model, task = mixed(build, family), make_task(8)
    position = next(
        p for p in build_space(build(family), preset="s3pet-m").positions if p.layer == 0
    )
    ran = []
    host = model.base_model.get_submodule(position.module)
    host.register_forward_hook(lambda *args: ran.append(1))
    batch = {**task.train.inputs, "labels": task.train.labels}
    found = []
    for recompute in (False, True):
        before, ran[:] = state(model), []
        with prepared(model, precision, recompute):
            task.behaviour.loss(model, batch, precision).backward()
            assert len(ran) == (2 if recompute else 1)
        assert state(model) == before
        found.append([p.grad.clone() for p in attachment_of(model).parameters()])
        model.zero_grad()
    one, other = (torch.cat([g.flatten() for g in gradients]) for gradients in found)
    assert one.abs().max() > 0
    assert torch.allclose(one, other, atol=1e-6 if precision == "fp32" else 1e-3)


@pytest.mark.parametrize("order", ["first", "second"])
def test_a_search_takes_the_same_steps(build, order):
    """The gates of a pass hold where its layers run again, though others are set by then."""
    alphas = []
    for recompute in (False, True):
        model = build("bert", labels=2)
        space = build_space(model, kinds={"lora": {"max_rank": 2}, "adapter": {"parallel": True}})
        supernet = Supernet(model, space, "classification", "fp32")
        gates = Gates(torch.tensor([c.params for c in space.candidates]))
        settings = SearchConfig(steps=3, batch_size=8, order=order)
        problem = SearchProblem(make_task(), settings, TrainConfig(checkpointing=recompute))
        schedule = BudgetSchedule(Targets(0.3 * space.trainable_params))
        alphas.append(BilevelSearch(supernet, gates, problem, schedule, seed=0).run())
    assert torch.allclose(*alphas, atol=1e-5) and alphas[0].abs().max() > 0.05


@pytest.mark.parametrize("dropout", [False, True])
def test_training_takes_the_same_steps(build, dropout):
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = mixed(build, "opt")
        config = TrainConfig(
            epochs=1, batch_size=16, precision="fp32", checkpointing=recompute, dropout=dropout
        )
        train(model, make_task(), config, learning_rates(model, 1e-2, {}), seed=0)
        results.append(torch.cat([p.flatten() for p in attachment_of(model).parameters()]))
    assert torch.allclose(*results, atol=1e-5)


def test_a_model_without_such_layers_is_refused():
    model = OddForSequenceClassification(OddConfig())
    with (
        pytest.raises(BackboneError, match="no layer of a OddFor") as error,
        prepared(model, "fp32", recompute=True),
    ):
        pass
    assert "train.checkpointing: false" in error.value.hint
    with prepared(copy.deepcopy(model), "fp32", recompute=False):
        pass
