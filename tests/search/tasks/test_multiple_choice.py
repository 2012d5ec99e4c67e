"""Choices: how rows become tensors, and what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import ConfigError, DataError
from sparsearch.search.tasks.task import batches, load_task
from sparsearch.search.training.evaluate import evaluate, predict
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.workers.preflight import check_study
from tests.helpers.language_model import write_rows

ROW = {"c": "the film was", "e": ["good", "very bad", "a book"], "label": 1}
OTHER = {"c": "this is not so", "e": ["so", "sad", "fine"], "label": 0}
CPU = torch.device("cpu")


@pytest.fixture
def load(tmp_path, tiny_folder):
    def load(*rows, **settings):
        data = write_rows(
            tmp_path, dict.fromkeys(("train", "validation", "test"), rows or (ROW, OTHER))
        )
        section = {
            "type": "multiple-choice",
            "data": data,
            "context": "c",
            "choices": "e",
            **settings,
        }
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
        return load_task(TaskConfig.model_validate(section), tmp_path, tokenizer, 64)

    return load


@pytest.fixture
def model(tiny_folder):
    torch.manual_seed(0)
    return load_model(str(tiny_folder), num_labels=1, auto_model="AutoModelForMultipleChoice")


def test_each_choice_is_read_behind_its_context(load, tiny_folder):
    task, words = load(), AutoTokenizer.from_pretrained(tiny_folder).decode
    assert task.train.inputs["input_ids"].shape[:2] == (2, 3) and task.num_labels == 1
    assert task.train.labels.tolist() == [1, 0] and task.metric == "accuracy"
    assert words(task.train.inputs["input_ids"][0, 1]) == "[CLS] the film was [SEP] very bad [SEP]"
    assert task.train.inputs["token_type_ids"][0, 1].sum() == 3
    columns = {"c": "the film was", "a": "good", "b": "very bad", "label": "1"}
    other = load(columns, columns, choices=["a", "b"])
    assert other.train.inputs["input_ids"].shape[:2] == (2, 2) and other.train.labels[0] == 1


@torch.no_grad()
def test_batches_are_cut_to_their_longest_text_and_score_as_whole_rows(load, model):
    long = {**OTHER, "c": "this is not so " * 3}
    task = load(ROW, long, ROW, long)
    first, last = (batch["input_ids"].shape for batch in batches(task.train, 2, CPU))
    assert first[:2] == last[:2] == (2, 3) and first[2] == 8 < last[2]
    logits = model(**task.test.inputs).logits
    assert torch.allclose(predict(model, task.test), logits, atol=1e-5)
    right = (logits.argmax(-1) == task.test.labels).float().mean()
    assert evaluate(model, task, task.test, "fp32") == pytest.approx(float(right))
    (batch,) = batches(task.train, 4, CPU)
    expected = model(**task.train.inputs, labels=task.train.labels).loss
    assert torch.allclose(task.behaviour.loss(model, batch, "fp32"), expected, atol=1e-6)


def test_a_context_that_is_too_long_is_cut_and_a_choice_is_not(load, tiny_folder):
    task = load({**ROW, "c": "film " * 50}, OTHER, max_length=8)
    words = AutoTokenizer.from_pretrained(tiny_folder).decode
    assert (
        words(task.train.inputs["input_ids"][0, 1]) == "[CLS] film film film [SEP] very bad [SEP]"
    )


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"label": 3}, {}, "row 1: label 3 is no number of a choice, 0 to 2"),
        ({"label": -1}, {}, "row 1: label -1 is no number of a choice"),
        ({"label": True}, {}, "row 1: label True is no number of a choice"),
        ({"label": "good"}, {}, "row 1: label 'good' is no number of a choice"),
        ({"e": ["good", "bad"]}, {}, "row 1: 2 choices, row 0 has 3"),
        ({"e": ["good", "", "bad"]}, {}, "row 1: e holds no texts to choose from"),
        ({"e": "good"}, {}, "row 1: e holds no texts to choose from: 'good'"),
        (
            {"e": ["so " * 40] * 3},
            {"max_length": 16},
            "row 1: a choice has 40 tokens, and leaves nothing of 16",
        ),
        ({"c": 7}, {}, "column 'c' holds no text: 7"),
        ({}, {"choices": "none"}, "has no column 'none'"),
        ({}, {"choices": ["e", "none"]}, "has no column 'none'"),
    ],
)
def test_rows_that_give_no_choice_are_refused(load, row, settings, message):
    with pytest.raises(DataError, match=message) as caught:
        load(ROW, ROW | row, **settings)
    assert caught.value.hint


def test_a_strategy_that_explains_one_text_a_row_is_refused(study, tmp_path):
    data = write_rows(tmp_path, dict.fromkeys(("train", "validation", "test"), (ROW, OTHER)))
    study["task"] = {"type": "multiple-choice", "data": data, "context": "c", "choices": "e"}
    study["search"] = {"strategy": "linearised"}
    with pytest.raises(
        ConfigError, match="cannot take that of this task type apart: search with s3pet"
    ):
        check_study(study)
