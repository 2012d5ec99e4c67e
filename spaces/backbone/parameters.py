"""The parts of a model: backbone, head, positions, layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sparsearch.spaces.backbone.quantised.weights import full_count
from sparsearch.spaces.families.position import Position
from sparsearch.spaces.families.registry import family_of
from sparsearch.spaces.families.scan import scan

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "NEW_POOLER",
    "backbone_modules",
    "base_of",
    "count_params",
    "count_with_pooler",
    "family_name",
    "host_weight",
    "head_parameters",
    "is_pooler",
    "language_head_parameters",
    "mark_new_pooler",
    "layers_of",
    "positions_of",
    "replaced_weights",
]

ATTACHED = "sparsearch"
"""Name under which attached modules live on a model; they are no part of the backbone."""


NEW_POOLER = "sparsearch_new_pooler"


def base_of(model: nn.Module) -> nn.Module:
    """The backbone inside a model with a head (the model itself if it has none).

    A head on one tower of two (an image classifier on CLIP) has that tower for a backbone, though transformers does not
    say so: it is the only module right inside the model that has a family of its own.
    """
    from torch import nn

    base = getattr(model, "base_model", model)
    if isinstance(base, nn.Module) and base is not model:
        return base
    family = _family(model)
    towers = [inside for inside in model.children() if family not in (None, _family(inside))]
    towers = [tower for tower in towers if _family(tower) is not None]
    return towers[0] if len(towers) == 1 else model


def _family(module: nn.Module) -> str | None:
    """``config.model_type`` of a model; None of any other module."""
    return getattr(getattr(module, "config", None), "model_type", None)


def family_name(model: nn.Module) -> str:
    """``config.model_type`` of a model's backbone."""
    return str(base_of(model).config.model_type)  # type: ignore[union-attr]


@contextlib.contextmanager
def replaced_weights(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Other weights in the place of some modules' own, inside the context.

    Args:
        model: Its own weights are never written to.
        weights: Path of a position's host in the backbone -> its weight meanwhile.
    """
    places = {path: _weight_place(base_of(model), path) for path in weights}
    own = {path: module.get_parameter(name) for path, (module, name) in places.items()}
    try:
        for path, (module, name) in places.items():
            setattr(module, name, weights[path])
        yield
    finally:
        for path, (module, name) in places.items():
            setattr(module, name, own[path])


def host_weight(base: nn.Module, path: str) -> nn.Parameter:
    """The weight of a position's host, by ``Position.host``."""
    module, name = _weight_place(base, path)
    return module.get_parameter(name)


def _weight_place(base: nn.Module, path: str) -> tuple[nn.Module, str]:
    """A host's module, and the name of its weight there."""
    above, _, name = path.rpartition(".")
    owner = base.get_submodule(above)
    return (owner, name) if name in owner._parameters else (base.get_submodule(path), "weight")


def positions_of(model: nn.Module) -> tuple[Position, ...]:
    """Every position of a model's backbone, see ``families.scan``."""
    return scan(base_of(model), family_name(model))


def layers_of(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList] | None:
    """The list of layers with the module that holds it and its name there.

    None for several stacks, for a family that is not in the table, where another module runs beside whichever layer
    is the first, where layers share weights, and where they are of several types, which the model tells by their
    place in the list.
    """
    from torch import nn

    base = base_of(model)
    stacks = family_of(base.config.model_type).stacks  # type: ignore[union-attr,arg-type]
    types = getattr(base.config, "layer_types", None) or ()
    if len(stacks) != 1 or stacks[0].repeats is not None or len(set(types)) > 1:
        return None
    stack = stacks[0]
    if stack.beside_first and stack.beside_first in dict(base.named_modules()):
        return None
    owner, _, name = stack.layers.rpartition(".")
    layers = base.get_submodule(stack.layers)
    assert isinstance(layers, nn.ModuleList), "layers stand in a list"
    return base.get_submodule(owner), name, layers


def backbone_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Named modules of the backbone, named under it; nothing attached, no language head."""
    head = _language_head(model)
    for name, module in base_of(model).named_modules():
        if not f"{name}.".startswith(f"{ATTACHED}.") and module is not head:
            yield name, module


def backbone_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters of the backbone, named under it; nothing attached, no head, no new pooler."""
    new = {id(p) for n, p in model.named_parameters() if n in getattr(model, NEW_POOLER, ())}
    for name, parameter in _named_without_head(model):
        if id(parameter) not in new:
            yield name, parameter


def head_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters of the task head: what is neither backbone nor attached, nor a language head.

    A pooler that the checkpoint lacked is part of it: drawn anew, trained and stored with it.
    """
    if not _is_language_model(model):
        yield from _outside(model)


def language_head_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters of a language model above its backbone: pretrained as it is, and frozen with it.

    Output embeddings that are tied to those of the input are the backbone's.
    """
    if _is_language_model(model):
        yield from _outside(model)


def _is_language_model(model: nn.Module) -> bool:
    """Whether a model has output embeddings."""
    return _language_head(model) is not None


def _language_head(model: nn.Module) -> nn.Module | None:
    """The output embeddings of a language model."""
    find = getattr(model, "get_output_embeddings", None)
    found: nn.Module | None = None if find is None else find()
    return found


def _named_without_head(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of the base, nothing attached; where a model is its own base (T5) no output embeddings.

    Tied ones are the input's, under whose name they come first.
    """
    base = base_of(model)
    head = _language_head(model) if base is model else None
    paths = {f"{name}." for name, module in base.named_modules() if module is head}
    outside = (f"{ATTACHED}.", *paths)
    for name, parameter in base.named_parameters():
        if not name.startswith(outside):
            yield name, parameter


def _outside(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters that are neither the backbone's nor attached."""
    inside = {id(p) for _, p in backbone_parameters(model)}
    for name, parameter in model.named_parameters():
        if id(parameter) not in inside and not name.startswith(f"{ATTACHED}."):
            yield name, parameter


def count_params(model: nn.Module) -> int:
    """Parameters of the backbone."""
    return sum(full_count(p) for _, p in backbone_parameters(model))


def count_with_pooler(model: nn.Module) -> int:
    """The same with a pooler that the checkpoint lacked, as ``skeleton``, which sees no checkpoint, counts them."""
    return sum(full_count(p) for _, p in _named_without_head(model))


def mark_new_pooler(model: nn.Module, params: int) -> None:
    """Take a model's pooler for a new one where the checkpoint, of so many parameters, had none.

    ``load_model`` sees what a checkpoint lacks; of a model from elsewhere only the numbers tell.
    """
    pooler = {n: p for n, p in model.named_parameters() if is_pooler(n)}
    if pooler and count_params(model) - sum(map(full_count, pooler.values())) == params:
        setattr(model, NEW_POOLER, frozenset(pooler))


def is_pooler(name: str) -> bool:
    """Whether a parameter belongs to the pooler."""
    return ".pooler." in name
