"""YAML and JSON texts, read so that nothing in them gets lost in silence; values as JSON can hold them."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import yaml

__all__ = ["plain", "read_json", "read_yaml"]

_MOST_VALUES = 100_000
"""A study has some hundred values; aliases of aliases make billions out of a few lines."""


_AS_IN_1_1 = ("null", "merge")
_CORE = {
    "bool": (r"(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "int": (r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    "float": (
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        "-+.0123456789",
    ),
}
"""The core schema of YAML 1.2 (section 10.3.2): what a plain scalar of a type looks like, and how it may begin."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that notes keys that stand twice and refuses aliases that explode or hold themselves.

    Plain scalars are what the core schema of YAML 1.2 says, not what YAML 1.1 did: ``on`` is a text and a key of a
    kind, ``010`` is ten, ``1:30`` is a text, ``1e-3`` is a number.
    """

    yaml_implicit_resolvers = {
        first: [
            (tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in _AS_IN_1_1
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[str] = []
        self._sizes: dict[int, float] = {}

    def compose_sequence_node(self, anchor: Any) -> Any:
        """A list, counted."""
        node = super().compose_sequence_node(anchor)
        self._count(node, node.value)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping as it is written: merge keys add to it later, and may name what it has already."""
        node = super().compose_mapping_node(anchor)
        self._count(node, [*itertools.chain(*node.value)])
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                merges = key.tag.endswith(":merge")  # which stands for no value of its own
                name = key.value if merges else self.construct_object(key)
                line = key.start_mark.line + 1
                if name in lines:
                    where = (
                        f"line {line}"
                        if lines[name] == line
                        else f"lines {lines[name]} and {line}"
                    )
                    self.repeated.append(f"{name!r} in {where}")
                lines[name] = line
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """A value; one that its tag does not fit is named with its line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            problem = f"{str(node.value)[:40]!r} is no {node.tag.rpartition(':')[2]}"
            raise yaml.MarkedYAMLError(
                problem=problem, problem_mark=node.start_mark, note="in quotes it is a text"
            ) from error

    def _count(self, node: Any, children: Sequence[Any]) -> None:
        """Count the values in a node with all aliases written out; one that is not composed yet holds itself."""
        sizes = (
            1 if isinstance(c, yaml.ScalarNode) else self._sizes.get(id(c), math.inf)
            for c in children
        )
        self._sizes[id(node)] = size = 1 + sum(sizes)
        if size > _MOST_VALUES:
            problem = f"aliases hold themselves, or stand for more than {_MOST_VALUES:,} values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)

    def _construct_int(self, node: Any) -> int:
        """A number that begins with 0 is decimal, unless 0o or 0x stands before it."""
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def _construct_float(self, node: Any) -> float:
        """Python writes infinity and NaN without the point."""
        text = self.construct_scalar(node)
        return float(text.replace(".", "") if text[-1].isalpha() else text)


for _type, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", re.compile(_pattern), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader._construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader._construct_float)


def read_yaml(text: str) -> Any:
    """The value that a YAML text stands for.

    Raises:
        ValueError: If it is malformed, nested too deeply, or has a mapping in which a key stands twice.
    """
    try:
        loader = _Loader(text)
        value = loader.get_single_data()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except Exception as error:  # whatever a parser raises, it is the text that is wrong
        raise ValueError(" ".join(str(error).split())) from error
    if loader.repeated:
        raise ValueError(f"a key stands twice: {', '.join(loader.repeated)}")
    return value


def read_json(text: str) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: If it is malformed, nested too deeply, or has an object in which a key stands twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_key_once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def plain(value: Any) -> Any:
    """A value as JSON can hold it: what is not finite becomes null, a time the text of ISO 8601.

    >>> plain({"score": float("nan"), 3: (1, 2)})
    {'score': None, '3': [1, 2]}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def _each_key_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"a key stands twice: {key!r}")
        found[key] = value
    return found
