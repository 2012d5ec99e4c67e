"""Made-up inputs of models."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from sparsearch.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["check_reads_tokens", "reads_text", "sample_images", "token_inputs"]


def reads_text(model: nn.Module) -> bool:
    """Whether a model's main input is token ids."""
    return bool(getattr(model, "main_input_name", "input_ids") == "input_ids")


def check_reads_tokens(model: nn.Module) -> None:
    """Refuse a model to which token ids cannot be given.

    Raises:
        BackboneError: If its main input is another.
    """
    if not reads_text(model):
        raise BackboneError(
            f"a {type(model).__name__} reads {model.main_input_name}; only models that read tokens are measured here",
            "measure a study instead, a short one: sparsearch run STUDY.yaml --profile --set search.steps=3",
        )


def token_inputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """What a model's backbone takes for token ids (rows, tokens) without padding, its decoder's too if it has one.

    Raises:
        BackboneError: If the model reads something else.
    """
    import torch

    check_reads_tokens(model)
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
