"""Tokens that a backbone reads: how many, and which one pads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from sparsearch.errors import BackboneError
from sparsearch.spaces.backbone.inputs.samples import reads_images, sample_inputs
from sparsearch.spaces.backbone.parameters import base_of, positions_of
from sparsearch.spaces.families.registry import family_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = [
    "count_tokens",
    "longest_input",
    "most_tokens",
    "pads_as_configured",
    "row_tokens",
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


class _Reached(Exception):  # noqa: N818 - a signal, not an error
    """The forward reached the first layer, with so many tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


def count_tokens(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Tokens of a row in a backbone's first layer: of an image its patches, and what the model puts before them.

    The embeddings run and nothing else, on the meta device too.

    Args:
        model: With or without a head.
        inputs: Of the model, the first axis is that of rows.

    Raises:
        BackboneError: If the model does not take such inputs.
    """
    import torch

    def stop(module: nn.Module, args: tuple[Tensor, ...]) -> NoReturn:
        raise _Reached(args[0].shape[-2])

    first = next(p for p in positions_of(model) if p.role == "linear" and p.layer is not None)
    handle = base_of(model).get_submodule(first.module).register_forward_pre_hook(stop)
    try:
        with torch.no_grad():
            model(**inputs)
    except _Reached as reached:
        return reached.tokens
    except (TypeError, ValueError, RuntimeError) as error:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
        raise BackboneError(
            f"a {type(model).__name__} does not take {shapes}: {error}",
            "put the processor that the model was trained with into its folder",
        ) from error
    finally:
        handle.remove()
    raise BackboneError(f"a {type(model).__name__} does not call {first.name}")


def row_tokens(model: nn.Module, wanted: int) -> int:
    """Tokens of a row in a backbone's first layer: as many as wanted, or those of an image.

    Raises:
        BackboneError: If the model reads neither tokens nor images.
    """
    inputs = sample_inputs(model, 1, wanted)
    return count_tokens(model, inputs) if reads_images(model) else wanted
