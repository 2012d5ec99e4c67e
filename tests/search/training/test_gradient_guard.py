"""Training that sends no gradient to what it trains is refused by name; what may lack one is left alone."""

from __future__ import annotations

import pytest
import torch

from sparsearch.config.study import SearchConfig, TrainConfig
from sparsearch.errors import ModelStateError
from sparsearch.search.bilevel.search import BilevelSearch, SearchProblem
from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.gates.gates import Gates
from sparsearch.search.gates.targets import BudgetSchedule, Targets
from sparsearch.search.tasks.task import Split, Task
from sparsearch.search.training.gradient_guard import GradientGuard
from sparsearch.search.training.optimiser import learning_rates
from sparsearch.search.training.train import train
from sparsearch.spaces.attachment.attach import attach_modules
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.kinds import KINDS, make_kind
from sparsearch.spaces.space import build_space

ATTACHED = [name for name, kind in KINDS.items() if kind.role != "remove"]


def make_task(rows=16, end=None):
    ids = torch.randint(5, 60, (rows, 8), generator=torch.Generator().manual_seed(0))
    if end is not None:
        ids[:, -1] = end
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    split = Split(inputs, torch.full((rows,), 8), (ids[:, 1] > 30).long())
    return Task("toy", "classification", "accuracy", ("a", "b"), 8, split, split, split)


def block_gradients(model):
    """The output projection of the last attention passes no gradient on, as int8 activations do not."""
    linear = model.bert.encoder.layer[1].attention.output.dense
    linear.register_forward_pre_hook(lambda _, args: (args[0].detach(),))


def attached(build, family, *kinds):
    model = build(family, labels=2)
    units = [
        (p, kind, max(1, kind.sizes(p)[0]), 1)
        for kind in map(lambda name: make_kind(name, {}), kinds)
        for p in positions_of(model)
        if kind.accepts(p)
    ]
    attach_modules(model, units)
    return model


@pytest.mark.parametrize("epochs", [1, 30])
def test_parameters_that_training_cannot_reach_are_named(build, epochs):
    model = attached(build, "bert", "lora")
    block_gradients(model)
    config = TrainConfig(epochs=epochs, batch_size=8, precision="fp32")
    message = (
        r"the training sends no gradient to 6 attached parameters: layers\.1\.attn\.q:lora\.A, "
        r"layers\.1\.attn\.q:lora\.B, layers\.1\.attn\.k:lora\.A, \.\.\."
    )
    with pytest.raises(ModelStateError, match=message):
        train(model, make_task(), config, learning_rates(model, 1e-2, {}), seed=0)


@pytest.mark.parametrize("kind", ATTACHED)
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "deberta-v2"])
def test_every_kind_has_its_gradients_in_training(build, family, kind):
    model = attached(build, family, kind)
    task = make_task(end=model.config.eos_token_id if family == "t5" else None)
    config = TrainConfig(epochs=1, batch_size=8, precision="fp32")
    train(model, task, config, learning_rates(model, 1e-2, {}), seed=0)


def make_search(build, kinds, spoil=lambda model: None, **settings):
    model = build("bert", labels=2)
    space = build_space(model, kinds=kinds)
    supernet = Supernet(model, space, "classification", "fp32")
    spoil(model)
    gates = Gates(torch.tensor([float(c.params) for c in space.candidates]))
    config = SearchConfig(**{"steps": 4, "batch_size": 8} | settings)
    plain = TrainConfig(precision="fp32", batch_size=8)
    problem = SearchProblem(make_task(32), config, plain)
    return BilevelSearch(supernet, gates, problem, BudgetSchedule(Targets(300.0)), seed=0)


@pytest.mark.parametrize("settings", [{}, {"order": "second"}, {"bilevel": False}])
def test_parameters_that_a_search_cannot_reach_are_named(build, settings):
    search = make_search(build, {"lora": {"max_rank": 1}}, block_gradients, **settings)
    with pytest.raises(ModelStateError, match="the search sends no gradient to 6 attached"):
        search.run()


def test_the_scores_of_masks_need_no_gradient_in_a_search(build):
    model, task = build("bert", labels=2), make_task(8)
    space = build_space(model, kinds={"lora": {"max_rank": 1}, "weight_mask": {}})
    supernet = Supernet(model, space, "classification", "fp32")
    batch = {**task.train.inputs, "labels": task.train.labels}
    supernet.loss(batch, torch.full((len(space.candidates),), 0.5)).backward()
    parameters = {n: p for n, p in supernet.attachment.named_parameters() if p.requires_grad}
    assert any("weight_mask" in n for n, p in parameters.items() if p.grad is None)
    guard = GradientGuard(supernet.attachment, "search")
    guard.see(1, (p for p in parameters.values() if p.grad is not None))
    guard.look()


@pytest.mark.parametrize("settings", [{}, {"warmup": 0.0, "skip_below": 0.4, "steps": 22}])
def test_idle_units_of_a_search_need_no_gradient(build, settings):
    search = make_search(build, {"lora": {"max_rank": 1}, "bitfit": {}}, **settings)
    search.run()
    assert search.taken == settings.get("steps", 4)
