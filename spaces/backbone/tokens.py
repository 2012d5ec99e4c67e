"""Tokens that a backbone reads: how many, and which one pads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from sparsearch.spaces.families.registry import family_of

__all__ = [
    "longest_input",
    "most_tokens",
    "pads_as_configured",
    "vocabulary_of",
]


def pads_as_configured(config: Any) -> bool:
    """Whether the config's padding token is a part of what the model computes, so that no other may pad."""
    tokens = family_of(config.model_type).tokens
    return "pad_token_id" in tokens and getattr(config, "pad_token_id", None) is not None


def most_tokens(config: Any) -> int | None:
    """Longest input that a model's position embeddings allow; None where they are relative."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and pads_as_configured(config):
        return positions - int(config.pad_token_id) - 1
    return positions


def vocabulary_of(model: PreTrainedModel) -> int | None:
    """Tokens that a model has embeddings of; None where it reads none, or does not say which module embeds them."""
    from torch import nn

    try:
        found = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return found.num_embeddings if isinstance(found, nn.Embedding) else None


def longest_input(wanted: int, tokenizer: Any, most: int | None) -> int:
    """Tokens at which rows are cut: as wanted, or fewer where the tokenizer or the model (``most_tokens``) ends."""
    return min(wanted, int(tokenizer.model_max_length), most or wanted)
