"""An export says its own task, pads as it was trained, and is written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import resource
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTuner
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

import sparsearch
from sparsearch.config.formats import ExportFormat
from sparsearch.errors import ExportError, SparsearchError, StructureError
from sparsearch.results.export.export import export
from sparsearch.results.export.peft import plan_adapter
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.kinds import Kind
from tests.conftest import WORDS
from tests.helpers.exported import furthest, logits_of, padded_batch, train_on

ANY_TASK = [f for f in ExportFormat if f not in (ExportFormat.peft_set, ExportFormat.gguf_lora)]
"""Formats that hold any task in one folder; ``test_adapters.py`` has the others."""
LORA = {"lora": {"max_rank": 2}}
TEXTS = ["good film", "bad", "the song was very sad"]
LEFT_BEHIND = [
    {"problem_type": "multi_label_classification"},
    {"problem_type": "regression", "task_specific_params": {"text-classification": {"top_k": 1}}},
    {},
]


@pytest.fixture
def on_disk(build, tmp_path):
    """Saves a tiny model with a tokenizer that has an end token and no padding token, and other settings."""

    def save(family, labels=3, **settings):
        folder = tmp_path / "base"
        model = build(family, labels=labels)
        for name, value in settings.items():
            setattr(model.config, name, value)
        model.save_pretrained(folder)
        vocabulary = {word: i for i, word in enumerate(["[END]", "[UNK]", *WORDS])}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(
            tokenizer_object=words,
            eos_token="[END]",
            unk_token="[UNK]",
            model_input_names=["input_ids", "attention_mask"],
        ).save_pretrained(folder)
        return folder

    return save


def model_of(to, folder, base):
    """What a user has of an export."""
    if to == "checkpoint":
        return sparsearch.load_checkpoint(folder)
    config = AutoConfig.from_pretrained(folder / "task_config.json")
    fresh = AutoModelForSequenceClassification.from_pretrained(
        base, config=config, ignore_mismatched_sizes=True
    )
    return (
        sparsearch.attach(fresh, folder)
        if to == "spec"
        else peft.PeftModel.from_pretrained(fresh, folder)
    ).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", LEFT_BEHIND, ids=["multi-label", "regression", "none"])
@pytest.mark.parametrize("classes", [("no", "perhaps", "yes"), ()], ids=["classes", "number"])
@pytest.mark.parametrize("to", ANY_TASK)
def test_a_pipeline_gives_the_studys_scores_whatever_task_the_base_had(
    to, classes, settings, on_disk, randomise, tmp_path, monkeypatch
):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # a pipeline sets it else, and leaves it
    labels = {f"old {i}": i for i in range(len(classes) or 1)}
    names = {"label2id": labels, "id2label": {i: name for name, i in labels.items()}}
    base = on_disk("distilbert", labels=len(labels), **names, **settings)
    case = train_on(base, LORA, randomise, classes, pad=0)
    export(case.best, case.weights, to, tmp_path / "out")
    model = model_of(to, tmp_path / "out", base)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    scores = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)(
        TEXTS, batch_size=3
    )
    found = [{s["label"]: s["score"] for s in row} for row in scores]
    if classes:
        expected = logits.softmax(-1)
        assert all(sum(row.values()) == pytest.approx(1) for row in found)
        assert all(set(row) == set(classes) for row in found)
        values = torch.tensor([[row[name] for name in classes] for row in found])
    else:
        expected = logits
        values = torch.tensor([[row["LABEL_0"]] for row in found])
    assert torch.allclose(values, expected, atol=1e-5)
    config = model.config
    assert config.problem_type == ("single_label_classification" if classes else "regression")
    assert getattr(config, "task_specific_params", None) is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("to", ANY_TASK)
def test_the_padding_of_the_training_travels_with_every_format(
    to, family, on_disk, randomise, tmp_path
):
    base = on_disk(family, pad_token_id=None)
    case = train_on(base, LORA, randomise, pad=0)
    export(case.best, case.weights, to, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("[END]", "right")
    model = model_of(to, tmp_path / "out", base)
    assert model.config.pad_token_id == 0
    assert furthest(logits_of(model), case.logits) < 1e-5
    padded = padded_batch(0)
    with torch.no_grad():
        alone = model(**{name: tensor[1:2, :5] for name, tensor in padded.items()}).logits
    assert furthest(alone, case.logits[1:2]) < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", ANY_TASK)
def test_positions_that_begin_behind_the_padding_token_stay_where_they_are(
    to, on_disk, randomise, tmp_path
):
    base = on_disk("roberta")
    case = train_on(base, LORA, randomise)
    report = export(case.best, case.weights, to, tmp_path / "out")
    assert any("pad with token 1" in n and "the tokenizer pads with 0" in n for n in report.notes)
    model = model_of(to, tmp_path / "out", base)
    assert model.config.pad_token_id == 1
    assert furthest(logits_of(model), case.logits) < 1e-5


@pytest.mark.parametrize("to", ANY_TASK)
def test_a_model_without_any_padding_token_says_so(to, build, randomise, tmp_path):
    build("gpt2", pad_token_id=None).save_pretrained(tmp_path / "base")
    case = train_on(tmp_path / "base", LORA, randomise, pad=0)
    report = export(case.best, case.weights, to, tmp_path / "out")
    assert any("set model.config.pad_token_id" in note for note in report.notes)


@pytest.mark.filterwarnings("ignore")
def test_the_readme_of_an_adapter_runs_as_it_is_written(on_disk, randomise, tmp_path, monkeypatch):
    base = on_disk("gpt2", pad_token_id=None)
    classes = ("no", 'per"haps\n# not a title', "yes")
    case = train_on(base, LORA, randomise, classes, pad=0)
    export(case.best, case.weights, "peft", tmp_path / "adapter")
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert '1. "per\\"haps\\n# not a title"' in text
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
        assert furthest(logits_of(names["model"]), case.logits) < 1e-5
        assert names["model"].config.id2label == dict(enumerate(classes))


# What is compared


@pytest.mark.parametrize("to", ANY_TASK)
def test_a_folder_that_holds_another_backbone_by_now_is_refused(to, build, randomise, tmp_path):
    build("bert").save_pretrained(tmp_path / "base")
    case = train_on(tmp_path / "base", LORA, randomise)
    build("bert", seed=1).save_pretrained(tmp_path / "base")
    with pytest.raises(StructureError, match="belongs to another backbone"):
        export(case.best, case.weights, to, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_step_that_gives_other_logits_makes_the_export_fail(
    build, randomise, tmp_path, monkeypatch
):
    build("bert").save_pretrained(tmp_path / "base")
    case = train_on(tmp_path / "base", LORA, randomise)
    monkeypatch.setattr(BaseTuner, "merge_and_unload", lambda self: self.unload())
    with pytest.raises(ExportError, match="merged, saved and loaded again, its logits differ"):
        export(case.best, case.weights, "peft", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_kind_that_the_adapter_does_not_know_is_refused(build, randomise, tmp_path):
    @dataclass(frozen=True)
    class Shift(Kind):
        name: ClassVar[str] = "shift"

    build("bert").save_pretrained(tmp_path / "base")
    structure = train_on(tmp_path / "base", LORA, randomise).best.structure
    strange = [replace(c, kind="shift") for c in structure.candidates]
    structure = replace(structure, candidates=tuple(strange), kinds=(Shift(),))
    model = load_model(str(tmp_path / "base"), num_labels=3)
    with pytest.raises(ExportError, match=rf"- {len(strange)} shift \(PEFT has no such adapter"):
        plan_adapter(model, structure, {})


# Where it is written


@pytest.mark.parametrize("to", ANY_TASK)
def test_a_link_to_an_empty_folder_is_filled(to, build, randomise, tmp_path):
    build("bert").save_pretrained(tmp_path / "base")
    case = train_on(tmp_path / "base", LORA, randomise)
    (tmp_path / "elsewhere" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to("elsewhere/real")
    report = export(case.best, case.weights, to, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and report.path == tmp_path / "link"
    assert sorted(p.name for p in (tmp_path / "elsewhere" / "real").iterdir()) == list(
        report.files
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "elsewhere", "link"]


@pytest.mark.parametrize("target", ["nowhere/at/all", "link"], ids=["dangling", "to itself"])
def test_a_link_that_leads_nowhere_is_named(target, build, randomise, tmp_path):
    build("bert").save_pretrained(tmp_path / "base")
    case = train_on(tmp_path / "base", LORA, randomise)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ExportError, match=f"link is a symbolic link to {target}"):
        export(case.best, case.weights, "spec", tmp_path / "link")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "link"]


@contextmanager
def largest_file(size):
    """No file may grow beyond so many bytes; the system refuses as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("to", "size"),
    [("spec", 1000), ("peft", 1000), ("peft", 30_000), ("checkpoint", 1000), ("checkpoint", 4000)],
    ids=["weights", "adapter", "merged copy", "config", "model"],
)
def test_a_refused_write_is_told_in_the_systems_words_and_leaves_nothing(
    to, size, build, randomise, tmp_path
):
    build("bert").save_pretrained(tmp_path / "base")
    case = train_on(tmp_path / "base", LORA, randomise)
    with largest_file(size), pytest.raises(ExportError) as caught:
        export(case.best, case.weights, to, tmp_path / "out")
    assert caught.value.message == f"cannot write {tmp_path / 'out'}: File too large"
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_tokenizer_that_cannot_be_written_is_told_likewise(on_disk, randomise, tmp_path):
    base = on_disk("distilbert")
    file = base / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] |= {f"word{i}": i for i in range(100, 9000)}
    file.write_text(json.dumps(content))
    case = train_on(base, LORA, randomise, pad=0)
    with largest_file(100_000), pytest.raises(SparsearchError, match="File too large"):
        export(case.best, case.weights, "spec", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_serving_file_that_cannot_be_written_is_told_likewise(build, randomise, tmp_path):
    build("bert").save_pretrained(tmp_path / "base")
    case = train_on(tmp_path / "base", LORA, randomise)
    size = os.stat(tmp_path / "base" / "model.safetensors").st_size
    with largest_file(size + 1000), pytest.raises(ExportError) as caught:
        export(case.best, case.weights, "checkpoint", tmp_path / "out", also=["torch"])
    assert caught.value.message.endswith("without torch: cannot write model.pt2: File too large")
    files = sorted(p.name for p in Path(tmp_path / "out").iterdir())
    assert files == ["checkpoint.json", "config.json", "model.safetensors"]
