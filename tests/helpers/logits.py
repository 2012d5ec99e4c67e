"""What a model computes, without gradients."""

from __future__ import annotations

import torch


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits
