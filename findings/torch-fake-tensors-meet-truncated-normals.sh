#!/usr/bin/env bash
# torch 2.13.0 with transformers 5.23.0: a ViT cannot be built from its config on fake tensors, a BERT can.
#
# `FakeTensorMode` runs a model on shapes alone, to tell its memory or FLOPs beforehand. transformers initialises a ViT
# with torch's truncated normal, which on a CPU asks whether any number it drew lies outside the bounds: a question about
# values, which fake tensors do not have (DataDependentOutputException). So the same code works for text models and fails for
# models of images. Building inside transformers' `no_init_weights` avoids it; numbers are of no use there anyway.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - <<'PY'
import torch
import transformers
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import BertConfig, BertModel, ViTConfig, ViTModel
from transformers.initialization import no_init_weights

SIZES = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2
}


def outcome(make):
    with FakeTensorMode():
        try:
            return f"{sum(p.numel() for p in make().parameters())} parameters"
        except DataDependentOutputException as error:
            return type(error).__name__


def plainly(kind, config):
    with no_init_weights():
        return kind(config)


bert, vit = BertConfig(**SIZES, vocab_size=64), ViTConfig(**SIZES, image_size=32, patch_size=16)
found = [
    outcome(lambda: BertModel(bert)),
    outcome(lambda: ViTModel(vit)),
    outcome(lambda: plainly(ViTModel, vit)),
]
print("torch", torch.__version__, "transformers", transformers.__version__)
for name, one in zip(("BERT", "ViT", "ViT, no initialisation"), found, strict=True):
    print(f"{name}: {one}")
assert found[1] == "DataDependentOutputException", "the behaviour has changed"
assert "parameters" in found[0] and "parameters" in found[2], "the behaviour has changed"
PY
