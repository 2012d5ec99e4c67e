"""Trainers over the tiny model, and the callback that searches in them."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer, Trainer, TrainingArguments, set_seed

from sparsearch.spaces.backbone.loading import load_model


@pytest.fixture
def rows(tiny_folder, tiny_data):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    lines = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    return [{**tokenizer(row["text"]), "labels": row["label"]} for row in lines]


@pytest.fixture
def trainer(tiny_folder, rows, tmp_path):
    def make(*callbacks, model=None, rows=rows, optimizers=(None, None), **settings):
        set_seed(0)
        arguments = TrainingArguments(
            output_dir=tmp_path / "trainer", report_to="none", disable_tqdm=True,
            **{"max_steps": 2, "learning_rate": 1e-2, "save_strategy": "no", **settings},
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
        model = model or load_model(str(tiny_folder), num_labels=2)
        return Trainer(
            model,
            arguments,
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=tokenizer,
            callbacks=[*callbacks],
            optimizers=optimizers,
        )

    return make
