"""A backbone in 8 or 4 bits, from the study file to exports that load onto one quantised likewise."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch

from sparsearch.errors import ConfigError, ExportError
from sparsearch.results.export.export import export
from sparsearch.results.records import Best
from sparsearch.results.store.store import Store
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.attachment.weights_file import pack_weights
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.parameters import count_params
from sparsearch.spaces.backbone.quantised.weights import exact_products
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import make_structure
from sparsearch.workers.preflight import check_study
from sparsearch.workers.study import run
from tests.helpers.quantised import load_in

IDS = torch.tensor([[2, 7, 9, 3]])


def quantised(study, bits):
    study["model"] = {**study["model"], "quantise": bits}
    study["baselines"] = ["random", "head"]
    study["budgets"] = {"max_bytes": ["5%"]}
    study["train"]["precision"] = "bf16"  # biases must come out of autocast as they were
    return study


@pytest.fixture(scope="module", params=[8, 4])
def best(request, tiny_folder, tiny_data, tmp_path_factory):
    """Bits, the best trial of a study, and its weights."""
    from tests.conftest import tiny_study

    url = f"sqlite:///{tmp_path_factory.mktemp('study') / 'study.db'}"
    run(quantised(tiny_study(tiny_folder, tiny_data), request.param), url)
    with Store.open(url, create=False) as store:
        assert {t.state for t in store.trials("tiny")} == {"ok"}
        found = store.best(study="tiny")
        assert found.structure.backbone.params == count_params(load_in(tiny_folder, None))
        return request.param, found, store.weights(found.study, found.trial)


@torch.no_grad()
def logits_of(model):
    with exact_products(model):
        return model.eval()(IDS).logits


def test_its_spec_attaches_to_a_backbone_quantised_likewise(best, tiny_folder, tmp_path):
    bits, *trained = best
    report = export(*trained, "spec", tmp_path / "spec")
    assert report.max_difference < 1e-5
    model = load_in(tiny_folder, bits)
    before = logits_of(model)
    assert not torch.allclose(logits_of(attach(model, tmp_path / "spec")), before, atol=1e-3)


def test_its_adapter_is_loaded_as_the_readme_says(best, tiny_folder, tmp_path, monkeypatch):
    bits, *trained = best
    export(*trained, "spec", tmp_path / "spec")
    export(*trained, "peft", tmp_path / "adapter")
    expected = logits_of(attach(load_in(tiny_folder, bits), tmp_path / "spec"))
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert f"BitsAndBytesConfig(load_in_{bits}bit=True" in text and "--to checkpoint" not in text
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
        assert torch.allclose(logits_of(names["model"]), expected, atol=1e-5)


@pytest.mark.parametrize("to", ["peft", "peft-set"])
def test_dora_on_bytes_is_a_spec_alone(tiny_folder, randomise, tmp_path, to):
    """PEFT 0.21 on bitsandbytes 0.50: the second pass has no scales any more."""
    model = load_in(tiny_folder, 8)
    space = build_space(model, kinds={"dora": {"rank": 1}})
    identity = identify(model, str(tiny_folder))
    structure = make_structure(space, space.candidates[:2], identity, "classification")
    randomise(attach(model, structure))
    weights, params = pack_weights(model, ["a", "b"]), structure.trainable_params
    best = Best(
        "s", 0, "s3pet", "accuracy", 0.9, 0.9, structure, params, 1, 1.0, None, 0,
        str(tiny_folder), "t", structure.stored_bytes,
    )  # fmt: skip
    with pytest.raises(ExportError, match="loses the scales of weights in 8 bits"):
        export(best, weights, to, tmp_path / to)
    export(best, weights, "spec", tmp_path / "spec")


def test_what_is_merged_is_refused(best, tmp_path):
    for to in ("checkpoint", "gguf-lora"):
        with pytest.raises(ExportError, match="these are quantised") as error:
            export(*best[1:], to, tmp_path / to)
        assert "--to spec" in error.value.hint and not (tmp_path / to).exists()


def test_everything_that_needs_plain_weights_is_a_problem_before_anything_is_loaded(study):
    quantised(study, 4)
    study["baselines"] = ["full"]
    study["space"] = {"kinds": {"lora": {}, "heads": {}, "spectral": {}}}
    study["budgets"] = [{"max_trainable_params": 600}, {"max_inference_flops": "90%"}]
    with pytest.raises(ConfigError) as error:
        check_study(study)
    for problem in (
        "heads does not go with a quantised backbone",
        "spectral does not go with a quantised backbone: its options ask for the gradient",
        "full trains the backbone's weights, which model.quantise keeps in 4 bits",
        "budgets: max_inference_flops counts modules as merged",
    ):
        assert any(problem in found for found in error.value.problems), problem


@pytest.mark.parametrize("model", [{"quantise": 3}, {"quantise": 4, "gguf_file": "a.gguf"}])
def test_other_bits_and_gguf_files_are_refused(study, model):
    study["model"] |= model
    with pytest.raises(ConfigError, match="quantise"):
        check_study(study)


def test_without_the_package_the_error_says_what_to_install(study, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "bitsandbytes" else find(n, *a)
    )
    with pytest.raises(ConfigError, match="needs the package bitsandbytes") as error:
        check_study(quantised(study, 8))
    assert "sparsearch[quantised]" in error.value.hint
