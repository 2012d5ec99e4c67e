"""Rows of language models: which tokens are read, which are learnt, and what is refused."""

from __future__ import annotations

import pytest

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import DataError
from sparsearch.search.tasks.task import load_task
from tests.helpers.language_model import make_tokenizer, write_rows

USER, ASSISTANT = "user", "assistant"


@pytest.fixture
def load(tmp_path):
    def load(row, tokenizer=None, most_tokens=24, **settings):
        other = {k: v for k, v in row.items()}
        data = write_rows(tmp_path, {s: [row, other] for s in ("train", "validation", "test")})
        config = TaskConfig.model_validate({"type": "causal-lm", "data": data, **settings})
        return load_task(config, tmp_path, tokenizer or make_tokenizer(), most_tokens)

    return load


def read_and_learnt(task):
    """Each token of the first row; learnt ones after a plus."""
    words = make_tokenizer().convert_ids_to_tokens(task.train.inputs["input_ids"][0].tolist())
    labels = task.train.labels[0].tolist()
    ids = task.train.inputs["input_ids"][0].tolist()
    assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))
    return " ".join(f"+{w}" if label >= 0 else w for w, label in zip(words, labels, strict=True))


@pytest.mark.parametrize(
    ("begins", "expected"),
    [(False, "ask the colour +is +red +[END]"), (True, "[BEGIN] ask the colour +is +red +[END]")],
)
def test_completions_are_learnt_and_prompts_are_not(load, begins, expected):
    row = {"question": "ask the colour", "answer": "is red"}
    task = load(row, make_tokenizer(begins=begins), prompt="question", completion="answer")
    assert read_and_learnt(task) == expected
    assert task.metric == "loss" and task.classes == ()


def test_a_row_ends_where_its_tokens_do_even_where_the_end_token_pads(tmp_path):
    rows = [{"t": "red"}, {"t": "the number is two"}]
    data = write_rows(tmp_path, dict.fromkeys(("train", "validation", "test"), rows))
    config = TaskConfig.model_validate({"type": "causal-lm", "data": data, "text": "t"})
    split = load_task(config, tmp_path, make_tokenizer(pad_token="[END]")).train
    assert split.inputs["input_ids"].tolist() == [[7, 3, 3, 3, 3], [12, 14, 11, 9, 3]]
    assert split.inputs["attention_mask"].sum(1).tolist() == split.lengths.tolist() == [2, 5]
    assert split.labels[0].tolist() == [7, 3, -100, -100, -100]


def test_the_turns_of_the_assistant_are_learnt(load):
    turns = [(USER, "ask colour"), (ASSISTANT, "red"), (USER, "two"), (ASSISTANT, "yes no")]
    row = {"chat": [{"role": role, "content": text} for role, text in turns]}
    assert read_and_learnt(load(row, messages="chat")) == (
        "<user> ask colour [END] <assistant> +red +[END] <user> two [END] <assistant> +yes +no +[END]"
    )


def test_columns_of_lists_are_read_from_parquet(tmp_path):
    import datasets

    rows = [[{"role": role, "content": "red"} for role in (USER, ASSISTANT)]] * 2
    datasets.Dataset.from_dict({"chat": rows}).to_parquet(tmp_path / "x.parquet")
    files = dict.fromkeys(("train", "validation", "test"), "x.parquet")
    data = {"path": "parquet", "data_files": files}
    config = TaskConfig.model_validate({"type": "causal-lm", "data": data, "messages": "chat"})
    task = load_task(config, tmp_path, make_tokenizer())
    assert read_and_learnt(task) == "<user> red [END] <assistant> +red +[END]"


PAIR = {"prompt": "p", "completion": "c"}
CHAT = {"messages": "m"}
LONG = {"p": "the " * 20, "c": "red " * 9}


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"p": "ask", "c": ""}, PAIR, "row 0: the completion is empty.*2 such rows"),
        ({"p": "ask", "c": 7}, PAIR, "column 'c' holds no text: 7"),
        ({"t": ""}, {"text": "t"}, "every row of split 'train' has an empty text"),
        (LONG, PAIR | {"max_length": 12}, "30 tokens, more than 12"),
        (LONG, PAIR, "30 tokens, more than 24"),
        ({"m": "hello"}, CHAT, "no conversation: 'hello'"),
        ({"m": [{"role": "user"}]}, CHAT, "no conversation"),
        ({"m": [{"role": "user", "content": "red"}]}, CHAT, "no message has the role 'assistant'"),
    ],
)
def test_rows_that_cannot_be_learnt_are_refused(load, row, settings, message):
    with pytest.raises(DataError, match=message) as caught:
        load(row, **settings)
    assert caught.value.hint
    if "more than 12" in message:
        assert "task.max_length: 30" in caught.value.hint
    if "more than 24" in message:
        assert "the model takes no more than 24 tokens" in caught.value.hint


LAST_ALONE = "{% for m in messages %}{{ m.content if loop.last else 'no' }} {% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the model's tokenizer has no chat template"),
        (LAST_ALONE, "writes message 1 in another way once others follow"),
        ("{{ raise_exception('system first') }}", "refuses the conversation: system first"),
    ],
)
def test_chat_templates_that_do_not_say_what_is_learnt_are_refused(load, template, message):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    turns = [(USER, "ask"), (ASSISTANT, "red"), (USER, "two"), (ASSISTANT, "yes")]
    row = {"m": [{"role": role, "content": text} for role, text in turns]}
    with pytest.raises(DataError, match=message):
        load(row, tokenizer, **CHAT)
