"""What a linear model explains: a few numbers of each row, and by how much the task wants each of them to change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsearch.search.bilevel.supernet import Supernet
from sparsearch.search.tasks.task import Split, Task
from sparsearch.search.tasks.types.base import TokenTask
from sparsearch.search.tasks.types.sequence import SequenceTask
from sparsearch.search.training.evaluate import forward, predict

__all__ = ["NO_RANK", "Explained", "OutputsOfRows", "OutputsOfTokens", "explain", "main_outputs"]

NO_RANK = 1e-9
"""Share of the largest eigenvalue below which one counts as zero."""


class Explained(ABC):
    """Numbers of each row, as functions of the candidates' values, and how they should change.

    Attributes:
        rows: The rows.
        weights: (outputs,) of each number's square in the error.
        pulls: Sums of the numbers, weighted by how they should change, which ``pulled`` tells apart.
    """

    rows: Split
    weights: Tensor
    pulls: int

    @abstractmethod
    def outputs(self, supernet: Supernet, batch: dict[str, Tensor]) -> Tensor:
        """(rows, outputs) the numbers of a batch, with the graph that led to them."""

    @abstractmethod
    def targets(self, batch: dict[str, Tensor]) -> Tensor:
        """(rows, outputs) by how much each should change, times its weight."""

    @abstractmethod
    def pulled(
        self, supernet: Supernet, batch: dict[str, Tensor], number: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Some of the ``pulls``, with what a batch, the one of this number, adds to each."""


@dataclass(frozen=True)
class OutputsOfRows(Explained):
    """Combinations of the outputs of a row, where each row has one vector of them.

    Attributes:
        rows: The rows.
        residuals: (rows, outputs of the model) minus the gradient of each row's loss with respect to the model's
            outputs: one-hot minus softmax for classification, two times the error for regression.
        combinations: (outputs of the model, outputs explained) orthonormal.
    """

    rows: Split
    residuals: Tensor
    combinations: Tensor

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """All alike: combinations are orthonormal."""
        return torch.ones(self.pulls)

    @property
    def pulls(self) -> int:  # type: ignore[override]
        """One for each combination."""
        return self.combinations.shape[1]

    def outputs(self, supernet: Supernet, batch: dict[str, Tensor]) -> Tensor:
        """The combinations."""
        logits = forward(supernet.model, batch, supernet.precision)
        return logits @ self.combinations.to(logits)

    def targets(self, batch: dict[str, Tensor]) -> Tensor:
        """The residuals, combined."""
        return self.residuals[batch["rows"]] @ self.combinations

    def pulled(
        self, supernet: Supernet, batch: dict[str, Tensor], number: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Every combination's covariance with its residuals."""
        found = self.outputs(supernet, batch)
        yield from enumerate((found * self.targets(batch).to(found)).sum(0))


@dataclass(frozen=True)
class OutputsOfTokens(Explained):
    """The losses of a row's tokens, where each token has outputs of its own.

    Of a token's outputs only the direction of its own residual is explained, so that a vocabulary costs nothing: they
    go that way, to first order, by minus the loss over the residual's norm. Tokens of a row share a few numbers, with
    random signs: squares of such sums are the sum of squares in the mean (Hutchinson's estimate, 1990), and no token
    needs a pass of its own.

    Attributes:
        rows: The rows.
        task_type: Computes the losses.
        shared: Numbers that the tokens of a row share.
        pulls: Groups of batches.
        seed: Of the signs.
    """

    rows: Split
    task_type: TokenTask
    shared: int
    pulls: int
    seed: int

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """None of the first number, which says where the tokens pull together."""
        return torch.tensor([0.0] + [1.0] * self.shared)

    def outputs(self, supernet: Supernet, batch: dict[str, Tensor]) -> Tensor:
        """Minus the sum of a row's losses; then the sums of its shares, with signs."""
        found = self.task_type.token_losses(supernet.model, batch, supernet.precision)
        first = found.losses.new_zeros(len(batch["rows"]))
        together = first.index_add(0, found.rows, -found.losses)
        signs = self._signs(found.rows, batch["rows"])
        along = -signs * found.losses / found.residuals.clamp_min(1e-6)
        of_share = found.rows * self.shared + _number_in_row(found.rows) % self.shared
        shares = first.new_zeros(len(first) * self.shared).index_add(0, of_share, along)
        return torch.cat([together[:, None], shares.view(-1, self.shared)], dim=1)

    def targets(self, batch: dict[str, Tensor]) -> Tensor:
        """All losses of a row should fall: J^T r is minus their gradient."""
        return torch.tensor([1.0] + [0.0] * self.shared).expand(len(batch["rows"]), -1)

    def pulled(
        self, supernet: Supernet, batch: dict[str, Tensor], number: int
    ) -> Iterator[tuple[int, Tensor]]:
        """One, that of the batch's group."""
        found = self.task_type.token_losses(supernet.model, batch, supernet.precision)
        yield number % self.pulls, -found.losses.sum()

    def _signs(self, rows: Tensor, of: Tensor) -> Tensor:
        """(tokens,) random signs, equal for equal rows whatever the batch."""
        place = of.to(rows.device)[rows] * 2**20 + _number_in_row(rows)
        mixed = (place + self.seed % 2**30 + 1) * 2654435761 % 2**32
        mixed = (mixed ^ (mixed >> 15)) * 2246822519 % 2**32
        return ((mixed >> 16) & 1).float() * 2 - 1


def _number_in_row(rows: Tensor) -> Tensor:
    """(tokens,) how many tokens of its row come before each; rows ascend.

    >>> _number_in_row(torch.tensor([0, 0, 2, 2, 2]))
    tensor([0, 1, 0, 1, 2])
    """
    places = torch.arange(len(rows), device=rows.device)
    return places - torch.searchsorted(rows, rows)


def explain(
    supernet: Supernet, task: Task, parts: Sequence[Split], most: int, seed: int
) -> list[Explained]:
    """What is explained of parts of a task's training split, the same of all.

    Args:
        supernet: With a warm head.
        task: One whose rows, or whose tokens, have one vector of outputs each.
        parts: The rows.
        most: Numbers of a row at most.
        seed: Of random signs.
    """
    behaviour = task.behaviour
    if isinstance(behaviour, TokenTask):
        return [OutputsOfTokens(part, behaviour, most, most, seed) for part in parts]
    residuals = [_residuals(supernet, behaviour, part) for part in parts]
    combinations = main_outputs(residuals[0], most)
    return [
        OutputsOfRows(part, own, combinations) for part, own in zip(parts, residuals, strict=True)
    ]


def _residuals(supernet: Supernet, behaviour: object, rows: Split) -> Tensor:
    """(rows, outputs) of the model as it is, nothing attached."""
    assert isinstance(behaviour, SequenceTask), "the strategy refuses other task types"
    with supernet.alone(torch.zeros(len(supernet.removals))):
        logits = predict(supernet.model, rows, supernet.precision).requires_grad_()
    loss = behaviour.loss_of(logits, rows.labels) * len(rows)
    (gradient,) = torch.autograd.grad(loss, logits)
    return -gradient


def main_outputs(residuals: Tensor, most: int) -> Tensor:
    """The principal directions of residuals (rows, outputs): (outputs, at most ``most``), orthonormal.

    Those along which there is no residual are left out: of softmax's outputs, the sum.

    >>> main_outputs(torch.tensor([[1.0, -1.0], [-2.0, 2.0]]), most=8).abs()
    tensor([[0.7071],
            [0.7071]])
    """
    values, vectors = torch.linalg.eigh(residuals.double().T @ residuals.double())
    count = int((values > NO_RANK * values[-1]).sum())
    main: Tensor = vectors[:, -max(1, min(most, count)) :].flip(1)
    return main.float()
