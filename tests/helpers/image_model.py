"""Tiny random models of images with a processor, and images to learn from, as a user has them."""

from __future__ import annotations

import json
import random

from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification, ViTImageProcessor, set_seed

from tests.helpers.families import CONFIGS

SIDE = 16
COLOURS = {"cold": (20, 60, 220), "warm": (230, 90, 10)}


def save_image_model(folder, family="vit", auto=AutoModelForImageClassification, **size):
    """A model folder whose processor makes images of 16 x 16."""
    set_seed(0)
    config = CONFIGS[family]()
    config.num_labels = 2
    auto.from_config(config).save_pretrained(folder)
    size = size or {"size": {"height": SIDE, "width": SIDE}}
    ViTImageProcessor(**size).save_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).model_type == config.model_type
    return folder


def paint(file, label, stream, mode="RGB", size=None):
    """An image of one colour, nearly, of any size."""
    width, height = size or (stream.randrange(9, 40), stream.randrange(9, 40))
    colour = tuple(min(255, max(0, c + stream.randrange(-20, 20))) for c in COLOURS[label])
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).convert(mode).save(file)


def write_images(folder, rows, **changes):
    """The key ``data`` of a study on so many images of each split, of two classes."""
    stream, files = random.Random(0), {}
    for split, count in rows.items():
        lines = []
        for number in range(count):
            label = sorted(COLOURS)[number % 2]
            name = f"images/{split}/{number}.png"
            paint(folder / name, label, stream, **changes)
            lines.append(json.dumps({"file": name, "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        files[split] = str(folder / f"{split}.jsonl")
    return {"path": "json", "data_files": files}
