"""Moments of what passes through a linear: of its inputs, and of the loss's gradients by its outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sparsearch.spaces.families.position import Position
from sparsearch.spaces.kinds.base import Statistics
from sparsearch.spaces.kinds.module_base import Basis

__all__ = ["RECORDERS", "ActivationRecorder", "InputCovariance", "SecondMoments"]


class ActivationRecorder(ABC):
    """Sees what passes through a linear: its input, and its output, by which a loss can be differentiated.

    Of several calls in one forward the first counts: DeBERTa-v2 projects its relative positions after its tokens.
    """

    def __init__(self, linear: nn.Module) -> None:
        self.input: Tensor
        self.output: Tensor
        self.waiting = True
        self.hook = linear.register_forward_hook(self._catch)

    def _catch(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self.waiting:
            self.input, self.output, self.waiting = args[0].detach(), output, False

    @abstractmethod
    def basis(self, position: Position) -> Basis:
        """What a kind takes from all that was seen, at one of the linear's positions."""

    @abstractmethod
    def add(self, gradient: Tensor) -> None:
        """Take a batch: the gradient of its mean loss by the output (..., out)."""

    def rows(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and gradients of a batch's rows of tokens, in float32: (n, in), (n, out); then waits for the next."""
        self.waiting = True
        x, g = self.input.flatten(0, -2).float(), gradient.flatten(0, -2).float()
        return x, g * len(gradient)


class SecondMoments(ActivationRecorder):
    """Second moments of a linear's inputs, over tokens that have a gradient, and of its outputs' gradients."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__(linear)
        self.tokens, self.inputs, self.gradients = torch.zeros(3).unbind()

    def add(self, gradient: Tensor) -> None:
        """Take a batch: the gradient of its mean loss by the output (..., out)."""
        x, g = self.rows(gradient)
        seen = (g != 0).any(1, keepdim=True)  # padding has none
        self.tokens = self.tokens + seen.sum()
        self.inputs = self.inputs + (x.square() * seen).sum(0)
        self.gradients = self.gradients + g.square().sum(0)

    def basis(self, position: Position) -> tuple[Tensor, Tensor]:
        """Root mean squares of the gradients of the position's outputs (out), and of the inputs (in)."""
        own = self.gradients[position.rows]
        tokens = self.tokens.clamp_min(1)
        return (own / tokens).sqrt(), (self.inputs / tokens).sqrt()


class InputCovariance(ActivationRecorder):
    """Moments of a linear's input x, and of the loss's gradient g by its output.

    Tokens count by their |g|^2, so that the regression on the kept features is best where errors matter, and padding,
    which has no gradient, does not count.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__(linear)
        self.weight, self.squares, self.first, self.second, self.gradient = torch.zeros(5).unbind()

    def add(self, gradient: Tensor) -> None:
        """Take a batch: the gradient of its mean loss by the output (..., out)."""
        x, g = self.rows(gradient)
        size = g.square().sum(1)
        seen = size != 0  # padding has no gradient, nor has what no head reads
        x, g, size = x[seen], g[seen], size[seen]
        weighted = x * size[:, None]
        self.weight = self.weight + size.sum()
        self.squares = self.squares + size.square().sum()
        self.first = self.first + weighted.sum(0)
        self.second = self.second + weighted.T @ x
        self.gradient = self.gradient + g.T @ g

    def basis(self, position: Position) -> Basis:
        """Covariance (in, in) and mean (in) of the input, weighted; second moment (out, out) of the gradient.

        The covariance is shrunk towards its diagonal by OAS (Chen et al. 2010, equation 23) for as many rows as the
        weights amount to: in the last layer one token per row counts, often fewer than there are features.
        """
        tiny = torch.finfo(torch.float32).tiny
        mean = self.first / self.weight.clamp_min(tiny)
        covariance = self.second / self.weight.clamp_min(tiny) - torch.outer(mean, mean)
        variance = covariance.diagonal().clamp_min(0.0)
        scale = variance.clamp_min(1e-8 * float(variance.mean()) + tiny).rsqrt()
        correlation = covariance * scale[:, None] * scale  # zero for a feature that never changes
        squares, trace = correlation.square().sum(), correlation.trace()
        features, rows = len(mean), self.weight.square() / self.squares.clamp_min(tiny)
        share = ((1 - 2 / features) * squares + trace**2) / (
            (rows + 1 - 2 / features) * (squares - trace**2 / features).clamp_min(tiny)
        )
        shrunk = torch.lerp(covariance, torch.diag(variance), share.clamp(0, 1))
        return shrunk, mean, self.gradient


RECORDERS: Mapping[Statistics, type[ActivationRecorder]] = {
    "input covariance": InputCovariance,
    "second moments": SecondMoments,
}
"""What kinds ask for that passes through a linear -> who records it."""
