"""What is wrong with a section of a study file, in words of the file: pydantic's errors, translated."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from sparsearch.errors import ConfigError

__all__ = ["problems_of", "read_section"]

S = TypeVar("S", bound=BaseModel)

_TYPES = {
    "list_type": "must be a list",
    "dict_type": "must be a mapping of keys",
    "mapping_type": "must be a mapping of keys",
}


def read_section(section: type[S], raw: Mapping[str, Any], at: str) -> S:
    """One section of a study file, given by itself.

    Args:
        section: Its model.
        raw: As in a study file.
        at: Where the section stands there.

    Raises:
        ConfigError: With every problem found.
    """
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(problems_of(error, section, raw, at)) from error


def problems_of(
    error: ValidationError, model: type[BaseModel], raw: Mapping[str, Any], at: str = ""
) -> list[str]:
    """One line per problem: where, what, and what would do.

    Args:
        error: What pydantic found.
        model: The section that it validated.
        raw: What was given.
        at: Where the section stands in the study file.
    """
    return list(dict.fromkeys(_problem(e, model, raw, at) for e in error.errors()))


def _problem(error: Any, model: type[BaseModel], raw: Mapping[str, Any], at: str) -> str:
    kind, path = error["type"], _path(error["loc"], raw)
    if kind == "missing":
        path = [*path, str(error["loc"][-1])]
    location = ".".join([at, *path] if at else path)
    if kind == "missing":
        return f"{location}: missing"
    if kind == "extra_forbidden":
        *parents, key = error["loc"]
        names = _keys(_section(model, parents))
        near = difflib.get_close_matches(str(key), names, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
        return f"{location}: unknown key; {advice}"
    if kind == "model_type":
        message = f"must be a mapping of keys: {', '.join(_keys(_section(model, error['loc'])))}"
    else:
        message = _TYPES.get(kind, str(error["msg"]).removeprefix("Value error, "))
    given = error.get("input")
    if isinstance(given, str | int | float | bool) and repr(given) not in message:
        message += f", not {given!r}"
    return f"{location}: {message}" if location else message


def _path(location: Sequence[Any], raw: Any) -> list[str]:
    """The parts of a location that the user wrote; pydantic names validators and members of unions too."""
    path = []
    for part in location:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            continue
        path.append(str(part))
    return path


def _section(model: type[BaseModel], location: Sequence[Any]) -> type[BaseModel]:
    """The section at a location, be it in a list, a mapping or a union."""
    section = model
    for part in location:
        if (field := section.model_fields.get(part)) is not None:
            section = next(_sections(field.annotation), section)
    return section


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def _keys(section: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]
