"""Answers in texts: windows, spans, SQuAD's rules, and what is refused."""

from __future__ import annotations

import pytest
import torch

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import DataError
from sparsearch.search.tasks.task import load_task
from sparsearch.search.tasks.types.answers import answer_score
from sparsearch.search.training.evaluate import evaluate
from tests.helpers.language_model import make_tokenizer, write_rows

CONTEXT = "the colour is red the number is seven yes no"


def row(answer, context=CONTEXT, start=None):
    start = context.index(answer) if start is None else start
    answers = {"text": [answer], "answer_start": [start]}
    return {"question": "ask number", "context": context, "answers": answers}


@pytest.fixture
def load(tmp_path):
    def load(*rows, tokenizer=None, **settings):
        data = write_rows(tmp_path, dict.fromkeys(("train", "validation", "test"), list(rows)))
        columns = {name: name for name in ("question", "context", "answers")}
        config = {"type": "question-answering", "data": data, **columns, **settings}
        config = TaskConfig.model_validate(config)
        return load_task(config, tmp_path, tokenizer or make_tokenizer(), 24)

    return load


def test_answers_are_spans_of_tokens(load):
    task = load(row("red"), row("number is seven"))
    assert task.train.labels.tolist() == [[5, 5], [7, 9]]
    assert task.metric == "f1" and task.num_labels == 2
    assert task.train.references == {}
    assert task.test.references["contexts"] == [CONTEXT] * 2


def test_long_contexts_are_read_in_windows_that_overlap(load):
    task = load(row("red"), row("seven"), max_length=8)
    split = task.test
    assert split.references["question"] == [0, 0, 1, 1]
    words = make_tokenizer().convert_ids_to_tokens(split.inputs["input_ids"][1].tolist())
    assert words == ["ask", "number", "the", "number", "is", "seven", "yes", "no"]
    for (start, end), number, ids in zip(
        split.labels.tolist(), split.references["question"], split.inputs["input_ids"], strict=True
    ):
        found = make_tokenizer().decode(ids[start : end + 1])
        assert (start, end) == (0, 0) or found == ("red", "seven")[number]
    assert (split.labels != 0).any(dim=1).reshape(2, 2).any(dim=1).all()


class Pointer(torch.nn.Module):
    """Points to the last token of one word, and with less to one before."""

    def __init__(self, word, other):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.words = [make_tokenizer().convert_tokens_to_ids(w) for w in (word, other)]
        self.config = type("Config", (), {"_attn_implementation": "eager"})

    def forward(self, input_ids, attention_mask):
        hit, other = (input_ids == word for word in self.words)
        ends = 2.0 * hit.float() + other.float()
        return type("Output", (), {"start_logits": ends, "end_logits": ends})


@pytest.mark.parametrize("length", [24, 8])
@pytest.mark.parametrize(
    ("metric", "word", "score"),
    [("f1", "seven", 0.5), ("exact-match", "seven", 0.5), ("f1", "number", 0.25)],
)
def test_scores_are_of_the_best_span_of_all_windows(load, metric, word, score, length):
    task = load(row("seven"), row("is red the number"), metric=metric, max_length=length)
    found = evaluate(Pointer(word, "blue"), task, task.test, "fp32")
    assert found == pytest.approx(score)


@pytest.mark.parametrize(
    ("found", "answers", "f1", "exact"),
    [
        ("The Red, number", ["red number"], 1.0, 1.0),
        ("red", ["red number", "two"], 2 / 3, 0.0),
        ("", ["red"], 0.0, 0.0),
        ("red red", ["red"], 2 / 3, 0.0),
    ],
)
def test_answers_are_judged_by_squads_rules(found, answers, f1, exact):
    assert answer_score("f1", found, answers) == pytest.approx(f1)
    assert answer_score("exact-match", found, answers) == exact


@pytest.mark.parametrize(
    ("changed", "settings", "message"),
    [
        ({"answers": "red"}, {}, "row 0: no answers: 'red'"),
        ({"answers": {"text": [], "answer_start": []}}, {}, "row 0: there is no answer"),
        ({"answers": {"text": ["red"], "answer_start": [3]}}, {}, "'red' does not stand at 3"),
        ({"question": 3}, {}, "column 'question' holds no text: 3"),
        ({"question": "ask " * 10}, {"max_length": 12}, "the question takes 10 of 12 tokens"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(load, changed, settings, message):
    with pytest.raises(DataError, match=message) as caught:
        load(row("red") | changed, row("red"), **settings)
    assert caught.value.hint
