"""The loss of language models: equal to transformers' own, and without logits that nobody reads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, Gemma2Config, GraniteConfig

from sparsearch.config.tasks.types import score_name
from sparsearch.errors import BackboneError
from sparsearch.search.tasks.task import Split, Task
from sparsearch.search.tasks.types.token_rows import IGNORED
from sparsearch.search.training.device import frozen_cast_once
from sparsearch.search.training.evaluate import evaluate
from sparsearch.search.training.language_head import check_head, token_loss
from sparsearch.search.training.prefix import enter_above
from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.backbone.identity import same_fingerprints, weight_fingerprint
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.backbone.parameters import head_parameters, language_head_parameters
from tests.helpers.language_model import CONFIGS, VOCAB, make_language_model

SIZES = {
    "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 16, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(params=CONFIGS)
def model(request):
    return make_language_model(request.param)


@pytest.fixture
def batch():
    ids = torch.randint(4, VOCAB, (3, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[:, :4] = IGNORED
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "rows": torch.arange(3)}


def task_of(batch):
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    split = Split(inputs, batch["attention_mask"].sum(1), batch["labels"], token_labels=True)
    return Task("toy", "causal-lm", "loss", (), 8, split, split, split)


@pytest.mark.parametrize("most_logits", [2**26, 4 * VOCAB])
def test_loss_and_gradients_are_those_of_transformers(model, batch, most_logits):
    weights = [p for p in model.parameters() if p.requires_grad]
    inputs = {k: v for k, v in batch.items() if k != "rows"}
    expected = model(**inputs).loss
    total, count = token_loss(model, batch, "fp32", most_logits)
    assert count == 4 + 1 + 4
    assert torch.allclose(total / count, expected, atol=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(total / count, weights),
        torch.autograd.grad(expected, weights),
        strict=True,
    ):
        assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("most_logits", [2**26, 4 * VOCAB, 20])
@pytest.mark.parametrize("factor", [None, 0.5])
def test_a_frozen_head_gives_the_same_gradients_slice_by_slice(model, batch, most_logits, factor):
    """At most as many logits as are allowed; also where the family bends them (soft cap)."""
    config = model.config.get_text_config()
    config.final_logit_softcapping = factor
    trained = [p for n, p in model.named_parameters() if "embed" not in n and "lm_head" not in n]
    trained = [p for p in trained if p is not model.get_output_embeddings().weight]
    expected = torch.autograd.grad(token_loss(model, batch, "fp32")[0], trained)
    for parameter in model.get_output_embeddings().parameters():
        parameter.requires_grad_(False)
    seen = []

    def see(*args):
        seen.append(linear(*args))
        return seen[-1]

    linear, torch.nn.functional.linear = torch.nn.functional.linear, see
    try:
        total, count = token_loss(model, batch, "fp32", most_logits)
    finally:
        torch.nn.functional.linear = linear
    logits = [out for out in seen if out.shape[0] == count]
    assert sum(out.numel() for out in logits) == (1 + (most_logits < 9 * VOCAB)) * count * VOCAB
    assert max(out.numel() for out in logits) <= most_logits
    for mine, theirs in zip(torch.autograd.grad(3 * total, trained), expected, strict=True):
        assert torch.allclose(mine, 3 * theirs, atol=1e-5)


def test_the_head_runs_on_learnt_tokens_alone_in_chunks(model, batch):
    seen = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: seen.append(output.numel() // VOCAB))
    token_loss(model, batch, "fp32", 4 * VOCAB)
    assert seen == [4, 4, 1]


def test_scores_are_the_loss_of_all_tokens_with_the_sign_turned(model, batch):
    task = task_of(batch)
    total, count = token_loss(model, batch, "fp32")
    loss = total.item() / count
    assert evaluate(model, task, task.test, "fp32") == pytest.approx(-loss)
    perplexity = evaluate(model, replace(task, metric="perplexity"), task.test, "fp32")
    assert perplexity == pytest.approx(-torch.tensor(loss).exp().item(), rel=1e-5)
    assert score_name(task.metric) == "neg_loss"


def test_a_language_head_is_no_task_head(model):
    assert list(head_parameters(model)) == []
    names = [name for name, _ in language_head_parameters(model)]
    assert names == ([] if model.config.tie_word_embeddings else ["lm_head.weight"])
    attach_modules(model, [])
    assert not any(p.requires_grad for p in model.parameters())
    detach(model)


def test_frozen_weights_in_bf16_give_the_numbers_of_autocast(model, batch):
    attach_modules(model, [])
    expected, _ = token_loss(model, batch, "bf16")
    with frozen_cast_once(model, "bf16"):
        found, _ = token_loss(model, batch, "bf16")
        assert model.get_input_embeddings().weight.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("model", ["gpt2", "llama"], indirect=True)
def test_stored_inputs_of_a_layer_give_the_same_loss(model, batch):
    attach_modules(model, [])
    expected, _ = token_loss(model, batch, "fp32")
    runner, task = enter_above(model, task_of(batch), "fp32", 2**20)
    assert runner is not model and task.train.stored is not None
    hidden = task.train.stored.batch(batch["rows"], 8)
    found, _ = token_loss(runner, batch | {"hidden": hidden}, "fp32")
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SIZES, final_logit_softcapping=0.5),
        GraniteConfig(**SIZES, logits_scaling=7.0),
    ],
    ids=lambda config: config.model_type,
)
def test_what_a_family_does_with_its_logits_is_done(config, batch):
    model = AutoModelForCausalLM.from_config(config).eval()
    check_head(model)
    inputs = {k: v for k, v in batch.items() if k != "rows"}
    total, count = token_loss(model, batch, "fp32")
    assert torch.allclose(total / count, model(**inputs).loss, atol=1e-5)


def test_an_unknown_language_head_is_refused(model):
    plain = model.forward

    def forward(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = 2 * output.logits
        return output

    model.forward = forward
    with pytest.raises(BackboneError, match="in a way that is not known here"):
        check_head(model)


def test_a_checkpoint_without_its_language_head_is_refused(tmp_path):
    AutoModel.from_config(CONFIGS["llama"]()).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="the first is lm_head.weight"):
        load_model(str(tmp_path), auto_model="AutoModelForCausalLM")


def test_a_language_head_of_its_own_is_a_part_of_the_identity(tmp_path):
    model = make_language_model("llama")
    whole = weight_fingerprint(model)
    model.save_pretrained(tmp_path)
    classifier = load_model(str(tmp_path))
    assert same_fingerprints(weight_fingerprint(classifier), whole)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1.0
    assert not same_fingerprints(weight_fingerprint(model), whole)
    assert same_fingerprints(weight_fingerprint(classifier), weight_fingerprint(model))
