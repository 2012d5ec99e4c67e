"""Packed texts: as few rows as fit, and for each text the numbers that it has alone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import BackboneError
from sparsearch.search.tasks.task import batches, load_task
from sparsearch.search.tasks.types.language.packing import check_packing
from sparsearch.search.training.prefix import enter_above
from sparsearch.spaces.attachment.attach import attach_modules
from tests.helpers.families import CONFIGS as FAMILIES
from tests.helpers.language_model import CONFIGS, make_language_model, make_tokenizer, write_rows

TEXTS = ["ask the colour red blue two", "is seven", "ask", "the number two is no", "yes no yes"]
CPU = torch.device("cpu")


@pytest.fixture
def load(tmp_path):
    def load(**settings):
        rows = [{"t": text} for text in TEXTS]
        data = write_rows(tmp_path, dict.fromkeys(("train", "validation", "test"), rows))
        section = {"type": "causal-lm", "data": data, "text": "t", "max_length": 12, **settings}
        return load_task(TaskConfig.model_validate(section), tmp_path, make_tokenizer(), 24)

    return load


def texts_of(split):
    """Each text's tokens, where they stand."""
    for row, positions in enumerate(split.inputs["position_ids"]):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(positions)]
        for start, end in zip(starts, starts[1:], strict=False):
            end = min(end, int(split.lengths[row]))
            if start < end:
                yield row, slice(start, end)


def test_texts_share_rows_and_stay_whole(load):
    task, apart = load(packing=True), load()
    assert len(task.train) == 2 and len(apart.train) == len(task.validation) == 5
    assert task.train.lengths.sum() == apart.train.lengths.sum() and task.train.lengths.max() <= 12
    found = [
        make_tokenizer().decode(task.train.inputs["input_ids"][r][s])
        for r, s in texts_of(task.train)
    ]
    assert sorted(found) == sorted(f"{text} [END]" for text in TEXTS)
    for row, place in texts_of(task.train):
        labels, ids = task.train.labels[row][place], task.train.inputs["input_ids"][row][place]
        assert labels[0] == -100 and torch.equal(labels[1:], ids[1:])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_each_text_has_the_logits_that_it_has_alone(family, attention, load):
    model, split = make_language_model(family), load(packing=True).train
    model.set_attn_implementation(attention)
    check_packing(model)
    for parameter in model.parameters():
        parameter.mul_(5 if parameter.dim() > 1 else 1)
    packed = model(**split.inputs, use_cache=False).logits
    others = 0
    for row, place in texts_of(split):
        alone = model(split.inputs["input_ids"][row][None, place], use_cache=False).logits[0]
        assert torch.allclose(packed[row][place], alone, atol=1e-5)
        others += place.start > 0
    assert others == 3


@pytest.mark.parametrize("family", CONFIGS)
def test_loss_and_gradients_are_those_of_texts_apart(family, load):
    model, losses, gradients = make_language_model(family), [], []
    for task in (load(), load(packing=True)):
        task.behaviour.check_rows(model, task)
        (batch,) = batches(task.train, 5, CPU)
        loss = task.behaviour.loss(model, batch, "fp32")
        losses.append(loss.item())
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@torch.no_grad()
def test_packed_rows_go_through_a_stored_prefix(family, load):
    model, task = make_language_model(family), load(packing=True)
    attach_modules(model, [])
    expected = task.behaviour.split_loss(model, task.train, "fp32")
    runner, stored = enter_above(model, task, "fp32", 2**20)
    assert runner is not model
    assert task.behaviour.split_loss(runner, stored.train, "fp32") == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("family", ["bloom", "falcon", "falcon-rw", "opt"])
def test_a_family_that_mixes_packed_texts_is_refused(family, load):
    model = AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    with pytest.raises(
        BackboneError, match="lets the texts of one row attend to each other"
    ) as caught:
        load(packing=True).behaviour.check_rows(model, load(packing=True))
    assert "leave task.packing out" in caught.value.hint
