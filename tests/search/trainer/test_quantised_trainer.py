"""The Trainer over a backbone in 4 bits: it searches, trains and saves, once the model is not marked as quantised."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

import sparsearch as ss
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.quantised.weights import exact_products
from tests.helpers.quantised import load_in


@torch.no_grad()
def logits_of(model):
    with exact_products(model):
        return model.eval()(torch.tensor([[2, 7, 9, 3]])).logits


def test_the_trainer_searches_and_trains_over_4_bits(tiny_folder, tiny_data, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    lines = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    rows = [{**tokenizer(row["text"]), "labels": row["label"]} for row in lines]
    arguments = TrainingArguments(
        output_dir=tmp_path / "trainer", report_to="none", disable_tqdm=True, use_cpu=True,
        max_steps=8, learning_rate=3e-2, save_strategy="no",
    )  # fmt: skip
    model = load_in(tiny_folder, 4)
    before = identify(model)
    space = {"kinds": {"lora": {"max_rank": 1}}}
    budget = {"max_trainable_params": 300}
    callback = ss.StructureCallback("classification", budget, space=space, search={"steps": 2})

    def make():
        given = {"train_dataset": rows, "data_collator": DataCollatorWithPadding(tokenizer)}
        return Trainer(model, arguments, callbacks=[callback], **given)

    with pytest.raises(ValueError, match="purely quantized"):
        make()
    model.is_quantized = False
    make().train()
    assert callback.structure.trainable_params <= 300
    assert all(unit.B.abs().max() > 0 for unit in model.sparsearch.units.values())
    assert callback.structure.backbone.quantisation == before.quantisation
    assert identify(model).weight_fingerprint == before.weight_fingerprint
    ss.save(model, callback.structure, tmp_path / "trained")
    again = ss.attach(load_in(tiny_folder, 4), tmp_path / "trained")
    assert torch.allclose(logits_of(again), logits_of(model), atol=1e-5)
