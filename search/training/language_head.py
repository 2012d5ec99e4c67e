"""The loss of a language model, without logits that nobody reads: the head runs on learnt tokens alone, in chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsearch.errors import BackboneError
from sparsearch.search.tasks.types.token_rows import IGNORED
from sparsearch.search.training.device import autocast
from sparsearch.search.training.evaluate import forward

__all__ = ["check_head", "token_loss"]

_MOST_LOGITS = 2**26
"""Logits that exist at a time: 256 MiB in float32."""


def token_loss(
    model: nn.Module, batch: dict[str, Tensor], precision: str, most_logits: int = _MOST_LOGITS
) -> tuple[Tensor, int]:
    """The summed cross-entropy of the learnt tokens of a batch, and how many they are.

    The forward pass ends before the head, which then runs on the hidden states that predict a learnt token. A chunk's
    logits are dropped and computed anew for the gradient, so that no more than ``most_logits`` exist at a time; a
    single chunk keeps its own.

    Args:
        model: With a language head.
        batch: ``labels`` (rows, tokens) hold the token at each place, or ``IGNORED``.
        precision: Of the pass.
        most_logits: Of a chunk, vocabulary times tokens.
    """
    head = _output_embeddings(model)
    targets = batch["labels"][:, 1:]
    learnt = targets != IGNORED
    states, wanted = _before_head(model, batch, precision)[:, :-1][learnt], targets[learnt]
    size = max(1, most_logits // head.weight.shape[0])
    total = states.new_zeros((), dtype=torch.float32)
    several = len(wanted) > size

    def summed(states: Tensor, wanted: Tensor) -> Tensor:
        with autocast(states.device, precision):
            logits = head(states)
        return nn.functional.cross_entropy(
            _finished(model, logits.float()), wanted, reduction="sum"
        )

    for part, labels in zip(states.split(size), wanted.split(size), strict=True):  # type: ignore[no-untyped-call]
        total = total + (
            checkpoint(summed, part, labels, use_reentrant=False)
            if several and torch.is_grad_enabled()
            else summed(part, labels)
        )
    return total, len(wanted)


@torch.no_grad()
def check_head(model: nn.Module) -> None:
    """Check that ``token_loss`` computes the logits that the model does.

    Raises:
        BackboneError: If the model has no language head, or one that does more than its output embeddings say.
    """
    ids = torch.arange(4, device=next(model.parameters()).device)[None, :]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found = _finished(model, _output_embeddings(model)(_before_head(model, batch, "fp32")))
    expected = forward(model, batch, "fp32")
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
        raise BackboneError(
            f"the language head of a {type(model).__name__} computes its logits in a way that is not known here",
            "choose a model of another family",
        )


def _before_head(model: nn.Module, batch: dict[str, Tensor], precision: str) -> Tensor:
    """(rows, tokens, width) what the head is given; it runs on none of them."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        caught.append(args[0])
        return (args[0][:, :0], *args[1:])

    handle = _output_embeddings(model).register_forward_pre_hook(catch)
    try:
        forward(model, batch, precision, use_cache=False)
    finally:
        handle.remove()
    return caught[0]


def _output_embeddings(model: nn.Module) -> Any:
    """The last linear of a language model, also of one that is entered at a layer."""
    owner: Any = model if hasattr(model, "get_output_embeddings") else model.model
    head = owner.get_output_embeddings()
    if head is None:
        raise BackboneError(f"a {type(owner).__name__} has no language head")
    return head


def _finished(model: nn.Module, logits: Tensor) -> Tensor:
    """What Granite, Cohere and Gemma do with logits, as their configs say."""
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if factor := getattr(config, "logit_scale", None):
        logits = logits * factor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits
