"""A model in a GGUF file, from the study file to exports."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import utils

from sparsearch.errors import BackboneError, ConfigError
from sparsearch.results.export.export import export
from sparsearch.results.store.store import Store
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.backbone.loading import load_model, load_tokenizer, locate, skeleton
from sparsearch.spaces.backbone.state import states_of
from sparsearch.workers.preflight import check_study
from sparsearch.workers.study import run
from tests.helpers.gguf_file import NAME, TOKENS, write_gguf
from tests.helpers.language_model import prompts, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def written(folder):
    """The model that the file holds."""
    return write_gguf(folder)


def load(folder):
    return load_model(locate(str(folder / NAME)), auto_model="AutoModelForCausalLM")


def make_study(folder):
    rows = {"train": 16, "validation": 8, "test": 8}
    data = write_rows(folder, {s: prompts(n, seed) for seed, (s, n) in enumerate(rows.items())})
    return {
        "name": "gguf",
        "model": {"path": str(folder), "gguf_file": NAME},
        "task": {
            "type": "causal-lm",
            "data": data,
            "prompt": "question",
            "completion": "answer",
            "max_length": 64,
        },
        "space": {"kinds": {"lora": {"max_rank": 1, "on": ["*.attn.*"]}}},
        "budgets": {"max_trainable_params": [300]},
        "search": {"steps": 2, "batch_size": 8},
        "train": {"epochs": 1, "batch_size": 8, "precision": "fp32"},
        "baselines": ["random"],
        "seeds": [0],
    }


@pytest.fixture(scope="module")
def best(folder, written):
    """The best trial of a study of it, and its weights."""
    url = f"sqlite:///{folder / 'study.db'}"
    run(make_study(folder), url)
    with Store.open(url, create=False) as store:
        assert {t.state for t in store.trials("gguf")} == {"ok"}
        found = store.best()
        return found, store.weights(found.study, found.trial)


def test_the_weights_are_unpacked_and_the_model_is_a_plain_one(folder, written, tmp_path):
    model = load(folder)
    assert list(states_of(model)) == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, written.state_dict()[name]), name
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), auto_model="AutoModelForCausalLM")
    ids = torch.tensor([load_tokenizer(str(folder / NAME))("the heath").input_ids])
    assert ids.max() == len(TOKENS) - 2
    assert torch.equal(again(ids).logits, written(ids).logits)


def test_a_structure_knows_the_file_and_attaches_to_its_model(best, folder):
    structure = best[0].structure
    assert structure.backbone.path == str(folder / NAME)
    assert attach(load(folder), structure) is not None
    bare = skeleton(structure.backbone.path, None, "AutoModelForCausalLM")
    assert sum(p.numel() for p in bare.model.parameters()) == structure.backbone.params


def test_it_exports_as_its_spec(best, tmp_path, folder):
    export(*best, "spec", tmp_path / "spec")
    attach(load(folder), tmp_path / "spec")


def test_it_exports_to_peft_and_its_readme_loads_it(best, tmp_path, monkeypatch):
    export(*best, "peft", tmp_path / "adapter")
    text = (tmp_path / "adapter" / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    (short,) = re.findall(r"`(AutoPeftModelForCausalLM\.from_pretrained\(.*)`", text)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block, names)
    ids = torch.tensor([[5, 9, 20]])
    expected = names["model"](ids).logits
    assert torch.equal(eval(short, names).eval()(ids).logits, expected)
    names["model"].merge_and_unload().save_pretrained("merged")
    merged = load_model("merged", auto_model="AutoModelForCausalLM")
    assert torch.allclose(merged(ids).logits, expected, atol=1e-5)


def test_it_exports_to_a_set_of_adapters_and_its_readme_loads_it(best, tmp_path, folder):
    export(*best, "spec", tmp_path / "spec")
    export(*best, "peft-set", tmp_path / "set")
    (block,) = re.findall(
        r"```python\n(.*?)```", (tmp_path / "set" / "README.md").read_text(), re.S
    )
    names = {}
    exec(block.replace('"set/', f'"{tmp_path / "set"}/'), names)
    ids = torch.tensor([[5, 9, 20]])
    expected = attach(load(folder), tmp_path / "spec").eval()(ids).logits
    assert torch.allclose(names["model"](ids).logits, expected, atol=1e-5)


def test_without_the_package_that_reads_it_the_error_says_what_to_install(
    folder, written, monkeypatch
):
    monkeypatch.setattr(utils, "is_gguf_available", lambda: False)
    with pytest.raises(ConfigError, match="needs the package gguf") as error:
        check_study(make_study(folder))
    assert "sparsearch[gguf]" in error.value.hint


@pytest.mark.parametrize("content", [None, b"", b"GGUF\x03\x00", b"something else"])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / NAME
    if content is None:
        with pytest.raises(BackboneError, match=f"has no {NAME}"):
            locate(str(path))
        return
    path.write_bytes(content)
    with pytest.raises(BackboneError, match="cannot load the config"):
        skeleton(locate(str(path)), None, "AutoModelForCausalLM")


def test_a_checksum_is_that_of_the_file(folder, written):
    with pytest.raises(BackboneError, match=f"{NAME} has SHA-256"):
        load_model(str(folder / NAME), sha256="0" * 64, auto_model="AutoModelForCausalLM")


def test_the_name_of_the_file_has_no_folder(folder, written):
    study = make_study(folder)
    study["model"]["gguf_file"] = f"../{NAME}"
    with pytest.raises(ConfigError, match="model.gguf_file"):
        check_study(study)
