"""What a model computes, without gradients."""

from __future__ import annotations

import torch


def scores(model, inputs):
    """Its logits; of two towers how well each text fits each image."""
    dtype = next(model.parameters()).dtype
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    output = model(**cast)
    return output.logits if "logits" in output else output.logits_per_image


def logits(model, inputs):
    with torch.no_grad():
        return scores(model, inputs)
