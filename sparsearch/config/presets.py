"""Presets: the recipes of the four papers, one YAML file each under ``spaces/presets``."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml

from sparsearch.errors import ConfigError

__all__ = ["preset_names", "read_preset"]


def preset_names() -> tuple[str, ...]:
    """Names of the presets that ship."""
    names = (file.name for file in _folder().iterdir())
    return tuple(sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml")))


def read_preset(name: str) -> dict[str, Any]:
    """What a preset says: its ``kinds``, and settings for search and training.

    Raises:
        ConfigError: If there is no such preset.
    """
    if name not in preset_names():
        raise ConfigError([f"unknown preset {name!r}; known: {', '.join(preset_names())}"])
    content: dict[str, Any] = yaml.safe_load(_folder().joinpath(f"{name}.yaml").read_text())
    return content


def _folder() -> Any:
    return resources.files("sparsearch.spaces").joinpath("presets")
