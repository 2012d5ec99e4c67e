"""Model folders that cannot be used: named before anything is loaded or written, in `run`, `space` and `export`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

from sparsearch.cli.main import app
from sparsearch.errors import BackboneError
from sparsearch.results.export.export import export
from sparsearch.results.records import Best
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.loading import load_config, load_model, locate, skeleton
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure


@pytest.fixture
def folder(tiny_folder, tmp_path, monkeypatch):
    """A copy of a model folder; the current folder is another one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return shutil.copytree(tiny_folder, tmp_path / "model")


def call(*words):
    """Exit code and the words of stderr of a command."""
    result = CliRunner().invoke(app, [str(w) for w in words], env={"COLUMNS": "300"})
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.stderr.split())


def run(study, path, tmp_path):
    file = tmp_path / "studies" / "study.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump({**study, "model": {"path": str(path)}}))
    answer = call("run", file, "--db", f"sqlite:///{tmp_path / 'out.db'}")
    assert not (tmp_path / "out.db").exists()
    return answer


@pytest.mark.parametrize("written", ["../gone", "./gone", "gone/of/three", "~/gone", "{tmp}/gone"])
def test_a_path_that_is_no_hub_id_is_a_folder(study, folder, tmp_path, monkeypatch, written):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = written.format(tmp=tmp_path)
    expected = {
        "../gone": tmp_path / "gone",
        "./gone": tmp_path / "studies" / "gone",
        "gone/of/three": tmp_path / "studies" / "gone" / "of" / "three",
        "~/gone": tmp_path / "gone",
        "{tmp}/gone": tmp_path / "gone",
    }[written]
    code, text = run(study, path, tmp_path)
    assert code == 2 and "model.path" in text and f": there is no folder {expected}" in text
    assert "hint: put it back, or give a folder with config.json" in text
    code, text = call("space", path)
    assert code == 2 and "there is no folder /" in text


def test_a_path_under_home_is_found(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/model") == str(tmp_path / "model")


@pytest.mark.parametrize("path", ["bert-base-uncased", "google/bert_uncased_L-2_H-128_A-2"])
def test_a_hub_id_stays_as_it_is_written(folder, path):
    assert locate(path) == path


@pytest.mark.parametrize("path", ["../model", "model"])
def test_a_folder_without_a_config_is_named(study, folder, tmp_path, path):
    (folder / "config.json").unlink()
    (tmp_path / "studies").mkdir()
    if path == "model":
        folder = folder.rename(tmp_path / "studies" / "model")
    code, text = run(study, path, tmp_path)
    assert code == 2 and f"model.path '{path}': the folder {folder} has no config.json" in text


@pytest.mark.parametrize("other", [None, "pytorch_model.bin"])
def test_a_folder_without_weights_is_named(study, folder, tmp_path, other):
    (folder / "model.safetensors").unlink()
    if other:
        (folder / other).write_bytes(b"")
    code, text = run(study, folder, tmp_path)
    assert code == 2
    assert (
        f"the folder {folder} has no model.safetensors" + (f", but {other}" if other else "")
        in text
    )


def test_the_space_of_a_folder_without_weights_can_be_seen(folder):
    (folder / "model.safetensors").unlink()
    assert call("space", folder)[0] == 0


def with_adapter(folder):
    """A PEFT adapter beside the model, as ``add_adapter`` and ``save_pretrained`` leave it."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["query"]))
    torch.nn.init.normal_(
        model.base_model.model.bert.encoder.layer[0].attention.self.query.lora_B.default.weight
    )
    model.save_pretrained(folder)


def test_an_adapter_beside_the_model_is_named_before_loading(study, folder, tmp_path):
    with_adapter(folder)
    for code, text in (run(study, folder, tmp_path), call("space", folder)):
        assert code == 2 and f"model.path '{folder}': a PEFT adapter lies beside the model" in text
    for load in (load_config, skeleton, load_model):
        with pytest.raises(BackboneError, match="a PEFT adapter lies beside the model"):
            load(str(folder))


def test_a_folder_of_an_adapter_alone_is_named(study, folder, tmp_path):
    with_adapter(folder)
    (folder / "config.json").unlink()
    code, text = run(study, folder, tmp_path)
    assert code == 2 and f"the folder {folder} holds a PEFT adapter, not a model" in text


def test_a_folder_of_a_slim_model_is_named(study, folder, tmp_path):
    (folder / "checkpoint.json").write_text('{"plain": true}')
    load_config(str(folder))
    (folder / "checkpoint.json").write_text('{"plain": false}')
    for code, text in (run(study, folder, tmp_path), call("space", folder)):
        assert code == 2 and f"model.path '{folder}': the folder holds a slim model" in text
    with pytest.raises(BackboneError, match="a slim model of sparsearch"):
        load_model(str(folder))


def test_a_folder_of_quantised_weights_is_named(study, folder, tmp_path):
    file = folder / "config.json"
    quantisation = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "quantization_config": quantisation})
    )
    for code, text in (run(study, folder, tmp_path), call("space", folder)):
        assert code == 2 and "the model's weights are quantised (bitsandbytes)" in text


def test_a_tokenizer_that_pads_with_another_token_than_positions_are_counted_from(
    study, folder, tmp_path, build
):
    build("roberta").save_pretrained(folder)
    code, text = run(study, folder, tmp_path)
    assert code == 2 and (
        "the tokenizer pads with token 0, but this model counts its positions from token 1" in text
    )


@pytest.mark.parametrize("to", ["spec", "peft", "checkpoint"])
@pytest.mark.parametrize("change", ["gone", "no config", "no weights", "adapter"])
def test_an_export_names_what_became_of_its_backbone(folder, tmp_path, to, change):
    best, weights = trial(folder)
    message = {
        "gone": f"there is no folder {folder}",
        "no config": f"the folder {folder} has no config.json",
        "no weights": f"the folder {folder} has no model.safetensors",
        "adapter": "a PEFT adapter lies beside the model",
    }[change]
    if change == "gone":
        shutil.rmtree(folder)
    elif change == "adapter":
        with_adapter(folder)
    else:
        (folder / ("config.json" if change == "no config" else "model.safetensors")).unlink()
    with pytest.raises(BackboneError) as error:
        export(best, weights, to, tmp_path / "out")
    assert message in error.value.message and error.value.hint
    assert sorted(p.name for p in tmp_path.iterdir() if p.name not in ("model", "here")) == []


def trial(folder: Path) -> tuple[Best, bytes]:
    """A structure on a model folder, and its weights as the store gives them."""
    import safetensors.torch

    from sparsearch.spaces.attachment.attach import attach
    from sparsearch.spaces.attachment.weights_file import weights_of

    model = load_model(str(folder), num_labels=3)
    space = build_space(model, kinds={"lora": {"max_rank": 1}})
    structure = make_structure(
        space, space.candidates[::2], identify(model, str(folder)), "classification"
    )
    weights = weights_of(attach(model, structure))
    packed = safetensors.torch.save(weights, {"classes": json.dumps(["a", "b", "c"])})
    best = Best(
        "s", 0, "s3pet", "accuracy", 0.9, 0.9, structure, structure.trainable_params, 1, 1.0,
        None, 0, str(folder), "t", structure.stored_bytes,
    )  # fmt: skip
    return best, packed
