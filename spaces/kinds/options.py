"""Options of kinds: what their fields are annotated with, and the check of what a user wrote."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from sparsearch.spaces.kinds.base import Kind

__all__ = ["Count", "Scale", "check_options"]

Count: TypeAlias = Annotated[int, Field(gt=0)]
"""A whole number above 0."""

Scale: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number above 0; a whole one will do."""


def check_options(kind: type[Kind], options: Mapping[str, object]) -> dict[str, Any]:
    """Options as the fields of a kind want them: 16 becomes 16.0 where a field is a float.

    Args:
        kind: Its fields are annotated with types, ``Literal`` words, or limits of pydantic.
        options: As the user wrote them.

    Raises:
        ValueError: A message for each option that is unknown or wrong, as the error's arguments.
    """
    model = _model(kind)  # type: ignore[arg-type]  # classes are hashable
    try:
        return model(**options).model_dump(exclude_unset=True)
    except ValidationError as error:
        names = ", ".join(model.model_fields) or "none"
        raise ValueError(*(_message(kind.name, e, names) for e in error.errors())) from error


@functools.cache
def _model(kind: type[Kind]) -> type[BaseModel]:
    """The options of a kind as a pydantic model."""
    hints = get_type_hints(kind, include_extras=True)
    fields: Any = {
        name: (hints[name], field.default)
        for name, field in kind.__dataclass_fields__.items()  # type: ignore[attr-defined]
    }
    strict = ConfigDict(strict=True, extra="forbid")
    model: type[BaseModel] = create_model(kind.__name__, __config__=strict, **fields)
    return model


_TYPES = {"int_type": "int", "float_type": "float", "bool_type": "bool", "string_type": "str"}


def _message(kind: str, error: ErrorDetails, known: str) -> str:
    """What is wrong with one option."""
    option, value, limits = error["loc"][0], error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"kind {kind} has no option {option!r}; it has: {known}"
        case "greater_than" if limits["gt"] == 0:
            wanted = "positive"
        case "greater_than_equal":
            wanted = f"at least {limits['ge']}"
        case "finite_number":
            wanted = "finite"
        case "literal_error":
            words = limits["expected"].replace(" or ", ", ").replace("'", "")
            wanted = f"one of {words}" if isinstance(value, str) else "str"
        case other:
            wanted = _TYPES.get(other) or error["msg"]
    return f"kind {kind}: {option} must be {wanted}, not {value!r}"
