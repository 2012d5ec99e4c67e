"""Made-up inputs of models."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from sparsearch.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["reads_images", "reads_text", "sample_images", "sample_inputs"]


def reads_text(model: nn.Module) -> bool:
    """Whether a model's main input is token ids."""
    return bool(getattr(model, "main_input_name", "input_ids") == "input_ids")


def reads_images(model: nn.Module) -> bool:
    """Whether a model's main input is pixels."""
    return bool(getattr(model, "main_input_name", "") == "pixel_values")


def sample_inputs(model: Any, rows: int, tokens: int) -> dict[str, Tensor]:
    """Rows for a model's backbone: tokens without padding, its decoder's too if it has one; or random images.

    Args:
        model: Which reads tokens or images.
        rows: How many.
        tokens: Of a row; an image has as many as the model makes of it.

    Raises:
        BackboneError: If the model reads something else.
    """
    import torch

    if reads_images(model):
        return {name: x.to(model.device) for name, x in sample_images(model, rows).items()}
    if not reads_text(model):
        raise BackboneError(
            f"a {type(model).__name__} reads {model.main_input_name}; only models that read tokens or images are "
            "measured here",
            "measure a study instead, a short one: sparsearch run STUDY.yaml --profile --set search.steps=3",
        )
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    word = 0 if padding else 1  # positions of padding are not counted
    ids = torch.full((rows, tokens), word, device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "decoder_input_ids" in inspect.signature(model.base_model.forward).parameters:
        inputs["decoder_input_ids"] = ids
    return inputs


def sample_images(model: nn.Module, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Random images of the size that a model's config names.

    Args:
        model: Whose main input is ``pixel_values``.
        rows: How many.
        seed: Of the numbers.

    Returns:
        ``pixel_values``: (rows, channels, height, width), standard normal.
    """
    import torch

    config: Any = getattr(model.config, "vision_config", model.config)
    size = config.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(rows, config.num_channels, height, width, generator=generator)
    }
