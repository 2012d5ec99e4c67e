"""What users do next with an export, in every family and kind: equal logits, or a note that names the way out."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

import sparsearch
from sparsearch.errors import ExportError
from sparsearch.results.export.export import export
from sparsearch.results.export.task_config import task_keywords
from sparsearch.spaces.kinds import KINDS
from tests.conftest import FAMILIES
from tests.helpers.exported import furthest, logits_of, padded_batch, train_on
from tests.helpers.feed_forward import WIDTH

EXPRESSIBLE = {
    "lora": {"lora": {"max_rank": 2}},
    "dora": {"dora": {"rank": 2}},
    "spectral": {"spectral": {}},
    "bitfit": {"bitfit": {"on": ["*.attn.[qkvo]", "*.ffn.down"]}},
    "lnfit": {"lnfit": {}},
    "ia3": {"ia3": {}},
    "lora-bitfit": {"lora": {"max_rank": 1}, "bitfit": {"on": ["*.attn.[qv]", "*.ffn.up"]}},
    "lora-lnfit": {"lora": {"max_rank": 2, "on": ["*.attn.[kv]"]}, "lnfit": {}},
    "lora-spectral-lnfit": {"lora": {"max_rank": 1}, "spectral": {}, "lnfit": {}},
    "dora-lnfit": {"dora": {"rank": 1, "on": ["*.attn.[qv]"]}, "lnfit": {}},
    "bitfit-lnfit": {"bitfit": {"on": ["*.attn.[qv]"]}, "lnfit": {}},
}
UNLIKE = ("albert", "bart", "falcon-40b", "gemma3_text", "modernbert", "phi3")
"""Of the families beside the core those that keep something otherwise: shared, in two stacks, fused, in other norms."""
NO_BIASES = ("llama", "t5")
"""Families whose linears have none, so that PEFT cannot merge one."""
NOT_MERGED = {("ia3", "roberta")} | {
    (kinds, family) for kinds in EXPRESSIBLE if "bitfit" in kinds for family in NO_BIASES
}


def base_for(adapter: Path, folder: Path) -> torch.nn.Module:
    config = AutoConfig.from_pretrained(adapter / "task_config.json")
    return AutoModelForSequenceClassification.from_pretrained(
        folder, config=config, dtype="float32", ignore_mismatched_sizes=True
    )


def steps_after(adapter: Path, folder: Path, scratch: Path) -> dict[str, torch.nn.Module]:
    """What each step of a user gives, its name first."""
    loaded = peft.PeftModel.from_pretrained(base_for(adapter, folder), adapter)
    auto = peft.AutoPeftModelForSequenceClassification.from_pretrained(
        adapter, **task_keywords(adapter, "classification")
    )
    in_place = base_for(adapter, folder)
    in_place.load_adapter(str(adapter))
    config = AutoConfig.from_pretrained(adapter / "task_config.json")
    by_folder = AutoModelForSequenceClassification.from_pretrained(
        adapter, config=config, dtype="float32", ignore_mismatched_sizes=True
    )
    loaded.save_pretrained(scratch / "again")
    again = peft.PeftModel.from_pretrained(base_for(adapter, folder), scratch / "again")
    return {
        "PeftModel": loaded,
        "AutoPeftModel": auto,
        "load_adapter": in_place,
        "the folder as a model": by_folder,
        "saved again": again,
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "family"),
    [
        (name, family)
        for name, kinds in EXPRESSIBLE.items()
        for family in (FAMILIES if len(kinds) == 1 else ("bert", "gpt2", "llama", "t5"))
    ]
    + [("lora-lnfit", variant) for variant in UNLIKE]
    + [("ia3", "falcon-40b"), ("bitfit", "gpt_neox")],
)
def test_each_step_after_a_peft_export_gives_equal_logits_or_was_announced(
    family, name, build, randomise, tmp_path
):
    folder, adapter = tmp_path / "base", tmp_path / "adapter"
    build(family).save_pretrained(folder)
    case = train_on(folder, EXPRESSIBLE[name], randomise)
    report = export(case.best, case.weights, "peft", adapter)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {*report.files}
    assert float(case.logits.abs().max()) > 1e-3
    steps = steps_after(adapter, folder, tmp_path)
    if (name, family) in NOT_MERGED:
        with pytest.raises((RuntimeError, ValueError, AttributeError)):
            steps["PeftModel"].merge_and_unload()
        (note,) = [n for n in report.notes if "PEFT cannot merge it" in n]
        assert "--to checkpoint" in note
        assert "cannot merge it" in (adapter / "README.md").read_text()
        export(case.best, case.weights, "checkpoint", tmp_path / "merged")
        steps["merged as announced"] = sparsearch.load_checkpoint(tmp_path / "merged")
        del steps["PeftModel"]  # broken by the attempt
    else:
        assert not any("cannot merge" in note for note in report.notes)
        whole = peft.PeftModel.from_pretrained(base_for(adapter, folder), adapter)
        whole.merge_and_unload().save_pretrained(tmp_path / "merged")
        steps["merged"] = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    differences = {step: furthest(logits_of(model), case.logits) for step, model in steps.items()}
    assert all(d < 1e-5 for d in differences.values()), differences
    assert all(model.config.id2label[1] == "perhaps" for model in steps.values())


@pytest.mark.parametrize("kind", KINDS)
def test_spec_and_checkpoint_of_every_kind_give_equal_logits_or_refuse_and_name_the_way_out(
    family, kind, build, randomise, tmp_path
):
    folder = tmp_path / "base"
    build(family, **{WIDTH.get(family, "intermediate_size"): 128}).save_pretrained(folder)
    options = {"block": 32} if kind == "neurons" else {}
    case = train_on(folder, {kind: options}, randomise)
    export(case.best, case.weights, "spec", tmp_path / "spec")
    model = sparsearch.attach(base_for(tmp_path / "spec", folder), tmp_path / "spec")
    assert furthest(logits_of(model), case.logits) < 1e-5
    assert model.config.id2label == {0: "no", 1: "perhaps", 2: "yes"}
    padded = padded_batch(model.config.pad_token_id)
    alone = {name: tensor[1:2, :5] for name, tensor in padded.items()}
    with torch.no_grad():
        assert furthest(model(**alone).logits, case.logits[1:2]) < 1e-4
    if kind == "bitfit" and family in NO_BIASES:
        with pytest.raises(ExportError, match="has no bias") as caught:
            export(case.best, case.weights, "checkpoint", tmp_path / "small")
        assert "--to spec" in caught.value.hint and not (tmp_path / "small").exists()
        return
    export(case.best, case.weights, "checkpoint", tmp_path / "small")
    small = sparsearch.load_checkpoint(tmp_path / "small")
    assert furthest(logits_of(small), case.logits) < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["lora", "bitfit", "ia3", "lnfit"])
def test_a_pooler_that_was_trained_with_the_head_survives_merging(
    name, build, randomise, tmp_path
):
    folder = tmp_path / "base"
    build("bert").save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if "pooler" not in n}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    case = train_on(folder, EXPRESSIBLE[name], randomise)
    export(case.best, case.weights, "peft", tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert {"bert.pooler.dense", "classifier"} <= set(saved["modules_to_save"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = base_for(tmp_path / "adapter", folder)
        model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
        model.save_pretrained(tmp_path / "merged")
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert furthest(logits_of(again), case.logits) < 1e-5


def test_biases_alone_are_beft_without_a_zero_lora(build, randomise, tmp_path):
    build("bert").save_pretrained(tmp_path / "base")
    case = train_on(tmp_path / "base", EXPRESSIBLE["bitfit"], randomise)
    export(case.best, case.weights, "peft", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "BEFT"
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not [n for n in names if "lora" in n]
    assert sum("beft_bias" in n for n in names) == len(case.best.structure.candidates)
