"""Tasks whose rows have many things to learn: tokens, tags, the ends of a span."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsearch.search.tasks.types.base import TaskType

__all__ = ["TokenLosses", "TokenTask", "cross_entropies"]


@dataclass(frozen=True)
class TokenLosses:
    """What a batch has to learn, token by token, in the order of its rows.

    Attributes:
        losses: (tokens,) cross-entropies, with the graph that led to them.
        residuals: (tokens,) norms of one-hot minus softmax, those of the losses' gradients; without a graph.
        rows: (tokens,) the place in the batch of each token's row.
    """

    losses: Tensor
    residuals: Tensor
    rows: Tensor


class TokenTask(TaskType):
    """A task type whose loss is a mean of cross-entropies, several in a row."""

    @abstractmethod
    def token_losses(
        self, model: nn.Module, batch: dict[str, Tensor], precision: str
    ) -> TokenLosses:
        """What ``loss`` is the mean of.

        Args:
            model: Of the type's model class.
            batch: As ``batches`` gives it.
            precision: Of the forward pass.
        """


def cross_entropies(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of (tokens, outputs) logits, and the norms of their residuals.

    >>> losses, residuals = cross_entropies(torch.zeros(1, 4), torch.tensor([2]))
    >>> round(float(losses), 4), round(float(residuals), 4)  # log 4; (3/4, 1/4, 1/4, 1/4)
    (1.3863, 0.866)
    """
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    with torch.no_grad():
        found = logits.softmax(-1)
        squares = found.square().sum(-1) - 2 * found.gather(-1, labels[:, None]).squeeze(-1) + 1
    return losses, squares.clamp_min(0).sqrt()
