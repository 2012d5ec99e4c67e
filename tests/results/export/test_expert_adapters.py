"""PEFT adapters of experts and routers: exact where PEFT can hold them, and refused by name where it cannot."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn

from sparsearch.errors import ExportError
from sparsearch.results.export.adapters.peft_parameters import not_as_parameter
from sparsearch.results.export.export import export
from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.families.position import find
from tests.conftest import make_model
from tests.helpers.exported import furthest, logits_of, train_on

RANKS = {"lora": {"max_rank": 3, "on": ["*.experts.*", "*.router", "*.attn.[qv]"]}, "lnfit": {}}


def randomise(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.sparsearch.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


def trained(family, folder, kinds):
    make_model(family).save_pretrained(folder / "model")
    return train_on(folder / "model", kinds, randomise, pad=0)


def load(folder):
    """By the lines of the README."""
    names, text = {}, (folder / "README.md").read_text().replace('"adapter', f'"{folder}')
    assert "load_adapter" not in text.partition("## What to know")[0]
    exec(re.findall(r"```python\n(.*?)```", text, re.S)[0], names)
    return names["model"], names["base"]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "qwen3_next"])
def test_ranks_that_differ_between_experts_survive(family, tmp_path):
    case = trained(family, tmp_path, RANKS)
    ranks = {}
    for c in case.best.structure.candidates:
        if ".experts." in c.position:
            ranks.setdefault(c.position.rpartition(".")[2], set()).add(c.size)
    assert any(len(sizes) > 1 for sizes in ranks.values())
    report = export(case.best, case.weights, "peft", tmp_path / "adapter")
    assert report.max_difference < 1e-5 and any("one rank for all" in n for n in report.notes)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert {name.rpartition(".")[2] for name in config["target_parameters"]} == {
        "gate_up_proj",
        "down_proj",
        "weight",
    }
    model, base = load(tmp_path / "adapter")
    assert furthest(logits_of(model), case.logits) < 1e-5
    model.disable_adapter_layers()
    assert furthest(logits_of(model), case.logits) > 1e-3


def test_experts_alone_and_one_rank(tmp_path):
    on = ["layers.1.ffn.experts.0.down", "layers.0.ffn.experts.*.up"]
    case = trained("mixtral", tmp_path, {"lora": {"max_rank": 2, "on": on}})
    export(case.best, case.weights, "peft-one-rank", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert not config["rank_pattern"] and not config["target_modules"]
    assert furthest(logits_of(load(tmp_path / "adapter")[0]), case.logits) < 1e-5


def test_some_layers_of_a_model_with_experts_are_adapted_and_no_others(tmp_path):
    case = trained("mixtral", tmp_path, {"lora": {"max_rank": 1, "on": ["layers.1.attn.q"]}})
    export(case.best, case.weights, "peft", tmp_path / "adapter")
    assert len(case.best.structure.candidates) == 1


@pytest.mark.parametrize(
    ("kinds", "reason"),
    [
        ({"dora": {"on": ["*.attn.q"]}}, "either all LoRA of an adapter DoRA, or none"),
        ({"bitfit": {"on": ["*.attn.o"]}}, "no bias beside LoRA of experts"),
        ({"sparse_delta": {"on": ["*.experts.*"]}}, "SHiRA"),
    ],
)
def test_what_goes_into_no_adapter_with_experts_is_refused(tmp_path, kinds, reason):
    case = trained("mixtral", tmp_path, {"lora": {"on": ["*.experts.*"]}, **kinds})
    with pytest.raises(ExportError, match=reason):
        export(case.best, case.weights, "peft", tmp_path / "adapter")


def test_a_set_of_adapters_is_refused(tmp_path):
    kinds = {"lora": {"on": ["*.experts.*"]}, "ia3": {"on": ["*.attn.k"]}}
    case = trained("mixtral", tmp_path, kinds)
    with pytest.raises(ExportError, match="loads no adapter of experts") as error:
        export(case.best, case.weights, "peft-set", tmp_path / "set")
    assert "--to spec" in error.value.hint


def test_a_tensor_that_peft_would_read_otherwise_is_refused():
    model = make_model("gpt_oss")
    place = find(positions_of(model), "layers.0.ffn.experts.1.down")
    experts = base_of(model).get_submodule(place.module)
    assert not_as_parameter(place, experts) == ""
    experts.is_transposed = False
    assert "rows of its matrices for columns" in not_as_parameter(place, experts)
    experts.down_proj = nn.Parameter(experts.down_proj[:1].detach())
    assert "single expert" in not_as_parameter(place, experts)
