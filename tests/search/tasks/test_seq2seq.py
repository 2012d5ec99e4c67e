"""Sequence to sequence: what is read and learnt, the loss of transformers, and what is written."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import BackboneError, DataError
from sparsearch.search.tasks.task import batches, load_task
from sparsearch.search.tasks.types.language.generation import generate
from sparsearch.search.training.evaluate import evaluate
from sparsearch.spaces.backbone.identity import identify, same_fingerprints
from sparsearch.spaces.backbone.parameters import count_with_pooler, language_head_parameters
from sparsearch.spaces.coverage import find_unreached
from tests.helpers.language_model import write_rows
from tests.helpers.seq2seq import FAMILIES, ending_tokenizer, make_seq2seq

ROWS = [{"s": "ask the colour", "t": "red"}, {"s": "ask", "t": "is seven two"}]
JUDGED = {"s": "ask the colour", "all": ["is red", "red"]}
CPU = torch.device("cpu")


@pytest.fixture
def load(tmp_path):
    def load(rows=None, judged=None, **settings):
        given = dict.fromkeys(("train", "validation", "test"), rows or ROWS)
        if judged:
            given |= dict.fromkeys(("validation", "test"), judged)
        section = {
            "type": "seq2seq",
            "data": write_rows(tmp_path, given),
            "source": "s",
            "target": "t",
        }
        config = TaskConfig.model_validate(section | settings)
        return load_task(config, tmp_path, ending_tokenizer(), 24)

    return load


def words(ids):
    return ending_tokenizer().decode(ids)


def test_sources_are_read_and_targets_are_learnt_to_their_end(load):
    task = load()
    assert words(task.train.inputs["input_ids"][0]) == "ask the colour [END]"
    assert task.train.inputs["attention_mask"][1].tolist() == [1, 1, 0, 0]
    assert task.train.labels[0].tolist()[3:] == [-100, -100]
    assert words(task.train.labels[0][1:3]) == "red [END]" and task.train.labels[0, 0] == -100


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mbart"])
def test_loss_and_gradients_are_those_of_transformers(family, tied, load):
    model, task = make_seq2seq(family, tied=tied), load()
    task.behaviour.check_model(model)
    (batch,) = batches(task.train, 2, CPU)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    expected = model(**inputs, labels=batch["labels"][:, 1:].contiguous()).loss
    found = task.behaviour.loss(model, batch, "fp32")
    assert torch.allclose(found, expected, atol=1e-6)
    weights = list(model.parameters())
    for mine, theirs in zip(
        *(torch.autograd.grad(loss, weights, allow_unused=True) for loss in (found, expected)),
        strict=True,
    ):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.allclose(mine, theirs, atol=1e-5)
    assert evaluate(model, task, task.test, "fp32") == pytest.approx(-expected.item(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_padded_batch_with_a_cache_writes_what_each_row_does_alone(family, load):
    model = make_seq2seq(family)
    for parameter in model.parameters():  # random models repeat themselves
        parameter.mul_(8 if parameter.dim() > 1 else 1)
    task = load(metric="bleu", max_new_tokens=5)
    expected = []
    for prompt in task.behaviour.prompts(task.test):
        ids = torch.tensor([[0]])
        while ids.shape[1] < 6 and ids[0, -1] != 3:
            out = model(input_ids=prompt[None], decoder_input_ids=ids, use_cache=False)
            ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], dim=1)
        expected.append(ending_tokenizer().decode(ids[0], skip_special_tokens=True).strip())
    prompts = task.behaviour.prompts(task.test)
    assert generate(task, model, task.test, prompts, "fp32") == expected


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_generator_and_a_classifier_of_one_checkpoint_have_one_backbone(family, tmp_path):
    model = make_seq2seq(family, tied=False)
    model.save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    one, other = identify(model), identify(classifier)
    assert (one.params, one.config_hash) == (other.params, other.config_hash)
    assert same_fingerprints(one.weight_fingerprint, other.weight_fingerprint)
    assert count_with_pooler(model) == one.params and find_unreached(model) == ()
    assert [name for name, _ in language_head_parameters(model)] == ["lm_head.weight"]


def test_references_stand_where_targets_do_in_rows_that_are_judged(load):
    task = load(judged=[JUDGED, JUDGED], references="all", metric="rouge-l", max_new_tokens=4)
    assert task.train.references == {} and words(task.test.labels[0][1:]) == "is red [END]"
    assert task.test.references["references"] == [["is red", "red"]] * 2


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"s": "ask", "t": ""}, {}, "row 1: the target is empty"),
        ({"s": "ask", "t": 7}, {}, "column 't' holds no text: 7"),
        ({"s": "ask"}, {"target": "none"}, "has no column 'none'"),
        ({"s": "the " * 30, "t": "red"}, {}, "row 1: 31 tokens, more than 24"),
        ({"s": "ask", "t": "red " * 30}, {}, "row 1: 31 tokens, more than 24"),
        ({"s": "ask", "t": "red"}, {"metric": "bleu"}, "task.max_new_tokens 64 more"),
    ],
)
def test_rows_that_cannot_be_learnt_are_refused(load, row, settings, message):
    with pytest.raises(DataError, match=message) as caught:
        load([ROWS[0], row], **settings)
    assert caught.value.hint


def test_a_model_whose_decoder_has_no_start_is_refused(load):
    model = make_seq2seq("t5")
    model.config.decoder_start_token_id = None
    with pytest.raises(BackboneError, match="does not say with which token its decoder starts"):
        load().behaviour.check_rows(model, load())
