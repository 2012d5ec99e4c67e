"""Exports: the files prove themselves, PEFT loads its folder, and what cannot be expressed is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from sparsearch.errors import ExportError, StructureError
from sparsearch.results.export import peft_folder
from sparsearch.results.export.export import export
from sparsearch.results.export.peft_model import make_config
from sparsearch.results.records import Best
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.weights_file import weights_of
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.loading import load_model
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure

LORA = {"lora": {"max_rank": 2}}


@pytest.fixture
def trained(build, randomise, inputs, tmp_path):
    """Saves a tiny model, attaches a random half of a space with random weights; gives the trial."""

    def make(family, kinds, every=2):
        folder = tmp_path / f"backbone-{family}"
        build(family).save_pretrained(folder)
        model = load_model(str(folder), num_labels=3)
        space = build_space(model, kinds=kinds)
        structure = make_structure(
            space, space.candidates[::every], identify(model, str(folder)), "classification"
        )
        attach(model, structure)
        randomise(model)
        weights = safetensors.torch.save(
            weights_of(model), {"classes": json.dumps(["a", "b", "c"])}
        )
        with torch.no_grad():
            logits = model.eval()(**inputs).logits
        best = Best(
            "s", 0, "s3pet", "accuracy", 0.9, 0.9, structure, structure.trainable_params, 1, 1.0,
            None, 0, str(folder), "t", structure.stored_bytes,
        )  # fmt: skip
        return best, weights, logits, folder

    return make


def test_peft_refuses_what_is_cut_by_name(trained, tmp_path):
    best, weights, _, _ = trained("bert", {"heads": {}, "lora": {}})
    with pytest.raises(
        ExportError,
        match=r"\d heads \(PEFT cuts nothing out of a backbone\): layers\.0\.attn\.heads",
    ):
        export(best, weights, "peft", tmp_path / "adapter")


@pytest.mark.parametrize(
    "kinds",
    [
        {"adapter": {}},
        {"low_rank_adapter": {}, "lora": {}},
        {"ia3": {}, "lora": {}},
        {"dora": {}, "lora": {}},
        {"sparse_delta": {}, "lora": {}},
    ],
)
def test_what_peft_cannot_express_is_refused_by_name(trained, kinds, tmp_path):
    best, weights, _, _ = trained("bert", kinds, every=1)
    with pytest.raises(ExportError) as caught:
        export(best, weights, "peft", tmp_path / "adapter")
    refused = [c for c in best.structure.candidates if c.kind != "lora"]
    assert f"- {len(refused)} {refused[0].kind} (" in caught.value.message
    assert refused[0].position in caught.value.message
    assert f"and {len(refused) - 4} more" in caught.value.message or len(refused) <= 4
    assert "--to checkpoint" in caught.value.hint
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_bias_on_a_norm_without_bias_is_refused(trained, name, tmp_path):
    best, weights, _, _ = trained(name, {"bitfit": {"on": ["*norm"]}}, every=1)
    with pytest.raises(ExportError, match="this norm has no bias"):
        export(best, weights, "peft", tmp_path / "adapter")


@pytest.mark.parametrize(
    ("setting", "wider", "verb"),
    [
        (
            "target_modules",
            lambda names: names.replace(")$", "|.*attention.output.dense)$"),
            "adapts",
        ),
        ("modules_to_save", lambda names: [*names, "LayerNorm"], "saves"),
    ],
)
def test_a_config_that_reaches_more_than_the_structure_is_refused(
    trained, setting, wider, verb, tmp_path, monkeypatch
):
    def make(*args):
        config = make_config(*args)
        setattr(config, setting, wider(getattr(config, setting)))
        return config

    monkeypatch.setattr(peft_folder, "make_config", make)
    best, weights, _, _ = trained("bert", {"lora": {"on": ["*.attn.q"]}}, every=1)
    with pytest.raises(
        ExportError, match=f"PEFT {verb} other modules than the structure"
    ) as caught:
        export(best, weights, "peft", tmp_path / "adapter")
    assert "--to spec" in caught.value.hint and not (tmp_path / "adapter").exists()


def test_bias_only_linears_are_noted(trained, tmp_path):
    best, weights, _, _ = trained("bert", {"bitfit": {"on": ["*.attn.[qkvo]", "*.ffn.down"]}})
    report = export(best, weights, "peft", tmp_path / "adapter")
    assert any("bias-only" in note for note in report.notes)


def test_spec_attaches_with_equal_logits_in_every_family(trained, family, inputs, tmp_path):
    kinds = {
        "lora": {"max_rank": 2},
        "bitfit": {},
        "lnfit": {},
        "low_rank_adapter": {},
        "ia3": {},
        "adapter": {"parallel": True},
        "sparse_delta": {},
    }
    best, weights, logits, backbone = trained(family, kinds)
    report = export(best, weights, "spec", tmp_path / "spec")
    assert report.files == ("modules.safetensors", "structure.json", "task_config.json")
    fresh = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=3)
    attach(fresh, tmp_path / "spec")
    with torch.no_grad():
        assert torch.allclose(fresh.eval()(**inputs).logits, logits, atol=1e-6)


def test_damaged_weights_do_not_survive_the_round_trip(trained, tmp_path, monkeypatch):
    best, weights, _, _ = trained("bert", LORA)
    real = Path.write_bytes

    def damage(self, data):
        tensors = safetensors.torch.load(data)
        tensors = {n: t + 1 if n.endswith("lora.B") else t for n, t in tensors.items()}
        return real(self, safetensors.torch.save(tensors, {"classes": '["a","b","c"]'}))

    monkeypatch.setattr(Path, "write_bytes", damage)
    with pytest.raises(ExportError, match="does not survive its round trip"):
        export(best, weights, "spec", tmp_path / "spec")
    assert [p.name for p in tmp_path.iterdir()] == ["backbone-bert"]


def test_nothing_is_overwritten(trained, tmp_path):
    best, weights, _, _ = trained("bert", LORA)
    (tmp_path / "spec").mkdir()
    (tmp_path / "spec" / "mine.txt").write_text("keep")
    with pytest.raises(ExportError, match="not an empty folder"):
        export(best, weights, "spec", tmp_path / "spec")
    (tmp_path / "file").write_text("keep")
    with pytest.raises(ExportError, match="cannot write"):
        export(best, weights, "spec", tmp_path / "file" / "below")
    assert (tmp_path / "spec" / "mine.txt").read_text() == "keep"


def test_a_spec_with_foreign_weights_is_refused_and_the_model_left_alone(trained, tmp_path):
    best, weights, _, backbone = trained("bert", LORA)
    export(best, weights, "spec", tmp_path / "spec")
    file = tmp_path / "spec" / "modules.safetensors"
    tensors = load_file(file)
    tensors["layers.9.attn.q:lora.A"] = torch.zeros(1, 32)
    save_file(tensors, file)
    model = load_model(str(backbone), num_labels=3)
    with pytest.raises(StructureError, match="unknown .*layers.9"):
        attach(model, tmp_path / "spec")
    assert not hasattr(model, "sparsearch")
