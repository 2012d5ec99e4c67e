"""Aligning: frozen parts of attached units that the task chooses: by its gradient, and what passes through linears."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from sparsearch.spaces.attachment import attachment_of
from sparsearch.spaces.backbone import base_of
from sparsearch.spaces.kinds import Kind, Removal, WeightMask
from sparsearch.spaces.positions import Position, weight_at
from sparsearch.spaces.units.base import Basis

__all__ = ["Aligning", "Bases", "align", "aligning_at", "find_bases", "take_bases"]

Aligning = Collection[tuple[Position, Kind]]
"""Kinds whose units have frozen parts that the gradient chooses, and where."""

Bases = Mapping[tuple[str, str], Basis]
"""Names of position and kind -> frozen parts."""


def align(model: nn.Module, losses: Iterable[Tensor]) -> None:
    """Choose the frozen parts of attached, untrained units by the mean gradient of their hosts' weights.

    The singular vectors of the first gradient say where a low-rank change lowers the loss, as LoRA-GA
    and GoRA start LoRA; those of the weights themselves, which ``attach`` takes, do not. Let the head learn
    first: gradients through a random head say little. Where nothing aligns, no loss is asked for.

    Args:
        model: With something attached that has not been trained, so that it is still the identity.
        losses: Losses of a few batches, computed as they are asked for.

    Example:
        >>> align(model, (model(**batch).loss for batch in loader))  # doctest: +SKIP
    """
    attachment = attachment_of(model)
    slots = attachment.slots if attachment is not None else []
    aligning = [(slot.position, slot.kind) for slot in slots if slot.kind.aligns]
    cutting = [slot for slot in slots if isinstance(slot.kind, Removal)]
    for slot in cutting:
        slot.idle = True  # what goes is seen before it does
    try:
        bases = find_bases(model, aligning, losses)
    finally:
        for slot in cutting:
            slot.idle = False
    take_bases(model, bases)


def aligning_at(kinds: Iterable[Kind], positions: Iterable[Position]) -> Aligning:
    """The kinds that align, wherever they may go."""
    aligning = [kind for kind in kinds if kind.aligns]
    return [(p, kind) for p in positions for kind in aligning if kind.accepts(p)]


def find_bases(model: nn.Module, aligning: Aligning, losses: Iterable[Tensor]) -> Bases:
    """What kinds take from the mean gradient at some positions.

    Args:
        model: The identity point: nothing attached, or nothing of it trained.
        aligning: The kinds and positions.
        losses: Losses of a few batches, computed as they are asked for; none is if nothing aligns.
    """
    if not aligning:
        return {}
    base = base_of(model)
    hosts = {p.module: base.get_submodule(p.module) for p, _ in aligning}
    moments = {p.module: Moments(hosts[p.module]) for p, k in aligning if isinstance(k, Removal)}
    sizes = {p.module: Sizes(hosts[p.module]) for p, k in aligning if isinstance(k, WeightMask)}
    passing: list[Passing] = [*moments.values(), *sizes.values()]
    weights = [host.get_parameter("weight") for host in hosts.values()]
    before = [weight.requires_grad for weight in weights]
    by_weight = list(
        dict.fromkeys(p.module for p, k in aligning if not isinstance(k, Removal | WeightMask))
    )
    wanted = [hosts[name].get_parameter("weight") for name in by_weight]
    total = [torch.zeros_like(weight) for weight in wanted]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for loss in losses:
            outputs = [m.output for m in passing]
            found = torch.autograd.grad(loss, [*wanted, *outputs])
            if wanted:
                torch._foreach_add_(total, found[: len(wanted)])
            for m, gradient in zip(passing, found[len(wanted) :], strict=True):
                m.add(gradient)
    finally:
        for m in passing:
            m.hook.remove()
        for weight, flag in zip(weights, before, strict=True):
            weight.requires_grad_(flag)
    gradients = dict(zip(by_weight, total, strict=True))

    def basis(p: Position, kind: Kind) -> Basis:
        host = hosts[p.module]
        if isinstance(kind, Removal):
            return moments[p.module].basis()
        if isinstance(kind, WeightMask):
            return sizes[p.module].basis(p)
        return kind.basis(p, weight_at(p, host, gradients[p.module]))

    return {(p.name, kind.name): basis(p, kind) for p, kind in aligning}


class Passing(ABC):
    """Sees what passes through a linear: its input, and its output, by which a loss can be differentiated."""

    def __init__(self, linear: nn.Module) -> None:
        self.input: Tensor
        self.output: Tensor
        self.hook = linear.register_forward_hook(self._catch)

    def _catch(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.input, self.output = args[0].detach(), output

    @abstractmethod
    def add(self, gradient: Tensor) -> None:
        """Take a batch: the gradient of its mean loss by the output (..., out)."""

    def rows(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and gradients of a batch's rows of tokens, in float32: (n, in), (n, out)."""
        x, g = self.input.flatten(0, -2).float(), gradient.flatten(0, -2).float()
        return x, g * len(gradient)


class Sizes(Passing):
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
        own = self.gradients[position.start : position.start + position.out_features]
        tokens = self.tokens.clamp_min(1)
        return (own / tokens).sqrt(), (self.inputs / tokens).sqrt()


class Moments(Passing):
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
        weighted = x * size[:, None]
        self.weight = self.weight + size.sum()
        self.squares = self.squares + size.square().sum()
        self.first = self.first + weighted.sum(0)
        self.second = self.second + weighted.T @ x
        self.gradient = self.gradient + g.T @ g

    def basis(self) -> Basis:
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


def take_bases(model: nn.Module, bases: Bases) -> None:
    """Give attached, untrained units the frozen parts that were found for them; a mask ranks its weights anew."""
    attachment = attachment_of(model)
    for slot in attachment.slots if attachment is not None else []:
        basis = bases.get((slot.position.name, slot.kind.name))
        if basis is not None:
            host = base_of(model).get_submodule(slot.position.module)
            masked = isinstance(slot.kind, WeightMask)
            slot.unit.align(*basis, *((weight_at(slot.position, host),) if masked else ()))
