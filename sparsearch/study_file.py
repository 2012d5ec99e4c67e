"""Reading a study file: overrides, and every problem at once."""

from __future__ import annotations

import contextlib
import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import TypeAdapter, ValidationError

from sparsearch.config import BudgetConfig, StudyConfig, spread_budgets
from sparsearch.errors import ConfigError

__all__ = ["read_study", "sections_of"]


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are booleans, as in YAML 1.2: ``on`` is a key of a kind."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":bool")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF")
)


def read_study(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> tuple[dict[str, Any], Path]:
    """The raw content of a study file, with ``key.path=value`` overrides applied, and its folder.

    Raises:
        ConfigError: If the file is missing or no YAML mapping, or an override names no place.
    """
    if isinstance(source, Mapping):
        raw, folder = copy.deepcopy(dict(source)), Path.cwd()
    else:
        path = Path(source)
        try:
            raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError([f"cannot read {str(path)!r}: {reason}"]) from error
        except yaml.YAMLError as error:
            raise ConfigError(
                [f"{path} is not valid YAML: {' '.join(str(error).split())}"]
            ) from error
        if not isinstance(raw, dict):
            raise ConfigError([f"{path} holds no mapping of keys; see examples/demo.yaml"])
        folder = path.resolve().parent
    for override in overrides:
        _override(raw, override)
    return raw, folder


def _override(raw: dict[str, Any], override: str) -> None:
    """Apply one ``a.b.0=value``; the value is read as YAML."""
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError([f"--set {override!r} is not of the form key.path=value"])
    if parts[0] == "budgets" and len(parts) > 1 and parts[1].isdecimal():
        raw["budgets"] = spread_budgets(raw.get("budgets", []))
    place: Any = raw
    for depth, part in enumerate(parts[:-1]):
        if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, dict):
            place[part] = place.get(part) or {}
            place = place[part]
        else:
            raise ConfigError(
                [f"--set {override!r}: {'.'.join(parts[: depth + 1])} does not exist"]
            )
    try:
        value, last = yaml.load(text, _Loader), parts[-1]
    except yaml.YAMLError as error:
        raise ConfigError([f"--set {override!r}: {text!r} is not valid YAML"]) from error
    if isinstance(place, list) and last.isdecimal() and int(last) <= len(place):
        place[int(last) : int(last) + 1] = [value]
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError([f"--set {override!r}: {key} does not exist"])


def sections_of(raw: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Validate a raw study, section by section, so that one bad section hides no other.

    Returns:
        The valid sections by name, with the whole ``StudyConfig`` under ``study`` if all is
        well, and all problems.
    """
    try:
        study = StudyConfig.model_validate(dict(raw))
        study._folder = folder
        return {
            **{name: getattr(study, name) for name in StudyConfig.model_fields},
            "study": study,
        }, []
    except ValidationError as error:
        found = error.errors()
    known = copy.deepcopy(dict(raw))
    if "budgets" in known:
        known["budgets"] = spread_budgets(known["budgets"])
    for problem in found:
        if problem["type"] == "extra_forbidden":
            _drop(known, problem["loc"])
    sections = {}
    for name, field in StudyConfig.model_fields.items():
        if name == "budgets":
            sections[name] = _valid_budgets(known.get(name))
        elif name in known:
            annotated: Any = (
                Annotated[field.annotation, *field.metadata]
                if field.metadata
                else field.annotation
            )
            with contextlib.suppress(ValidationError):
                sections[name] = TypeAdapter(annotated).validate_python(known[name], strict=True)
        elif not field.is_required():
            sections[name] = field.get_default(call_default_factory=True)
    return sections, list(dict.fromkeys(_problem(p) for p in found))


def _drop(place: Any, location: Sequence[Any]) -> None:
    """Take an unknown key out, so that what stands beside it is still checked."""
    *parents, key = location
    for part in parents:
        try:
            place = place[part]
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(place, dict):
        place.pop(key, None)


def _valid_budgets(value: Any) -> list[BudgetConfig]:
    """Those budgets that can be read, whatever is wrong with the others."""
    budgets = []
    for entry in value if isinstance(value, list) else []:
        with contextlib.suppress(ValidationError):
            budgets.append(BudgetConfig.model_validate(entry))
    return budgets


def _model_of(annotation: Any) -> Any:
    """The section that an annotation names, be it an optional one."""
    parts = (annotation, *get_args(annotation))
    return next((part for part in parts if hasattr(part, "model_fields")), annotation)


def _problem(error: Any) -> str:
    """One line: where, what, and what would do."""
    location = ".".join(
        str(part) for part in error["loc"] if not str(part).startswith("function-")
    )
    if error["type"] == "extra_forbidden":
        *parents, key = error["loc"]
        model: Any = StudyConfig
        for parent in parents:
            if not isinstance(parent, int):
                field = getattr(model, "model_fields", {}).get(parent)
                model = _model_of(field.annotation) if field is not None else model
                if field is not None and parent == "budgets":
                    model = BudgetConfig
        names = list(getattr(model, "model_fields", {}))
        near = difflib.get_close_matches(str(key), names, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
        return f"{location}: unknown key; {advice}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{location}: missing"
    given = error.get("input")
    if isinstance(given, str | int | float | bool) and repr(given) not in message:
        message += f", not {given!r}"
    return f"{location}: {message}" if location else message
