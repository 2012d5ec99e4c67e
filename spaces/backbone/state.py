"""States of a loaded model that rule work on its weights out, each with its name and the way out of it.

Attaching, merging and exporting read weights where the backbone's family has them. A model may be wrapped, offloaded
or quantised: its weights are then elsewhere, or are no plain numbers. Each entry point calls ``check_state`` first.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sparsearch.errors import ModelStateError
from sparsearch.spaces.backbone._states import (
    FINDERS,
    ModelState,
    StateName,
    find_attached,
    find_compiled,
    has_module,
)
from sparsearch.spaces.backbone.loading_lock import LOADING
from sparsearch.spaces.backbone.parameters import ATTACHED, base_of
from sparsearch.spaces.backbone.quantised.weights import full_count
from sparsearch.spaces.families.registry import family_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ModelState", "StateName", "check_attachment", "check_half", "check_state", "states_of"]


def check_state(model: nn.Module, allow: Collection[StateName] = ()) -> None:
    """Refuse a model in any state but the allowed ones; nothing is changed.

    Args:
        model: Any module.
        allow: States that the caller can work with.

    Raises:
        ModelStateError: With the state that was found first, or if it is no module.
    """
    from torch import nn

    if not isinstance(model, nn.Module):
        raise ModelStateError(
            f"{model!r:.60} is no model",
            "load one, for example with AutoModelForSequenceClassification.from_pretrained(path)",
        )
    for state in states_of(model):
        if state.name not in allow:
            raise ModelStateError(state.message, state.hint)


def check_attachment(model: nn.Module) -> None:
    """Refuse a model from which the structure attached to it cannot be taken off.

    Raises:
        ModelStateError: If the structure is attached to a part of the model, or to a model that this is a part of;
            or if compiled code runs the structure.
    """
    for state in (*find_compiled(model), *find_attached(model)):
        if state.name != "attached":
            raise ModelStateError(state.message, state.hint)


def states_of(model: nn.Module) -> Iterator[ModelState]:
    """The states of a model, the outermost first; none for a plain transformers model with its weights in memory.

    Args:
        model: Any module. What is attached by this package is left out of the look.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> small = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
        >>> [state.name for state in states_of(BertModel(small))]
        []
    """
    for find_states in FINDERS:
        yield from find_states(model)


def check_half(model: nn.Module, names: Iterable[str], params: int) -> None:
    """Refuse an encoder for a structure of encoder and decoder, and the reverse.

    Args:
        model: Of a family with several stacks of layers, or of any other.
        names: Positions that the structure names.
        params: Parameters of the structure's backbone.

    Raises:
        ModelStateError: If the model lacks a stack that the structure's backbone has, or the reverse.
    """
    base = base_of(model)
    stacks = family_of(base.config.model_type).stacks  # type: ignore[union-attr,arg-type]
    if len(stacks) < 2:
        return
    missing = [stack.prefix for stack in stacks if not has_module(base, f"{stack.layers}.0")]
    if missing:
        named = any(name.startswith(tuple(missing)) for name in names)
        if named or _count([_whole(base.config)]) == params:
            raise ModelStateError(
                f"the model, a {type(model).__name__}, has no {missing[0][:-1]}, which the structure's "
                "backbone has",
                "load the whole encoder-decoder, for example with AutoModelForSequenceClassification",
            )
        return
    halves = {stack.prefix[:-1]: stack.layers.partition(".")[0] for stack in stacks}
    others = (*halves.values(), ATTACHED)
    shared = [module for name, module in base.named_children() if name not in others]
    for half, module in halves.items():
        if _count([base.get_submodule(module), *shared]) == params:
            raise ModelStateError(
                f"the structure belongs to the {half} alone; the model, a {type(model).__name__}, is a whole "
                "encoder-decoder",
                f"load the {half} alone, as when the structure was made (T5EncoderModel)",
            )


def _whole(config: Any) -> nn.Module:
    """The encoder-decoder that a half's config is of, on the meta device."""
    import torch
    from transformers import AutoModel

    config = copy.deepcopy(config)
    config.is_encoder_decoder = True
    with LOADING, torch.device("meta"):
        whole: nn.Module = AutoModel.from_config(config)
    return whole


def _count(modules: Iterable[nn.Module]) -> int:
    """Parameters of modules together, shared ones once."""
    return sum({id(p): full_count(p) for module in modules for p in module.parameters()}.values())
