"""Aligning: frozen parts of attached units that the task chooses: by its gradient, and what passes through linears."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from sparsearch.spaces.attachment import attachment_of
from sparsearch.spaces.backbone import base_of
from sparsearch.spaces.kinds import Kind, Removal
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
    weights = [host.get_parameter("weight") for host in hosts.values()]
    before = [weight.requires_grad for weight in weights]
    by_weight = list(dict.fromkeys(p.module for p, k in aligning if not isinstance(k, Removal)))
    wanted = [hosts[name].get_parameter("weight") for name in by_weight]
    total = [torch.zeros_like(weight) for weight in wanted]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for loss in losses:
            outputs = [m.output for m in moments.values()]
            found = torch.autograd.grad(loss, [*wanted, *outputs])
            if wanted:
                torch._foreach_add_(total, found[: len(wanted)])
            for m, gradient in zip(moments.values(), found[len(wanted) :], strict=True):
                m.add(gradient)
    finally:
        for m in moments.values():
            m.hook.remove()
        for weight, flag in zip(weights, before, strict=True):
            weight.requires_grad_(flag)
    gradients = dict(zip(by_weight, total, strict=True))
    return {
        (p.name, kind.name): moments[p.module].basis()
        if isinstance(kind, Removal)
        else kind.basis(p, weight_at(p, hosts[p.module], gradients[p.module]))
        for p, kind in aligning
    }


class Moments:
    """What passes through a linear: moments of its input x, and of the loss's gradient g by its output.

    Tokens count by their |g|^2, so that the regression on the kept features is best where errors matter, and padding,
    which has no gradient, does not count.
    """

    def __init__(self, linear: nn.Module) -> None:
        self.input: Tensor
        self.output: Tensor
        self.weight, self.squares, self.first, self.second, self.gradient = torch.zeros(5).unbind()
        self.hook = linear.register_forward_hook(self._catch)

    def _catch(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.input, self.output = args[0].detach(), output

    def add(self, gradient: Tensor) -> None:
        """Take a batch: the gradient of its mean loss by the output (..., out)."""
        x = self.input.flatten(0, -2).float()
        g = gradient.flatten(0, -2).float() * len(gradient)
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
    """Give attached, untrained units the frozen parts that were found for them."""
    attachment = attachment_of(model)
    for slot in attachment.slots if attachment is not None else []:
        basis = bases.get((slot.position.name, slot.kind.name))
        if basis is not None:
            slot.unit.align(*basis)
