from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from sparsearch.config.study import TrainConfig
from sparsearch.search.tasks.task import Split, Task, batches
from sparsearch.search.training.evaluate import evaluate, predict
from sparsearch.search.training.optimiser import learning_rates
from sparsearch.search.training.prefix import (
    StoredPrefix,
    Upper,
    enter_above,
    first_layer,
    store_inputs,
)
from sparsearch.search.training.train import train
from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.attachment.attachment import attachment_of
from sparsearch.spaces.backbone.parameters import layers_of, positions_of
from sparsearch.spaces.backbone.tokens import count_tokens
from sparsearch.spaces.families.position import find
from sparsearch.spaces.kinds import make_kind
from tests.conftest import inputs_of
from tests.helpers.families import VARIANTS, task_of

NEVER_ENTERED = (
    *("bart", "clip", "mbart", "mt5", "siglip", "whisper"),
    *(
        "albert",
        "gemma2",
        "gemma3_text",
        "gemma4-a4b",
        "gemma4-e2b",
        "gpt_oss",
        "modernbert",
        "qwen3_next",
    ),
)
"""Several stacks; shared layers; layers of several types, which the model tells by their place in the list."""
SINGLE = ["bert", "deberta-v2", "distilbert", "gpt2", "llama", "opt", "roberta"]


def make_task(rows=40) -> Task:
    """Rows of different lengths, padded with 1 (RoBERTa's padding)."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (rows, 9), generator=generator)
    lengths = torch.randint(3, 10, (rows,), generator=generator)
    mask = (torch.arange(9)[None] < lengths[:, None]).long()
    ids = torch.where(mask.bool(), ids, 1)
    split = Split({"input_ids": ids, "attention_mask": mask}, lengths, (ids[:, 1] > 30).long())
    return Task("toy", "classification", "accuracy", ("a", "b"), 9, split, split, split)


def make_image_task(model, rows=20) -> Task:
    """Random images."""
    inputs = inputs_of(model, rows)
    lengths = torch.full((rows,), count_tokens(model, inputs))
    split = Split(inputs, lengths, torch.arange(rows) % 2, token_inputs=False)
    return Task("toy", "image-classification", "accuracy", ("a", "b"), 5, split, split, split)


def attached_at(build, family, pattern, kind="lora", options=None):
    torch.manual_seed(0)
    model = build(family)
    model.config.pad_token_id = 1
    positions = positions_of(model)
    attach_modules(model, [(find(positions, pattern), make_kind(kind, options or {}), 1, 1)])
    return model


def hooks_of(model):
    """How many hooks each module has, by name."""
    return {
        name: (len(module._forward_pre_hooks), len(module._forward_hooks))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("family", SINGLE)
def test_training_above_a_stored_prefix_equals_training_through_it(build, family):
    task, histories, weights = make_task(), [], []
    for limit in (0, 2**30):
        model = attached_at(build, family, "layers.1.attn.o")
        config = TrainConfig(epochs=3, batch_size=8, precision="fp32", cache_bytes=limit)
        hooks = hooks_of(model)
        result = train(model, task, config, learning_rates(model, 1e-2, {}), seed=3)
        assert hooks_of(model) == hooks
        histories.append(result.history)
        weights.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
    assert histories[0] == histories[1]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_head_that_is_cut_below_is_part_of_what_is_stored(build, family):
    task, results = make_task(), []
    for limit in (0, 2**30):
        torch.manual_seed(0)
        model = build(family)
        model.config.pad_token_id = 1
        positions = positions_of(model)
        heads = find(positions, "layers.0.attn.heads")
        lora = (find(positions, "layers.1.attn.o"), make_kind("lora", {}), 1, 1)
        attached = attach_modules(model, [(heads, make_kind("heads", {}), 1, heads.units), lora])
        whole = predict(model, task.train)
        attached.slots[0].unit.cut([1])
        assert not torch.allclose(predict(model, task.train), whole, atol=1e-4)
        assert first_layer(model) == 1
        config = TrainConfig(epochs=2, batch_size=8, precision="fp32", cache_bytes=limit)
        train(model, task, config, learning_rates(model, 1e-2, {}), seed=3)
        results.append(predict(model, task.train))
    assert torch.allclose(*results, atol=1e-5)


@pytest.mark.parametrize("family", [*SINGLE, *(v for v in VARIANTS if v != "granite")])
def test_a_stored_layer_gives_the_logits_of_the_whole_model(build, family):
    if family in NEVER_ENTERED:
        assert layers_of(build(family)) is None
        return
    images = task_of(family) == "image-classification"
    tower = "vision." if images and "-image" in family else ""
    model = attached_at(build, family, f"{tower}layers.1.attn.o").eval()
    task = make_image_task(model) if images else make_task()
    stored = store_inputs(model, 1, task.train, "fp32")
    upper = Upper(model, 1)
    for batch in batches(stored, 16, torch.device("cpu")):
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "rows")}
        hidden = inputs.pop("hidden")
        with torch.no_grad():
            expected, found = model(**inputs).logits, upper(hidden, **inputs).logits
        assert torch.allclose(found, expected, atol=1e-6)
    assert stored.stored.tokens.shape[0] == int(task.train.lengths.sum())
    assert evaluate(upper, task, stored, "fp32") == evaluate(model, task, task.train, "fp32")


def test_where_the_lowest_trained_thing_is_decides(build):
    for name, kind, expected in [
        ("layers.0.attn.q", "lora", 0),
        ("layers.1.attn.q", "lora", 1),
        ("embeddings.norm", "bitfit", 0),
    ]:
        assert first_layer(attached_at(build, "bert", name, kind)) == expected
    scoreless = {"rank": 0, "structured": False}  # masks change in training all the same
    masked = attached_at(build, "bert", "layers.0.attn.q", "weight_mask", scoreless)
    assert not list(attachment_of(masked).units.parameters()) and first_layer(masked) == 0
    model = build("bert")
    attach_modules(model, [])
    assert first_layer(model) == 1
    detach(model)
    assert first_layer(model) == 0  # nothing attached: everything may train
    assert first_layer(attached_at(build, "gpt2", "norm", "lnfit")) == 1
    assert first_layer(attached_at(build, "t5", "decoder.layers.1.attn.q")) == 0


def test_memory_limit_turns_it_off(build):
    model, task = attached_at(build, "bert", "layers.1.attn.q").eval(), make_task()
    tokens = 2 * int(task.train.lengths.sum())
    needed = tokens * model.config.hidden_size * 4
    assert enter_above(model, task, "fp32", needed - 1) == (model, task)
    upper, cut = enter_above(model, task, "fp32", needed)
    assert isinstance(upper, Upper) and cut.train.stored is not None and cut.test.stored is None
    assert dataclasses.replace(cut.train, stored=None).labels is task.train.labels


def test_the_next_training_above_the_same_layer_stores_nothing(build, monkeypatch):
    model, task = attached_at(build, "bert", "layers.1.attn.q").eval(), make_task()
    prefix, limit = StoredPrefix(), 2**30
    _, first = enter_above(model, task, "fp32", limit, prefix)
    monkeypatch.setattr("sparsearch.search.training.prefix.store_inputs", None)
    detach(model)
    position, lora = find(positions_of(model), "layers.1.ffn.up"), make_kind("lora", {})
    attach_modules(model, [(position, lora, 2, 1)])
    assert enter_above(model, task, "fp32", limit, prefix)[1] is first
    for other in (
        (model, dataclasses.replace(task), "fp32"),
        (model, task, "bf16"),
        (attached_at(build, "bert", "layers.1.attn.q").eval(), task, "fp32"),
    ):
        with pytest.raises(TypeError):  # it would store anew
            enter_above(*other, limit, copy.copy(prefix))


def test_training_above_a_kept_prefix_equals_training_above_a_new_one(build):
    model, task, prefix = build("bert"), make_task(), StoredPrefix()
    config, position = TrainConfig(epochs=2, batch_size=8, precision="fp32"), "layers.1.attn.o"
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        lora = (find(positions_of(model), position), make_kind("lora", {}), 1, 1)
        attach_modules(model, [lora], train_head=False)
        groups = learning_rates(model, 1e-2, {})
        result = train(model, task, config, groups, seed=3, prefix=prefix)
        found.append([result.history, *(p.tolist() for p in groups[0]["params"])])
        detach(model)
    assert found[0] == found[1]


def test_where_nothing_is_skipped_nothing_stays(build, monkeypatch):
    model, task, prefix = build("bert").eval(), make_task(), StoredPrefix()
    lora = make_kind("lora", {})
    for name, limit in (("layers.0.attn.q", 2**30), ("layers.1.attn.q", 1)):
        attach_modules(model, [(find(positions_of(model), "layers.1.attn.q"), lora, 1, 1)])
        enter_above(model, task, "fp32", 2**30, prefix)
        detach(model)
        attach_modules(model, [(find(positions_of(model), name), lora, 1, 1)])
        assert enter_above(model, task, "fp32", limit, prefix) == (model, task)
        detach(model)
        attach_modules(model, [(find(positions_of(model), "layers.1.attn.q"), lora, 1, 1)])
        with monkeypatch.context() as patch, pytest.raises(TypeError):
            patch.setattr("sparsearch.search.training.prefix.store_inputs", None)
            enter_above(model, task, "fp32", 2**30, prefix)
        detach(model)


def test_what_a_cut_below_changes_is_not_kept(build):
    model, task = build("bert").eval(), make_task()
    positions, prefix = positions_of(model), StoredPrefix()
    lora = (find(positions, "layers.1.attn.o"), make_kind("lora", {}), 1, 1)
    heads = find(positions, "layers.0.attn.heads")
    attach_modules(model, [lora])
    plain = enter_above(model, task, "fp32", 2**30, prefix)[1]
    detach(model)
    attached = attach_modules(model, [(heads, make_kind("heads", {}), 1, heads.units), lora])
    attached.slots[0].unit.cut([1])
    cut = enter_above(model, task, "fp32", 2**30, prefix)[1]
    assert not torch.allclose(cut.train.stored.tokens, plain.train.stored.tokens, atol=1e-4)
    detach(model)
    attach_modules(model, [lora])
    again = enter_above(model, task, "fp32", 2**30, prefix)[1]
    assert torch.equal(again.train.stored.tokens, plain.train.stored.tokens)
