"""Studies of tags, and of several classes a row, from their rows to exports that load elsewhere."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForTokenClassification, pipeline

from sparsearch.errors import ConfigError, ExportError
from sparsearch.results.export.export import export
from sparsearch.results.store.store import Store
from sparsearch.search.tasks.types.language.text_metrics import text_score
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.compaction.checkpoint import load_checkpoint
from sparsearch.workers.study import run
from tests.helpers.language_model import make_tokenizer, prompts, save_language_model, write_rows
from tests.helpers.seq2seq import ending_tokenizer, save_seq2seq

PLAIN, MOODS = ["the", "film", "was", "so"], ["good", "fine", "bad", "sad"]


def sentence(stream):
    words = [stream.choice(PLAIN) for _ in range(3)] + [stream.choice(MOODS)] * stream.choice(
        [1, 2]
    )
    tags = [*["O"] * 3, "B-mood", "I-mood"]
    return {"words": words, "tags": tags[: len(words)]}


def run_study(folder, model, make_row, baselines, train=(), **task):
    """The best trial of a small study, its weights, and all trials."""
    stream, rows = random.Random(0), {"train": 64, "validation": 24, "test": 24}
    splits = {split: [make_row(stream) for _ in range(n)] for split, n in rows.items()}
    study = {
        "name": "small",
        "model": {"path": str(model)},
        "task": {"data": write_rows(folder, splits), "max_length": 16, **task},
        "space": {"kinds": {"lora": {"max_rank": 2}, "lnfit": {}}},
        "budgets": {"max_trainable_params": [400]},
        "search": {"steps": 4, "batch_size": 8},
        "train": {"epochs": 2, "batch_size": 8, "precision": "fp32", **dict(train)},
        "baselines": baselines,
    }
    url = f"sqlite:///{folder / 'study.db'}"
    run(study, url)
    with Store.open(url, create=False) as store:
        best = store.best()
        return best, store.weights("small", best.trial), store.trials("small")


@pytest.fixture(scope="module")
def done(tiny_folder, tmp_path_factory):
    """Of tags."""
    return run_study(
        tmp_path_factory.mktemp("tags"),
        tiny_folder,
        sentence,
        ["random", "probe", "head", "full"],
        type="token-classification",
        tokens="words",
        tags="tags",
    )


def test_every_strategy_learns_to_tag(done):
    best, _, trials = done
    assert {t.state for t in trials} == {"ok"} and len(trials) == 5
    assert best.metric == "entity-f1" and best.score > 0.7
    assert best.head_params == 3 * 32 + 3


@torch.no_grad()
def test_exports_give_the_trained_logits(done, tiny_folder, tmp_path, monkeypatch):
    import peft
    from transformers import AutoTokenizer

    best, weights, _ = done
    ids = torch.tensor([[2, 15, 4, 4, 3]])
    for to in ("spec", "peft"):
        export(best, weights, to, tmp_path / to)
    export(best, weights, "checkpoint", tmp_path / "checkpoint", also=["torch"])
    config = AutoConfig.from_pretrained(tmp_path / "spec" / "task_config.json")
    assert config.id2label == {0: "B-mood", 1: "I-mood", 2: "O"}
    base = AutoModelForTokenClassification.from_pretrained(tiny_folder, config=config)
    expected = attach(base, tmp_path / "spec").eval()(ids).logits
    assert expected.shape == (1, 5, 3)
    base = AutoModelForTokenClassification.from_pretrained(tiny_folder, config=config)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    assert type(adapted) is peft.PeftModelForTokenClassification
    assert torch.allclose(adapted(input_ids=ids).logits, expected, atol=1e-5)
    merged = load_checkpoint(tmp_path / "checkpoint")
    assert torch.allclose(merged(ids).logits, expected, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # else this pipeline does
    tag = pipeline("token-classification", model=merged, tokenizer=tokenizer)
    assert [t["word"] for t in tag("the film was sad") if t["entity"] == "B-mood"] == ["sad"]


def about(stream):
    """A text, and which of two words are in it."""
    subjects = [word for word in ("film", "book") if stream.random() < 0.5]
    return {"text": " ".join(["the", *subjects, "was", "so"]), "label": subjects}


def answered(stream):
    """Which word of a text is a mood?"""
    before, after = ([stream.choice(PLAIN) for _ in range(n)] for n in (3, 2))
    mood, start = stream.choice(MOODS), len(" ".join(before)) + 1
    return {
        "question": "is it",
        "context": " ".join([*before, mood, *after]),
        "answers": {"text": [mood], "answer_start": [start]},
    }


@pytest.mark.parametrize(
    ("make_row", "task", "problem"),
    [
        (about, {"type": "multi-label", "text": ["text"]}, "multi_label_classification"),
        (
            answered,
            {"type": "question-answering"}
            | {name: name for name in ("question", "context", "answers")},
            None,
        ),
    ],
    ids=["multi-label", "question-answering"],
)
def test_studies_learn_and_their_exports_load(make_row, task, problem, tiny_folder, tmp_path):
    best, weights, trials = run_study(tmp_path, tiny_folder, make_row, ["head"], **task)
    assert {t.state for t in trials} == {"ok"}
    assert best.head_params == 32 * 2 + 2 and best.score > 0.5
    for to in ("peft", "checkpoint"):
        assert export(best, weights, to, tmp_path / to).max_difference < 1e-5
    config = AutoConfig.from_pretrained(tmp_path / "peft" / "task_config.json")
    assert (config.problem_type, config.num_labels) == (problem, 2)
    text = (tmp_path / "peft" / "README.md").read_text()
    assert ("Give a pipeline this model" in text) == (task["type"] == "multi-label")


def test_a_study_takes_the_lowest_of_a_metric_of_its_own(tiny_folder, tmp_path):
    wrong = {"metric": "tests.helpers.metrics:wrong", "better": "lower"}
    best, _, trials = run_study(
        tmp_path, tiny_folder, about, ["head"], type="multi-label", text=["text"], **wrong
    )
    assert {t.state for t in trials} == {"ok"} and best.metric == "neg_tests.helpers.metrics:wrong"
    assert best.score == max(t.score for t in trials if t.strategy != "head")
    assert -24 < best.score <= 0 and best.score == int(best.score)


def test_a_study_is_judged_by_what_its_models_write(tmp_path):
    """Trained on completions, judged by lists of references: of the embeddings, any row may be read."""
    rows = iter(prompts(112, 0))

    def judged(stream):
        row = next(rows)
        return row | {"right": [row["answer"], row["answer"].split()[-1]]}

    model = save_language_model("llama", tmp_path / "model")
    task = {"type": "causal-lm", "metric": "rouge-l", "max_new_tokens": 4, "references": "right"}
    task |= {"prompt": "question", "completion": "answer"}
    train = {"epochs": 4, "full_lr": 0.01}
    best, weights, trials = run_study(tmp_path, model, judged, ["head", "full"], train, **task)
    scores = {t.strategy: t.score for t in trials}
    assert {t.state for t in trials} == {"ok"} and best.metric == "rouge-l"
    assert scores["head"] < 0.3 < min(best.score, scores["full"])
    export(best, weights, "checkpoint", tmp_path / "merged")
    merged, tokenizer = load_checkpoint(tmp_path / "merged"), make_tokenizer(begins=True)
    tests = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    found = []
    for row in tests:
        ids = tokenizer(row["question"], return_tensors="pt").input_ids
        ids = merged.generate(ids, max_new_tokens=4)[0, ids.shape[1] :]
        found.append(tokenizer.decode(ids, skip_special_tokens=True))
    assert text_score("rouge-l", found, [row["right"] for row in tests]) == best.test_score


@pytest.mark.parametrize(("family", "tied"), [("t5", False), ("bart", True)])
def test_a_study_of_sources_and_targets(family, tied, tmp_path):
    import peft

    rows = iter(prompts(112, 0))
    model = save_seq2seq(family, tmp_path / "model", tied=tied)
    task = {"type": "seq2seq", "source": "question", "target": "answer", "metric": "rouge-l"}
    train = {"epochs": 4, "full_lr": 0.01}
    best, weights, trials = run_study(
        tmp_path, model, lambda _: next(rows), ["head", "full"], train, max_new_tokens=4, **task
    )
    scores = {t.strategy: t.score for t in trials}
    assert {t.state for t in trials} == {"ok"} and best.head_params == 0
    assert scores["head"] < min(scores["full"], best.score + 1e-9)
    for to in ("spec", "peft", "checkpoint"):
        assert export(best, weights, to, tmp_path / to).max_difference < 1e-4
    adapted = peft.AutoPeftModel.from_pretrained(tmp_path / "peft", dtype="float32").eval()
    merged, tokenizer = load_checkpoint(tmp_path / "checkpoint"), ending_tokenizer()
    for model in (merged, adapted.get_base_model()):
        model.generation_config.forced_eos_token_id = None  # BART's own, which scores put aside
    tests = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    found = []
    for row in tests:
        ids = tokenizer(row["question"], return_tensors="pt").input_ids
        written = merged.generate(ids, max_new_tokens=4)[0]
        assert torch.equal(adapted.generate(input_ids=ids, max_new_tokens=4)[0], written)
        found.append(tokenizer.decode(written, skip_special_tokens=True))
    assert text_score("rouge-l", found, [[row["answer"]] for row in tests]) == best.test_score


def chosen(stream):
    """Which word is a mood?"""
    words, right = stream.sample(PLAIN, 3), stream.randrange(3)
    words[right] = stream.choice(MOODS)
    return {"context": "it was", "choices": words, "label": right}


def test_a_study_of_choices(tiny_folder, tmp_path):
    columns = {"context": "context", "choices": "choices"}
    best, weights, trials = run_study(
        tmp_path, tiny_folder, chosen, ["head", "full"], type="multiple-choice", **columns
    )
    assert {t.state for t in trials} == {"ok"} and best.metric == "accuracy"
    assert best.head_params == 32 + 1 and best.score > 0.8
    for to in ("spec", "peft", "checkpoint"):
        assert export(best, weights, to, tmp_path / to).max_difference < 1e-5
    assert "AutoPeftModel.from_pretrained" in (tmp_path / "peft" / "README.md").read_text()
    with pytest.raises(ExportError, match="takes one text a row"):
        export(best, weights, "checkpoint", tmp_path / "served", also=["onnx"])


def test_a_model_without_encoder_and_decoder_is_refused(tiny_folder, tmp_path):
    with pytest.raises(
        ConfigError, match="AutoModelForSeq2SeqLM of transformers has no model of family 'bert'"
    ):
        run_study(tmp_path, tiny_folder, about, [], type="seq2seq", source="text", target="label")
