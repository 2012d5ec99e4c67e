"""Positions of a family that is not in the table, guessed by the type and the shape of its modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sparsearch.errors import BackboneError
from sparsearch.spaces.families.position import Position, Role, widths

if TYPE_CHECKING:
    from torch import nn

__all__ = ["GuessedFamilyWarning", "describe_guess", "guess_positions", "opaque_modules"]


class GuessedFamilyWarning(UserWarning):
    """A model's family is not in the table, so its positions were guessed."""


def guess_positions(base: nn.Module, model_type: str) -> tuple[Position, ...]:
    """Linears and norms of a backbone in its order, with names that are derived from its modules' own.

    In the only list of layers a name is ``layers.3.`` and the module's path in the layer; where there are several
    lists, the path of the list stands before that; elsewhere the name is the module's path. Norms end in ``norm``.
    Blocks, heads and neurons are not guessed: modules do not say how they are connected.

    Args:
        base: The base model.
        model_type: Name of its family, for messages.

    Raises:
        BackboneError: If it has neither a linear nor a norm.
    """
    lists = tuple(_lists_of_layers(base))
    closed = (*opaque_modules(base), "pooler")
    found = []
    for path, module in base.named_modules():
        role = _role(module)
        if role is None or any(f"{path}.".startswith(f"{c}.") for c in closed):
            continue
        name, layer = _name(path, role, lists)
        bias = getattr(module, "bias", None) is not None
        found.append(Position(name, role, path, path, layer, *widths(module), has_bias=bias))
    if not found:
        raise BackboneError(
            f"model family {model_type!r} is not in the table, and no linear or norm was found in a "
            f"{type(base).__name__}",
            "choose another model, or register a table of its own: docs/plugins.md",
        )
    return tuple(found)


def describe_guess(positions: Sequence[Position], model_type: str) -> str:
    """What was guessed of a family that is not in the table, in a sentence."""
    linears = sum(p.role == "linear" for p in positions)
    return (
        f"family {model_type!r} is not in the table: {linears} linears and {len(positions) - linears} norms were "
        "guessed by type and shape and are named by their paths; blocks, heads and neurons are not guessed, and "
        "whether the model calls each of these modules is not known"
    )


def _lists_of_layers(base: nn.Module) -> Iterator[str]:
    """Paths of the outermost lists whose items are no lists and all hold linears."""
    from torch import nn

    last = None
    for path, module in base.named_modules():
        if not path or (last is not None and path.startswith(f"{last}.")):
            continue
        if isinstance(module, nn.ModuleList | nn.Sequential) and all(map(_is_layer, module)):
            last = path
            yield path


def _is_layer(item: nn.Module) -> bool:
    from torch import nn

    inside = [module for module in item.modules() if module is not item]
    return not isinstance(item, nn.ModuleList) and any(_role(m) == "linear" for m in inside)


def opaque_modules(base: nn.Module) -> tuple[str, ...]:
    """Paths of torch's own attentions and layers: they read the weights of their modules and need not call them."""
    from torch import nn

    closed = nn.MultiheadAttention | nn.TransformerEncoderLayer
    return tuple(path for path, module in base.named_modules() if isinstance(module, closed))


def _role(module: nn.Module) -> Role | None:
    """A linear in either orientation, or a norm whose form is known."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear | Conv1D):
        return "linear"
    weight = module._parameters.get("weight")
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    known = isinstance(module, nn.LayerNorm) or "RMSNorm" in type(module).__name__
    return (
        "norm" if known and eps is not None and weight is not None and weight.ndim == 1 else None
    )


def _name(path: str, role: Role, lists: Sequence[str]) -> tuple[str, int | None]:
    """A position's name and layer."""
    name, layer = path, None
    for of_layers in lists:
        if found := re.match(rf"{re.escape(of_layers)}\.(\d+)\.(.+)", path):
            prefix = f"{of_layers}." if len(lists) > 1 else ""
            name, layer = f"{prefix}layers.{found[1]}.{found[2]}", int(found[1])
    if name.endswith("norm") != (role == "norm"):  # names of norms alone end so
        name += f".{role}"
    return name, layer
