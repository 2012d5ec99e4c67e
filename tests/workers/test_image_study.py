"""A study of images, from its files to exports that load elsewhere."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    pipeline,
)

from sparsearch.errors import ConfigError, DataError
from sparsearch.results.export.export import export
from sparsearch.results.store.store import Store
from sparsearch.spaces.attachment.attach import attach
from sparsearch.spaces.compaction.checkpoint import load_checkpoint
from sparsearch.workers.preflight import check_study
from sparsearch.workers.study import run
from sparsearch.workers.trials.session import open_session
from tests.helpers.image_model import SIDE, save_image_model, write_images

SPLITS = {"train": 48, "validation": 16, "test": 16}


def study_of(folder, model, **changes):
    return {
        "name": "colours",
        "model": {"path": str(model)},
        "task": {
            "type": "image-classification",
            "data": write_images(folder, SPLITS),
            "image": "file",
        },
        "space": {"kinds": {"lora": {"max_rank": 2}, "lnfit": {}, "heads": {}}},
        "budgets": {"max_trainable_params": [400]},
        "search": {"steps": 4, "batch_size": 8},
        "train": {"epochs": 2, "batch_size": 8, "precision": "fp32"},
        "baselines": ["random", "probe", "head", "full"],
        **changes,
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The best trial, its weights, all trials, and the model's folder."""
    folder = tmp_path_factory.mktemp("colours")
    model = save_image_model(folder / "vit")
    url = f"sqlite:///{folder / 'study.db'}"
    run(study_of(folder, model), url)
    with Store.open(url, create=False) as store:
        best = store.best()
        return best, store.weights("colours", best.trial), store.trials("colours"), model


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, SIDE, SIDE, generator=generator)


def test_every_strategy_learns_colours(done):
    best, _, trials, _ = done
    assert {t.state for t in trials} == {"ok"} and len(trials) == 5
    assert best.metric == "accuracy" and best.score > 0.9
    assert best.head_params == 2 * 32 + 2


@torch.no_grad()
def test_exports_give_the_trained_logits(done, pixels, tmp_path):
    import peft

    best, weights, _, folder = done
    for to in ("spec", "peft"):
        export(best, weights, to, tmp_path / to)
    export(best, weights, "checkpoint", tmp_path / "checkpoint", also=["torch"])
    config = AutoConfig.from_pretrained(tmp_path / "spec" / "task_config.json")
    assert config.id2label == {0: "cold", 1: "warm"} and not hasattr(config, "max_length")
    base = AutoModelForImageClassification.from_pretrained(folder, config=config)
    expected = attach(base, tmp_path / "spec").eval()(pixels).logits
    assert expected.shape == (3, 2)
    base = AutoModelForImageClassification.from_pretrained(folder, config=config)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    assert torch.allclose(adapted(pixels).logits, expected, atol=1e-5)
    merged = load_checkpoint(tmp_path / "checkpoint")
    assert torch.allclose(merged(pixels).logits, expected, atol=1e-5)
    served = torch.export.load(tmp_path / "checkpoint" / "model.pt2").module()
    assert torch.allclose(served(pixel_values=pixels), expected, atol=1e-4)


def test_an_export_is_fed_by_its_own_processor(done, tmp_path):
    best, weights, _, _ = done
    export(best, weights, "checkpoint", tmp_path / "small")
    model = load_checkpoint(tmp_path / "small")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "small")
    name = pipeline("image-classification", model=model, image_processor=processor)
    assert name(Image.new("RGB", (30, 20), (230, 90, 10)))[0]["label"] == "warm"


def test_a_row_has_the_tokens_of_an_image(tmp_path):
    model = save_image_model(tmp_path / "vit")
    session = open_session(check_study(study_of(tmp_path, model)).config)
    assert session.task.max_length == (SIDE // 8) ** 2 + 1


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_a_tower_of_two_is_a_backbone(family, tmp_path):
    """The folder holds both towers; the classifier's head is new, and only the images' tower is counted."""
    auto = AutoModelForImageClassification if family == "dinov2" else AutoModel
    model = save_image_model(tmp_path / family, family, auto)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    run(study_of(tmp_path, model, baselines=["head"]), url)
    with Store.open(url, create=False) as store:
        best = store.best()
        weights = store.weights("colours", best.trial)
        assert {t.state for t in store.trials("colours")} == {"ok"}
    prefix = "" if family == "dinov2" else "vision."
    assert best.head_params == 2 * (64 if family == "dinov2" else 32) + 2
    assert all(c.position.startswith(f"{prefix}") for c in best.structure.candidates)
    for to in ("spec", "peft", "checkpoint"):
        assert export(best, weights, to, tmp_path / to).max_difference < 1e-5


def test_a_model_of_text_is_refused_before_the_study(tiny_folder, tmp_path):
    with pytest.raises(ConfigError, match="has no model of family 'bert'"):
        check_study(study_of(tmp_path, tiny_folder))


def test_a_missing_image_ends_the_study_before_anything_is_written(tmp_path):
    model = save_image_model(tmp_path / "vit")
    study = study_of(tmp_path, model)
    (tmp_path / "images/test/3.png").unlink()
    with pytest.raises(DataError, match="split 'test', row 3: column 'file': there is no file"):
        run(study, f"sqlite:///{tmp_path / 'study.db'}")
    assert not (tmp_path / "study.db").exists()


def test_a_model_without_a_processor_is_refused_before_the_study(tmp_path):
    model = save_image_model(tmp_path / "vit")
    (model / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="no image processor"):
        check_study(study_of(tmp_path, model))
