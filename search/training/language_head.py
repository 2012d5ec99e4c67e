"""The loss of a language model, without logits that nobody reads: the head runs on learnt tokens alone, in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsearch.errors import BackboneError
from sparsearch.search.tasks.types.base import TokenLosses, cross_entropies
from sparsearch.search.tasks.types.token_rows import IGNORED
from sparsearch.search.training.device import autocast
from sparsearch.search.training.evaluate import forward

__all__ = ["check_head", "learnt_losses", "states_before_head", "token_loss"]

_MOST_LOGITS = 2**26
"""Logits that exist at a time: 256 MiB in float32."""


def token_loss(
    model: nn.Module, batch: dict[str, Tensor], precision: str, most_logits: int = _MOST_LOGITS
) -> tuple[Tensor, int]:
    """The summed cross-entropy of the learnt tokens of a batch, and how many they are.

    Args:
        model: With a language head.
        batch: ``labels`` (rows, tokens) hold the token at each place, or ``IGNORED``.
        precision: Of the pass.
        most_logits: Of a chunk, vocabulary times tokens.
    """

    def summed(logits: Tensor, wanted: Tensor) -> tuple[Tensor]:
        return (nn.functional.cross_entropy(logits, wanted, reduction="sum"),)

    learnt = _learnt(batch)
    found = _of_chunks(summed, model, batch, precision, most_logits)
    return torch.stack([total for (total,) in found]).sum(), int(learnt.sum())


def learnt_losses(model: nn.Module, batch: dict[str, Tensor], precision: str) -> TokenLosses:
    """The cross-entropy of each learnt token of a batch; arguments are those of ``token_loss``."""
    found = _of_chunks(cross_entropies, model, batch, precision, _MOST_LOGITS)
    losses, residuals = map(torch.cat, zip(*found, strict=True))
    return TokenLosses(losses, residuals, _learnt(batch).nonzero()[:, 0])


def _learnt(batch: dict[str, Tensor]) -> Tensor:
    """(rows, tokens - 1) whether a place predicts a token that is learnt."""
    return batch["labels"][:, 1:] != IGNORED


def _of_chunks(
    compute: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    model: nn.Module,
    batch: dict[str, Tensor],
    precision: str,
    most_logits: int,
) -> list[tuple[Tensor, ...]]:
    """What is computed of the (tokens, vocabulary) logits of learnt tokens and of these tokens, chunk by chunk.

    The forward pass ends before the head, which then runs on the hidden states that predict a learnt token. A chunk's
    logits are dropped and computed anew for the gradient, so that no more than ``most_logits`` exist at a time; a
    single chunk keeps its own.
    """
    head, learnt = _output_embeddings(model), _learnt(batch)
    states = states_before_head(model, batch, precision)[:, :-1][learnt]
    wanted = batch["labels"][:, 1:][learnt]
    size = max(1, most_logits // head.weight.shape[0])
    several = len(wanted) > size

    def of_states(states: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
        with autocast(states.device, precision):
            logits = head(states)
        return compute(_finished(model, logits.float()), wanted)

    return [
        checkpoint(of_states, part, labels, use_reentrant=False)
        if several and torch.is_grad_enabled()
        else of_states(part, labels)
        for part, labels in zip(states.split(size), wanted.split(size), strict=True)  # type: ignore[no-untyped-call]
    ]


@torch.no_grad()
def check_head(model: nn.Module) -> None:
    """Check that ``token_loss`` computes the logits that the model does.

    Raises:
        BackboneError: If the model has no language head, or one that does more than its output embeddings say.
    """
    ids = torch.arange(4, device=next(model.parameters()).device)[None, :]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "is_encoder_decoder", False):
        batch["decoder_input_ids"] = ids
    found = _finished(model, _output_embeddings(model)(states_before_head(model, batch, "fp32")))
    expected = forward(model, batch, "fp32")
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
        raise BackboneError(
            f"the language head of a {type(model).__name__} computes its logits in a way that is not known here",
            "choose a model of another family",
        )


def states_before_head(model: nn.Module, batch: dict[str, Tensor], precision: str) -> Tensor:
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
    """What BART does with logits, and Granite, Cohere and Gemma, as their configs say."""
    if (bias := getattr(model, "final_logits_bias", None)) is not None:
        logits = logits + bias
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if factor := getattr(config, "logit_scale", None):
        logits = logits * factor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits
