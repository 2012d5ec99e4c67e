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
_TILE = 2**23
"""The same of a frozen head."""


def token_loss(
    model: nn.Module, batch: dict[str, Tensor], precision: str, most_logits: int = _MOST_LOGITS
) -> tuple[Tensor, int]:
    """The summed cross-entropy of the learnt tokens of a batch, and how many they are.

    The forward pass ends before the head, which then runs on the hidden states that predict a learnt token: a frozen
    head on slices of its vocabulary, with the gradient of the states beside the loss; another in chunks of tokens.

    Args:
        model: With a language head.
        batch: ``labels`` (rows, tokens) hold the token at each place, or ``IGNORED``.
        precision: Of the pass.
        most_logits: Of a chunk, vocabulary times tokens; ``_TILE`` at most where the head is frozen.
    """
    head = _output_embeddings(model)
    if type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters()):
        states, wanted = _predicting(model, batch, precision)
        with autocast(states.device, precision):
            most = min(most_logits, _TILE)
            return _FrozenHead.apply(states, wanted, model, head, most), len(wanted)  # type: ignore[no-untyped-call]

    def summed(logits: Tensor, wanted: Tensor) -> tuple[Tensor]:
        return (nn.functional.cross_entropy(logits, wanted, reduction="sum"),)

    found = _of_chunks(summed, model, batch, precision, most_logits)
    return torch.stack([total for (total,) in found]).sum(), int(_learnt(batch).sum())


def learnt_losses(model: nn.Module, batch: dict[str, Tensor], precision: str) -> TokenLosses:
    """The cross-entropy of each learnt token of a batch; arguments are those of ``token_loss``."""
    found = _of_chunks(cross_entropies, model, batch, precision, _MOST_LOGITS)
    losses, residuals = map(torch.cat, zip(*found, strict=True))
    return TokenLosses(losses, residuals, _learnt(batch).nonzero()[:, 0])


def _learnt(batch: dict[str, Tensor]) -> Tensor:
    """(rows, tokens - 1) whether a place predicts a token that is learnt."""
    return batch["labels"][:, 1:] != IGNORED


def _predicting(
    model: nn.Module, batch: dict[str, Tensor], precision: str
) -> tuple[Tensor, Tensor]:
    """(tokens, width) hidden states that predict a learnt token, and (tokens,) these tokens."""
    learnt = _learnt(batch)
    states = states_before_head(model, batch, precision)[:, :-1][learnt]
    return states, batch["labels"][:, 1:][learnt]


def _of_chunks(
    compute: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    model: nn.Module,
    batch: dict[str, Tensor],
    precision: str,
    most_logits: int,
) -> list[tuple[Tensor, ...]]:
    """What is computed of the (tokens, vocabulary) logits of learnt tokens and of these tokens, chunk by chunk.

    A chunk's logits are dropped and computed anew for the gradient, so that no more than ``most_logits`` exist at a
    time; a single chunk keeps its own.
    """
    head = _output_embeddings(model)
    states, wanted = _predicting(model, batch, precision)
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


class _FrozenHead(torch.autograd.Function):
    """The summed cross-entropy of (tokens, width) states, a slice of the vocabulary at a time.

    A first pass over the slices finds the logarithm of each token's normaliser; a second one, where the states need a
    gradient, the probabilities, and adds up what each slice gives to it. A single slice is computed once.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, wanted: Tensor, model: nn.Module, head: nn.Linear, most: int
    ) -> Tensor:
        size = max(1, most // max(1, len(states)))
        starts = range(0, head.out_features, size)
        device = states.device.type
        if torch.is_autocast_enabled(device):
            states = states.to(torch.get_autocast_dtype(device))
        log_norm = states.new_full((len(states),), -torch.inf, dtype=torch.float32)
        of_target = torch.zeros_like(log_norm)
        rows = torch.arange(len(states), device=states.device)
        for start in starts:
            weight, bias = _slice(head, start, size, states.dtype)
            raw = nn.functional.linear(states, weight, bias).float()
            logits = _finished(model, raw, start)
            log_norm = torch.logaddexp(log_norm, logits.logsumexp(-1))
            here = (wanted >= start) & (wanted < start + size)
            of_target[here] = logits[rows[here], wanted[here] - start]
        loss = (log_norm - of_target).sum()
        if not ctx.needs_input_grad[0]:
            return loss
        gradient = torch.zeros_like(states, dtype=torch.float32)
        for start in starts:
            if len(starts) > 1:
                weight, bias = _slice(head, start, size, states.dtype)
                raw = nn.functional.linear(states, weight, bias).float()
            with torch.enable_grad():
                logits = _finished(model, raw.requires_grad_(), start)
            of_logits = (logits.detach() - log_norm[:, None]).exp_()
            here = (wanted >= start) & (wanted < start + size)
            of_logits[rows[here], wanted[here] - start] -= 1
            if logits is not raw:
                (of_logits,) = torch.autograd.grad(logits, raw, of_logits)
            gradient += of_logits.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return of_loss * gradient, None, None, None, None


def _slice(
    head: nn.Linear, start: int, size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Rows of a head's weight and of its bias, in a type."""
    end = start + size
    bias = None if head.bias is None else head.bias[start:end].to(dtype)
    return head.weight[start:end].to(dtype), bias


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """The forward reached the head, with these states."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


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
    """(rows, tokens, width) what the head is given; it does not run, autocast would cast all of it for no token."""

    def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Reached(args[0])

    handle = _output_embeddings(model).register_forward_pre_hook(stop)
    try:
        forward(model, batch, precision, use_cache=False)
    except _Reached as reached:
        return reached.states
    finally:
        handle.remove()
    raise BackboneError(f"a {type(model).__name__} does not call its language head")


def _output_embeddings(model: nn.Module) -> Any:
    """The last linear of a language model, also of one that is entered at a layer."""
    owner: Any = model if hasattr(model, "get_output_embeddings") else model.model
    head = owner.get_output_embeddings()
    if head is None:
        raise BackboneError(f"a {type(owner).__name__} has no language head")
    return head


def _finished(model: nn.Module, logits: Tensor, start: int = 0) -> Tensor:
    """What BART, Granite, Cohere and Gemma do with logits, as their configs say; these logits begin at ``start``."""
    if (bias := getattr(model, "final_logits_bias", None)) is not None:
        logits = logits + bias[..., start : start + logits.shape[-1]]
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if factor := getattr(config, "logit_scale", None):
        logits = logits * factor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits
