"""Made-up inputs of models that read no text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["reads_text", "sample_images"]


def reads_text(model: nn.Module) -> bool:
    """Whether a model's main input is token ids."""
    return bool(getattr(model, "main_input_name", "input_ids") == "input_ids")


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
