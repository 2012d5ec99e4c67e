"""Tags of words: which tokens carry them, how entities are counted, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import DataError
from sparsearch.search.tasks.task import load_task
from sparsearch.search.training.evaluate import evaluate
from tests.helpers.language_model import write_rows

TAGS = ["B-place", "I-place", "O"]
ROW = {"words": ["in", "newyork", "city", "."], "tags": ["O", "B-place", "I-place", "O"]}


@pytest.fixture(scope="module")
def tokenizer():
    """It cuts newyork into two tokens, and has none for a blank of no width."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "in", "new", "##york", "city", "."]
    pieces = Tokenizer(models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="[PAD]", unk_token="[UNK]")


@pytest.fixture
def load(tmp_path, tokenizer):
    def load(*rows, most_tokens=16, tokenizer=tokenizer, **settings):
        splits = dict.fromkeys(("train", "validation", "test"), [*rows, ROW])
        data = write_rows(tmp_path, splits | {"train": [*rows, ROW] if rows else [ROW, ROW]})
        config = {"type": "token-classification", "data": data, "tokens": "words", "tags": "tags"}
        config = TaskConfig.model_validate(config | settings)
        return load_task(config, tmp_path, tokenizer, most_tokens)

    return load


def test_the_first_token_of_a_word_carries_its_tag(load):
    task = load({"words": ["."], "tags": ["O"]})
    assert task.classes == tuple(TAGS) and task.metric == "entity-f1"
    assert task.train.labels.tolist() == [
        [-100, 2, -100, -100, -100, -100, -100],
        [-100, 2, 0, -100, 1, 2, -100],
    ]
    assert task.train.lengths.tolist() == [3, 7]
    assert task.summary.classes["O"] == (3, 3, 3)


def test_words_without_a_token_are_left_out_and_said(load):
    task = load({"words": ["in", " ", "city"], "tags": ["O", "B-place", "I-place"]})
    assert task.train.labels[0].tolist() == [-100, 2, 1, -100, -100, -100, -100]
    assert "3 words have no token" in " ".join(task.warnings)


class Guesser(torch.nn.Module):
    """Gives each token the class that stands at its place."""

    def __init__(self, guesses):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.guesses = torch.tensor(guesses)
        self.config = type("Config", (), {"_attn_implementation": "eager"})

    def forward(self, input_ids, attention_mask):
        logits = torch.nn.functional.one_hot(self.guesses[:, : input_ids.shape[1]], 3).float()
        return type("Output", (), {"logits": logits})


@pytest.mark.parametrize(
    ("guess", "score"),
    [
        ([2, 2, 0, 2, 1, 2, 2], 1.0),
        ([2, 2, 0, 1, 1, 2, 2], 1.0),  # what a word's other tokens say is not asked
        ([2, 2, 0, 2, 2, 2, 2], 0.0),  # half of an entity is none
        ([2, 0, 0, 2, 1, 2, 2], 2 / 3),  # one of two guesses is right, one of one is found
        ([2, 2, 2, 2, 2, 2, 2], 0.0),
    ],
)
def test_an_entity_counts_if_all_of_it_is_right(load, guess, score):
    task = load()
    assert evaluate(Guesser([guess]), task, task.test, "fp32") == pytest.approx(score)


def test_the_loss_is_the_mean_over_words(load):
    task = load({"words": ["."], "tags": ["O"]})
    model = Guesser([[2] * 7, [2] * 7])
    wrong, right = (
        float(torch.logsumexp(torch.tensor([0.0, 0.0, 1.0]), 0) - hit) for hit in (0, 1)
    )
    expected = (3 * right + 2 * wrong) / 5
    assert task.behaviour.split_loss(model, task.test, "fp32") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"words": "in city", "tags": ["O"]}, {}, "row 0: column 'words' holds no list of words"),
        ({"words": [], "tags": []}, {}, "row 0: column 'words' holds no list of words"),
        ({"words": ["in"], "tags": ["O", "O"]}, {}, "row 0: 1 words, but 2 tags"),
        ({"words": ["in"], "tags": ["place"]}, {}, "row 0: 'place' is no word, or no tag"),
        (ROW, {"labels": ["O", "B-place"]}, "tag 'I-place' is none of O, B-place"),
        (ROW, {"max_length": 6}, "7 tokens, more than 6"),
        (ROW, {"label": "tags"}, None),
    ],
)
def test_rows_that_cannot_be_used_are_refused(load, row, settings, message):
    if message is None:
        with pytest.raises(ValueError, match="label is no key of type 'token-classification'"):
            load(row, **settings)
        return
    with pytest.raises(DataError, match=message) as caught:
        load(row, **settings)
    assert caught.value.hint


def test_a_split_without_an_entity_is_refused(tmp_path, tokenizer):
    plain = {"words": ["in"], "tags": ["O"]}
    data = write_rows(tmp_path, {"train": [ROW, ROW], "validation": [plain], "test": [ROW]})
    config = {"type": "token-classification", "data": data, "tokens": "words", "tags": "tags"}
    with pytest.raises(DataError, match="'validation'.*names no entity, where entity-f1 has no"):
        load_task(TaskConfig.model_validate(config), tmp_path, tokenizer)
