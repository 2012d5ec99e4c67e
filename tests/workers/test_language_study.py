"""A study of a language model from its rows to adapters that load elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsearch.errors import ConfigError, ExportError
from sparsearch.results.export.export import export
from sparsearch.results.report.study_report import report_page
from sparsearch.results.report.summary import summarise
from sparsearch.results.store.store import Store
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.compaction.checkpoint import load_checkpoint
from sparsearch.workers.preflight import check_study
from sparsearch.workers.study import run
from tests.helpers.language_model import (
    CONFIGS,
    make_tokenizer,
    prompts,
    save_language_model,
    write_rows,
)

STRATEGIES = ["random", "probe", "lora-qv", "head", "full"]


def make_study(folder, family):
    rows = {"train": 48, "validation": 16, "test": 16}
    data = write_rows(folder, {s: prompts(n, seed) for seed, (s, n) in enumerate(rows.items())})
    (folder / family).mkdir()
    return {
        "name": "language",
        "model": {"path": str(save_language_model(family, folder / family))},
        "task": {
            "type": "causal-lm",
            "data": data,
            "prompt": "question",
            "completion": "answer",
            "max_length": 16,
        },
        "space": {"kinds": {"lora": {"max_rank": 2}, "lnfit": {}}},
        "budgets": {"max_trainable_params": [300]},
        "search": {"steps": 6, "batch_size": 8},
        "train": {"epochs": 2, "batch_size": 8, "precision": "fp32"},
        "baselines": STRATEGIES,
        "seeds": [0],
    }


@pytest.fixture(scope="module", params=CONFIGS)
def done(request, tmp_path_factory):
    """A study that has run, in its database."""
    folder = tmp_path_factory.mktemp(request.param)
    study = make_study(folder, request.param)
    url = f"sqlite:///{folder / 'study.db'}"
    run(study, url)
    with Store.open(url, create=False) as store:
        yield study, store


@pytest.fixture
def best(done):
    store = done[1]
    found = store.best()
    return found, store.weights(found.study, found.trial)


def test_every_strategy_runs_and_the_lowest_loss_is_best(done):
    store = done[1]
    trials = store.trials("language")
    assert {t.strategy: t.state for t in trials} == dict.fromkeys(["s3pet", *STRATEGIES], "ok")
    loss = {t.strategy: -t.score for t in trials}
    assert all(0.0 < value < 4.0 for value in loss.values())
    assert loss["full"] < loss["head"] and loss["s3pet"] < loss["head"] - 0.1
    best = store.best()
    with_structure = [
        value for strategy, value in loss.items() if strategy not in ("head", "full")
    ]
    assert best.metric == store.find_study("language").metric == "neg_loss"
    assert -best.score == min(with_structure)
    assert best.head_params == 0
    assert store.pareto("language")[-1].score == best.score


def test_reports_prefer_the_lowest_loss(done):
    store = done[1]
    study, best = store.find_study("language"), store.best()
    summary = summarise(study, store.trials("language"))
    assert [b.best.number for b in summary.budgets] == [best.trial]
    page = report_page(store, "language")
    assert "neg_loss" in page and f"{best.score:.4f}" in page


@torch.no_grad()
def test_exports_give_the_trained_logits(done, best, tmp_path):
    import peft

    folder = done[0]["model"]["path"]
    ids = torch.tensor([[6, 12, 13]])
    export(*best, "spec", tmp_path / "spec")
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    before = plain(ids).logits
    expected = attach(plain, tmp_path / "spec").eval()(ids).logits
    assert not torch.allclose(expected, before, atol=1e-3)
    export(*best, "peft", tmp_path / "peft")
    base = AutoModelForCausalLM.from_pretrained(folder)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    assert adapted.peft_config["default"].task_type == "CAUSAL_LM"
    assert type(adapted) is peft.PeftModelForCausalLM
    assert torch.allclose(adapted(input_ids=ids).logits, expected, atol=1e-5)
    text = (tmp_path / "peft" / "README.md").read_text()
    assert "AutoModelForCausalLM" in text and "task's head" not in text
    export(*best, "checkpoint", tmp_path / "checkpoint")
    merged = load_checkpoint(tmp_path / "checkpoint")
    assert torch.allclose(merged(ids).logits, expected, atol=1e-5)
    assert merged.config.tie_word_embeddings == plain.config.tie_word_embeddings
    with pytest.raises(ExportError, match="a language model generates them one by one"):
        export(*best, "checkpoint", tmp_path / "served", also=["onnx"])


def test_a_model_that_reads_later_tokens_is_refused(tiny_folder, done):
    study = done[0] | {"model": {"path": str(tiny_folder)}}
    with pytest.raises(ConfigError, match="a bert reads the tokens that follow too"):
        check_study(study)


def test_a_model_without_a_causal_head_is_refused(build, tiny_folder, done, tmp_path):
    build("distilbert").save_pretrained(tmp_path)
    study = done[0] | {"model": {"path": str(tmp_path)}}
    with pytest.raises(
        ConfigError, match="(?s)no model of family 'distilbert'.*another task.type"
    ):
        check_study(study)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"label": "answer"},
            "label is no key of type 'causal-lm'; it has completion, max_length, max_new_tokens",
        ),
        ({"completion": None}, "give prompt and completion, or text, or messages"),
        ({"text": "question"}, "give prompt and completion, or text, or messages"),
        (
            {"metric": "accuracy"},
            "which has loss, perplexity, bleu, rouge-l; accuracy is for classification",
        ),
        ({"prompt": None, "completion": None, "text": ["a", "b"]}, "takes one text column"),
        ({"prompt": "answer"}, "two columns, not both 'answer'"),
    ],
)
def test_settings_that_do_not_fit_a_language_model(done, task, message):
    with pytest.raises(ConfigError, match=message):
        check_study(done[0] | {"task": done[0]["task"] | task})


def test_perplexity_is_the_metric_that_was_asked_for(done, tmp_path):
    study = done[0] | {"baselines": ["head"], "search": {"strategy": "random"}}
    study["task"] = study["task"] | {"metric": "perplexity"}
    url = f"sqlite:///{tmp_path / 'study.db'}"
    run(study, url)
    with Store.open(url, create=False) as store:
        untrained, trained = (store.trials("language")[i].score for i in (0, 1))
        assert store.best().metric == "neg_perplexity"
    (loss,) = (-t.score for t in done[1].trials("language") if t.strategy == "head")
    assert untrained == pytest.approx(-math.exp(loss), rel=1e-4)
    assert trained > untrained


def test_a_tokenizer_that_neither_pads_nor_ends_is_refused(done, tmp_path):
    save_language_model("gpt2", tmp_path)
    make_tokenizer(pad_token=None, eos_token=None).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="the tokenizer has neither a padding nor an end token"):
        check_study(done[0] | {"model": {"path": str(tmp_path)}})
