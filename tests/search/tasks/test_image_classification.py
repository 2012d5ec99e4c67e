"""Images of rows: whatever file they are in, one size for all, and a clear word where one cannot be read."""

from __future__ import annotations

import io
import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import BackboneError, ConfigError, DataError
from sparsearch.search.tasks.images import ImageSource, open_image
from sparsearch.search.tasks.task import batches, load_task
from sparsearch.spaces.backbone.inputs.readers import READERS
from sparsearch.spaces.backbone.loading import load_config, load_model, skeleton
from sparsearch.workers.plan import study_identity
from sparsearch.workers.preflight import check_study
from tests.helpers.image_model import COLOURS, paint, save_image_model, write_images

READER = READERS["images"]
SPLITS = {"train": 6, "validation": 4, "test": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_image_model(tmp_path_factory.mktemp("vit")))


@pytest.fixture(scope="module")
def processor(model):
    return READER.load(model)


@pytest.fixture
def load(tmp_path, processor):
    """Loads the images of a folder."""

    def load(data=None, **settings):
        data = data or write_images(tmp_path, SPLITS)
        content = {"type": "image-classification", "data": data, "image": "file", **settings}
        return load_task(TaskConfig.model_validate(content), tmp_path, processor, 5)

    return load


def edit(folder, split, row, **changes):
    """Change a row of a split's file."""
    file = folder / f"{split}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[row].update(changes)
    file.write_text("\n".join(map(json.dumps, rows)))


def test_images_of_all_sizes_become_pixels_of_one(load):
    task = load()
    assert task.classes == ("cold", "warm") and task.max_length == 5
    assert task.train.inputs["pixel_values"].shape == (6, 3, 16, 16)
    assert task.train.lengths.tolist() == [5] * 6 and task.train.labels.tolist() == [0, 1] * 3
    blue = task.train.inputs["pixel_values"][:, 2].mean(dim=(1, 2))
    assert (blue[::2] > 0.3).all() and (blue[1::2] < -0.3).all()
    batch = next(batches(task.train, 4, torch.device("cpu")))
    assert batch["pixel_values"].shape == (4, 3, 16, 16)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_colour_model_becomes_red_green_and_blue(mode, load, tmp_path):
    data = write_images(tmp_path, SPLITS)
    name = f"other.{'tiff' if mode == 'CMYK' else 'png'}"
    paint(tmp_path / name, "warm", random.Random(0), mode)
    edit(tmp_path, "train", 2, file=name)
    pixels = load(data).train.inputs["pixel_values"]
    assert pixels.shape == (6, 3, 16, 16) and pixels.isfinite().all()


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    shades = np.array([[0, 20000], [40000, 65535]], dtype=np.uint16)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    image = open_image(ImageSource("deep.png", (tmp_path,)))
    assert np.asarray(image)[:, :, 0].flatten().tolist() == [0, 78, 156, 255]


def test_shades_without_a_range_are_refused(tmp_path):
    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match="no known range"):
        open_image(ImageSource("float.tiff", (tmp_path,)))


def test_a_photograph_is_turned_upright(tmp_path):
    photo = Image.new("RGB", (4, 2))
    exif = photo.getexif()
    exif[0x0112] = 6  # lies on its side
    photo.save(tmp_path / "photo.jpg", exif=exif)
    assert open_image(ImageSource("photo.jpg", (tmp_path,))).size == (2, 4)


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (None, "gone.png", "there is no file 'gone.png' in "),
        (b"", "empty.png", "empty.png' is no image that Pillow reads"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "broken.png", "broken.png' is no image"),
        (b"plain text", "notes.png", "notes.png' is no image"),
        (None, None, "it holds no image: None"),
        (None, 7, "it holds no image: 7"),
        (None, "", "it holds no image: ''"),
    ],
)
def test_a_missing_or_broken_image_is_named_with_its_row(content, name, said, load, tmp_path):
    data = write_images(tmp_path, SPLITS)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    edit(tmp_path, "validation", 3, file=name)
    with pytest.raises(DataError) as caught:
        load(data)
    assert caught.value.message.startswith("split 'validation', row 3: column 'file': ")
    assert said in caught.value.message and caught.value.hint


def test_an_image_that_ends_early_is_named(load, tmp_path):
    data = write_images(tmp_path, SPLITS)
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    edit(tmp_path, "train", 1, file="cut.png")
    with pytest.raises(DataError, match=r"split 'train', row 1: .*cut\.png' is no image"):
        load(data)


def test_no_file_outside_the_folder_of_the_data_is_read(load, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    data = write_images(inside, SPLITS)
    paint(tmp_path / "outside.png", "warm", random.Random(0))
    (inside / "link.png").symlink_to(tmp_path / "outside.png")
    for name in ("../outside.png", str(tmp_path / "outside.png"), "link.png"):
        edit(inside, "train", 0, file=name)
        with pytest.raises(DataError, match="row 0: .*lies outside"):
            load(data)
    edit(inside, "train", 0, file=str(inside / "images/train/1.png"))
    assert len(load(data).train) == 6


def test_images_in_a_parquet_file(load, tmp_path):
    import datasets

    stream, files = random.Random(0), {}
    for split, count in SPLITS.items():
        rows = {"file": [], "label": []}
        for number in range(count):
            buffer, label = io.BytesIO(), sorted(COLOURS)[number % 2]
            Image.new("RGB", (9, 9), (stream.randrange(255), 0, 0)).save(buffer, "png")
            rows["file"].append({"bytes": buffer.getvalue(), "path": "never/read.png"})
            rows["label"].append(label)
        features = datasets.Features(
            {"file": datasets.Image(decode=False), "label": datasets.Value("string")}
        )
        files[split] = str(tmp_path / f"{split}.parquet")
        datasets.Dataset.from_dict(rows, features).to_parquet(files[split])
    task = load({"path": "parquet", "data_files": files})
    assert task.train.inputs["pixel_values"].shape == (6, 3, 16, 16)


def test_a_folder_of_images_as_datasets_reads_it(load, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    stream = random.Random(0)
    for split, count in SPLITS.items():
        for number in range(count):
            label = sorted(COLOURS)[number % 2]
            paint(tmp_path / "set" / split / label / f"{number}.png", label, stream)
    task = load({"path": str(tmp_path / "set")}, image="image")
    assert task.classes == ("cold", "warm") and len(task.train) == 6


def test_one_image_in_two_splits_is_warned_of(load, tmp_path):
    data = write_images(tmp_path, SPLITS)
    edit(tmp_path, "test", 0, file="images/train/0.png")
    assert any(
        "1 of 4 rows of split 'test' stand in split 'train'" in w for w in load(data).warnings
    )


def test_a_processor_that_keeps_sizes_is_refused(tmp_path, load, processor):
    data = write_images(tmp_path, SPLITS)
    same = type(processor)(do_resize=False)
    content = {"type": "image-classification", "data": data, "image": "file"}
    with pytest.raises(
        DataError, match=r"split 'train', row 1: .* becomes \(3, .*that of row 0 \(3, "
    ) as caught:
        load_task(TaskConfig.model_validate(content), tmp_path, same, 5)
    assert "preprocessor_config.json" in caught.value.hint


def test_a_model_of_other_channels_is_refused_before_a_study(tmp_path, model):
    folder = shutil.copytree(model, tmp_path / "grey")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_channels": 1}))
    task = {
        "type": "image-classification",
        "data": write_images(tmp_path, SPLITS),
        "image": "file",
    }
    study = {"name": "grey", "model": {"path": str(folder)}, "task": task}
    study |= {"space": {"kinds": {"bitfit": {}}}, "budgets": {"max_trainable_params": [100]}}
    with pytest.raises(ConfigError, match=r"1 channels \(num_channels in config.json\)"):
        check_study(study)


def test_what_a_processor_cannot_process_is_named(tmp_path, processor, model):
    grey = type(processor)(image_mean=[0.5], image_std=[0.5], size={"height": 16, "width": 16})
    bare = skeleton(model, auto_model="AutoModelForImageClassification")
    with pytest.raises(
        BackboneError, match="ViTImageProcessor.* cannot process an image"
    ) as caught:
        READER.most_tokens(load_config(model), grey, lambda: bare)
    assert "preprocessor_config.json" in caught.value.hint
    data = write_images(tmp_path, SPLITS)
    content = {"type": "image-classification", "data": data, "image": "file"}
    with pytest.raises(DataError, match="split 'train', row 0: .*cannot process an image"):
        load_task(TaskConfig.model_validate(content), tmp_path, grey, 5)


def test_tokens_are_counted_by_the_model_on_no_weights(model, processor):
    def tokens(processor, path=model):
        bare = skeleton(path, auto_model="AutoModelForImageClassification")
        return READER.most_tokens(load_config(path), processor, lambda: bare)

    assert tokens(processor) == 2 * 2 + 1  # patches of 8 x 8, and the class token
    with pytest.raises(BackboneError, match="does not take pixel_values") as caught:
        tokens(type(processor)(size={"height": 24, "width": 24}))
    assert "processor" in caught.value.hint


def test_what_a_folder_must_have(model, tiny_folder, tmp_path, monkeypatch):
    with pytest.raises(BackboneError, match="no image processor"):
        READER.load(str(tiny_folder))
    with pytest.raises(BackboneError, match="no model of family 'bert'"):
        load_model(str(tiny_folder), auto_model="AutoModelForImageClassification")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackboneError, match="needs the package Pillow") as caught:
        READER.load(model)
    assert "sparsearch[vision]" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": ["file"]}, "text is no key of type 'image-classification'"),
        ({"max_length": 64}, "max_length is no key of type 'image-classification'"),
        ({"image": None}, "needs the columns of its rows: give image"),
        ({"type": "classification", "image": "file"}, "image is no key of type 'classification'"),
    ],
)
def test_keys_fit_the_type(changes, said):
    content = {
        "type": "image-classification",
        "data": {"path": "json"},
        "image": "file",
        **changes,
    }
    with pytest.raises(ValueError, match=said):
        TaskConfig.model_validate({k: v for k, v in content.items() if v is not None})


def test_a_study_is_another_one_with_other_images(tmp_path, model):
    from sparsearch.config.study import StudyConfig

    data = write_images(tmp_path, SPLITS)
    content = {
        "name": "study",
        "model": {"path": model},
        "task": {"type": "image-classification", "data": data, "image": "file"},
        "space": {"kinds": {"bitfit": {}}},
        "budgets": {"max_trainable_params": [100]},
    }
    config = StudyConfig.model_validate(content)
    before = study_identity(config)
    assert study_identity(config) == before
    paint(tmp_path / "images/test/2.png", "cold", random.Random(9))
    after = study_identity(config)
    changed = {
        k for k in before["data_sha256"] if before["data_sha256"][k] != after["data_sha256"][k]
    }
    assert changed == {"test"}
