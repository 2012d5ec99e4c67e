"""What language models write for their metrics: the same in a padded batch, with a cache and with modules attached."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import BackboneError, DataError
from sparsearch.search.tasks.task import Split, Task, load_task
from sparsearch.search.tasks.types.language.generation import generate
from sparsearch.search.tasks.types.language.text_metrics import text_score
from sparsearch.search.training.evaluate import evaluate
from sparsearch.spaces.attachment.attach import attach_modules, detach
from sparsearch.spaces.backbone.loading import auto_class
from sparsearch.spaces.kinds.registry import make_kind
from tests.helpers.families import CONFIGS
from tests.helpers.kind_table import units_of
from tests.helpers.language_model import make_language_model, make_tokenizer, write_rows


def is_decoder(family):
    try:
        return bool(auto_class(family, CONFIGS[family](), "AutoModelForCausalLM"))
    except BackboneError:
        return False


DECODERS = [family for family in CONFIGS if is_decoder(family)]
PROMPTS = [torch.tensor(row) for row in ([6], [9, 6, 12, 13], [6, 12, 14, 7, 8, 9, 6])]
NEW = 5


class Plain:
    """A tokenizer of numbers: what a model writes is compared token by token."""

    pad_token_id, eos_token_id, all_special_ids = 0, 3, (0, 3)

    def batch_decode(self, ids, skip_special_tokens):
        return [
            " ".join(str(i) for i in row if i not in self.all_special_ids) for row in ids.tolist()
        ]


def written_by(model, prompts, precision="fp32"):
    labels = torch.full((len(prompts), 1), -100)
    split = Split({}, labels[:, 0], labels, references={"max_new_tokens": NEW})
    task = Task("toy", "causal-lm", "bleu", (), 32, split, split, split, tokenizer=Plain())
    return generate(task, model, split, prompts, precision)


@torch.no_grad()
def token_by_token(model, prompt):
    """The likeliest tokens, without padding and without a cache."""
    ids, found, ends = prompt[None], [], {3, model.config.eos_token_id}
    while len(found) < NEW and ends.isdisjoint(found):
        token = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
        found.append(int(token))
        ids = torch.cat([ids, token[None, None]], dim=1)
    return " ".join(str(i) for i in found if i not in Plain.all_special_ids)


@pytest.mark.parametrize("family", DECODERS)
def test_a_padded_batch_with_a_cache_writes_what_each_row_does_alone(family, randomise):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # random models repeat themselves
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    kinds = (("lora", {}), ("lnfit", {}), ("ia3", {}), ("adapter", {"bottleneck": 3}))
    attach_modules(model, [u for kind in kinds for u in units_of(model, make_kind(*kind))])
    randomise(model)
    expected = [token_by_token(model, prompt) for prompt in PROMPTS]
    assert written_by(model, PROMPTS) == expected
    detach(model)
    assert written_by(model, PROMPTS) != expected


def test_a_models_own_settings_of_generation_change_nothing_and_stay():
    model = make_language_model("llama")
    expected = written_by(model, PROMPTS)
    own = GenerationConfig(num_beams=3, repetition_penalty=9.0, min_new_tokens=4)
    model.generation_config = own
    assert written_by(model, PROMPTS) == expected
    assert model.generation_config is own


def test_writing_ends_where_the_model_says_or_what_is_learnt_does():
    model = make_language_model("gpt2")
    first = token_by_token(model, PROMPTS[0]).split()[0]
    model.generation_config.eos_token_id = int(first)
    assert written_by(model, PROMPTS)[0] == first


@pytest.mark.parametrize(
    ("metric", "written", "references", "expected"),
    [
        ("bleu", ["the red fox is here now"], [["a dog", "the red fox is here now"]], 1.0),
        ("bleu", ["a b c d e f", "x"], [["a b c d e g"], ["y", "x"]], 0.771),
        ("bleu", ["", ""], [["a"], ["b"]], 0.0),
        ("rouge-l", ["the red fox", ""], [["no", "the fox"], ["a"]], 0.4),
    ],
)
def test_texts_are_judged_against_the_references_of_their_row(
    metric, written, references, expected
):
    assert text_score(metric, written, references) == pytest.approx(expected, abs=0.02)


QUESTION = {"q": "ask the colour", "a": "red"}
JUDGED = {"q": "ask the colour", "all": ["is red", "red"]}
PAIR = {
    "prompt": "q",
    "completion": "a",
    "references": "all",
    "metric": "bleu",
    "max_new_tokens": 4,
}


@pytest.fixture
def load(tmp_path):
    def load(judged=JUDGED, train=QUESTION, other=JUDGED, **settings):
        rows = {"train": [train] * 2, "validation": [judged, other], "test": [judged, other]}
        config = {"type": "causal-lm", "data": write_rows(tmp_path, rows), **PAIR, **settings}
        config = TaskConfig.model_validate({k: v for k, v in config.items() if v is not None})
        return load_task(config, tmp_path, make_tokenizer(), 24)

    return load


def test_references_stand_where_completions_do_in_rows_that_are_judged(load):
    task = load()
    assert task.train.references == {}
    assert task.test.references == {"references": [["is red", "red"]] * 2, "max_new_tokens": 4}
    words = make_tokenizer().convert_ids_to_tokens
    assert words(task.train.inputs["input_ids"][0].tolist()) == [
        "ask",
        "the",
        "colour",
        "red",
        "[END]",
    ]
    assert words(task.test.inputs["input_ids"][0].tolist())[3:] == ["is", "red", "[END]"]
    assert [words(p.tolist()) for p in task.behaviour.prompts(task.test)] == [
        ["ask", "the", "colour"]
    ] * 2
    assert load(metric="loss", max_new_tokens=None).test.references == {}


def test_the_last_turn_of_a_conversation_is_what_is_judged(load):
    chat = [
        {"role": r, "content": t}
        for r, t in [("user", "ask"), ("assistant", "no"), ("user", "two")]
    ]
    row = {
        "m": [
            *chat,
            {"role": "assistant", "content": "is red"},
            {"role": "user", "content": "ask"},
        ]
    }
    task = load(row, row, row, prompt=None, completion=None, references=None, messages="m")
    assert task.test.references["references"] == [["is red"]] * 2
    (prompt, _) = task.behaviour.prompts(task.test)
    assert make_tokenizer().decode(prompt).endswith("<user> two [END] <assistant>")


def test_scores_are_those_of_what_the_model_writes(load):
    task, model = load(metric="rouge-l"), make_language_model("llama")
    written = generate(task, model, task.test, task.behaviour.prompts(task.test), "fp32")
    found = evaluate(model, task, task.test, "fp32")
    assert found == text_score("rouge-l", written, task.test.references["references"])
    task.test.references["references"][:] = [["no", text or "yes"] for text in written]
    assert evaluate(model, task, task.test, "fp32") == float(any(written))


@pytest.mark.parametrize(
    ("judged", "settings", "message"),
    [
        ({"all": []}, {}, "row 0: column 'all' holds no list of texts"),
        ({"all": ["red", " "]}, {}, "row 0: column 'all' holds no list of texts"),
        ({"all": "red"}, {}, "row 0: column 'all' holds no list of texts: 'red'"),
        (
            {"all": ["красный"]},
            {"metric": "rouge-l"},
            "rouge-l counts words of the letters a to z",
        ),
        ({}, {"max_new_tokens": 22}, "a prompt has 3 tokens, and task.max_new_tokens 22 more"),
        ({"q": ""}, {}, "row 0: the prompt is empty"),
        ({}, {"references": "none"}, "split 'validation' has no column 'none'"),
        ({}, {"references": None}, "split 'validation' has no column 'a'"),
    ],
)
def test_rows_that_cannot_be_judged_are_refused(load, judged, settings, message):
    with pytest.raises(DataError, match=message) as caught:
        load(JUDGED | judged, **settings)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("metric", "package"), [("bleu", "sacrebleu"), ("rouge-l", "rouge-score")]
)
def test_a_missing_package_is_named_with_its_extra(load, metric, package, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda n, *a: None if n in ("sacrebleu", "rouge_score") else there(n, *a),
    )
    with pytest.raises(
        DataError, match=f"computed by {package}, which is not installed"
    ) as caught:
        load(metric=metric)
    assert caught.value.hint == "pip install 'sparsearch[generation]'"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"references": "all"}, "references go with prompt and completion"),
        ({"metric": "bleu"}, "judges what is written after a prompt"),
        ({"max_new_tokens": 8}, "nothing is written for metric 'loss'"),
    ],
)
def test_settings_that_write_nothing_are_refused(settings, message):
    given = {"type": "causal-lm", "text": "t", "data": {"path": "x"}, **settings}
    with pytest.raises(ValueError, match=message):
        TaskConfig.model_validate(given)
