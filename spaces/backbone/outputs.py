"""What a model gives, whatever its head: one tensor of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["output_logits"]


def output_logits(output: Any) -> Tensor:
    """The logits of a model's output; those of a span's ends as one tensor (rows, tokens, 2).

    Args:
        output: Of a model with the head of a task.
    """
    import torch

    if getattr(output, "start_logits", None) is not None:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    logits: Tensor = output.logits
    return logits
