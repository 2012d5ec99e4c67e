"""Reading a study file: overrides, and every problem at once."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from sparsearch.config.problems import problems_of
from sparsearch.config.study import BudgetConfig, StudyConfig, spread_budgets
from sparsearch.documents import read_yaml
from sparsearch.errors import ConfigError

__all__ = ["read_study", "validate_study"]


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
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError([f"cannot read {str(path)!r}: {reason}"]) from error
        try:
            raw = read_yaml(text)
        except ValueError as error:
            raise ConfigError([f"{path} is not valid YAML: {error}"]) from error
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
            index: int | str = int(part)
        elif isinstance(place, dict):
            index, place[part] = part, place.get(part) or {}
        else:
            raise ConfigError(
                [f"--set {override!r}: {'.'.join(parts[: depth + 1])} does not exist"]
            )
        place[index] = copy.copy(place[index])  # an alias may stand for it elsewhere too
        place = place[index]
    try:
        value, last = read_yaml(text), parts[-1]
    except ValueError as error:
        raise ConfigError([f"--set {key}: the value is not valid YAML: {error}"]) from error
    if isinstance(place, list) and last.isdecimal() and int(last) <= len(place):
        place[int(last) : int(last) + 1] = [value]
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError([f"--set {override!r}: {key} does not exist"])


def validate_study(raw: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
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
        invalid = error
    known = copy.deepcopy(dict(raw))
    if "budgets" in known:
        known["budgets"] = spread_budgets(known["budgets"])
    for problem in invalid.errors():
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
    return sections, problems_of(invalid, StudyConfig, raw)


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
