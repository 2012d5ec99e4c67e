"""The form that launches a study."""

from __future__ import annotations

import json
from typing import Annotated, Any

import yaml
from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import HTMLResponse

from sparsearch.config.presets import preset_names
from sparsearch.config.reader import read_study
from sparsearch.config.registry import STRATEGIES
from sparsearch.documents import read_yaml
from sparsearch.errors import ConfigError
from sparsearch.service.access import may_run
from sparsearch.service.pages.rendering import page
from sparsearch.service.pages.study import Views
from sparsearch.service.routes.asked import OfStudy

__all__ = ["router"]

router = APIRouter(prefix="/launch", include_in_schema=False, dependencies=[Depends(may_run)])

_FIELDS = {
    "name": "my-study",
    "model.path": "",
    "task.data.path": "json",
    "task.data.data_files.train": "train.jsonl",
    "task.data.data_files.validation": "validation.jsonl",
    "task.data.data_files.test": "test.jsonl",
    "task.text": ["text"],
    "task.label": "label",
    "task.metric": "accuracy",
    "space": {"preset": "fine"},
    "budgets": {"max_trainable_params": ["0.01%", "0.1%"]},
    "baselines": ["random", "lora-qv", "probe", "head", "full"],
    "seeds": [0, 1, 2],
}
"""Settings with a field of their own, and what stands in it at first. All else is in one field as YAML."""

_STORED_ONLY = ("data_sha256", "reader_sha256")
"""What a stored study says of the content of its files, and none is asked for."""


@router.get("", response_class=HTMLResponse)
def form(request: Request, views: Views, clone: OfStudy = None) -> Any:
    """Show the form, empty or with what a study was launched with."""
    if clone is None:
        fields, rest = dict(_FIELDS), {}
    else:
        view = views.of(clone)
        rest = {k: v for k, v in view.study.settings.items() if k not in _STORED_ONLY}
        fields = {key: _take(rest, key.split(".")) for key in _FIELDS}
        fields["name"] = f"{view.study.name}-2"
        strategies = dict.fromkeys(t.strategy for t in view.trials)
        fields["baselines"] = [s for s in strategies if s != view.summary.searched]
        fields["seeds"] = sorted({t.seed for t in view.trials})
    return page(
        request,
        "launch.html",
        title="Launch",
        clone=clone,
        fields={key: _flow(value) for key, value in fields.items()},
        rest=_block(rest) if rest else "",
        presets=preset_names(),
        strategies=STRATEGIES.names(),
    )


@router.post("/study")
def study(
    fields: Annotated[dict[str, str], Body(max_length=100)],
    rest: Annotated[str, Body(max_length=100_000)] = "",
) -> Any:
    """What a filled form says, as a study for the API."""
    try:
        content = read_yaml(rest) or {}
    except ValueError as error:
        raise ConfigError([f"further settings are not valid YAML: {error}"]) from error
    if not isinstance(content, dict):
        raise ConfigError(
            ["further settings hold no mapping of keys"], "write them like train: {epochs: 3}"
        )
    if unknown := sorted(fields.keys() - _FIELDS.keys()):
        raise ConfigError([f"the form has no field {name!r}" for name in unknown])
    filled = [f"{key}={value}" for key, value in fields.items() if value.strip()]
    return read_study(content, filled)[0]


def _take(settings: dict[str, Any], path: list[str]) -> Any:
    """Take a setting out of nested ones, and with it what is then empty; None if it is not there."""
    first, *others = path
    if not others:
        return settings.pop(first, None)
    inner = settings.get(first)
    found = _take(inner, others) if isinstance(inner, dict) else None
    if inner == {}:
        del settings[first]
    return found


def _flow(value: Any) -> str:
    """A value in one line, which reads as that value: bare if it may be, else as YAML, or as JSON, which YAML reads."""
    if value is None:
        return ""
    dumped = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    text: str = value if isinstance(value, str) else dumped.strip()
    same = "\n" not in text and _reads_as(text, value)
    return text if same else json.dumps(value, ensure_ascii=False)


def _block(settings: dict[str, Any]) -> str:
    """Settings over several lines, which read as they are."""
    text: str = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    same = _reads_as(text, settings)
    return text if same else json.dumps(settings, indent=2, ensure_ascii=False)


def _reads_as(text: str, value: Any) -> bool:
    """Whether a text is that value, of that type: the YAML that is written here is 1.1, what is read is 1.2."""
    try:
        return repr(read_yaml(text)) == repr(value)
    except ValueError:
        return False
