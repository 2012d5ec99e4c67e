r"""What is declared of a family of transformers.

How a path is written:

| path | means |
|---|---|
| ``a.b`` | a module |
| ``a\|b`` | the first of two that exists |
| ``a[1/3]`` | the second third of a fused projection's outputs |
| ``a[q]``, ``a[k]``, ``a[v]`` | one of all queries, all keys and all values, in this order, of a fused projection |
| ``a[q per group]`` | the same where the queries, the key and the value of heads that share a key lie together |
| ``a[0::2]`` | every second output, from the first on |
| ``a[b:0]`` | the first part of each run in a projection of layout b, see ``Family.layouts`` |
| ``a@p`` | the parameter p of module a, a matrix (out, in) by which the module multiplies in its own way |
| ``a@p.T`` | the same, (in, out) |
| ``a>b`` | a block that is entered at a and left at b; ``a>a`` where the module is the block |
| ``a,b>>c`` | heads or neurons that a and b compute and c reads |

Where the name of a position has a ``*``, the parameter holds the matrices of all experts, (experts, out, in): each is a
position, named by its number.

A path that a model lacks (a gate in an ungated feed-forward), or a norm without weights, is no position of that model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Family", "Stack"]


@dataclass(frozen=True)
class Stack:
    """A stack of equal layers.

    Attributes:
        prefix: Of its positions' names.
        layers: Path of the list of layers.
        paths: Name of a position in a layer -> its path there.
        beside_first: Path of a module that runs beside whichever layer is the first, "" if none is.
        repeats: Told of the config and a layer, how often it runs, where layers share their weights.
        config: Name of the section of the config that says how many heads it has, "" where the config itself does.
    """

    prefix: str
    layers: str
    paths: Mapping[str, str]
    beside_first: str = ""
    repeats: Callable[[Any, int], int] | None = None
    config: str = ""


@dataclass(frozen=True)
class Family:
    """Where one architecture keeps its layers, and what lies outside them.

    Attributes:
        stacks: One, or encoder and decoder.
        outside: Name of a position outside the layers -> its path.
        head_counters: Attributes of its attention: its heads, and their features together; None if it counts neither.
        tokens: Names of the special tokens in its config that change what the model computes.
        rows_end: Whether a classifier pools where a row has its end token, so that each row must end with one.
        key_heads: Told of the config, the key heads of an attention, where ``num_key_value_heads`` does not say it.
        layouts: Name of how a projection is fused -> told of the config, the features of each part in a run.
        norms_by_head: Whether norms of queries run where heads already come before tokens.
        recurrent: Module of a layer that mixes tokens by a state: its queries are scored with no keys.
        aside: Path of a module outside the layers that no position may reach -> why.
        lacks: Role that no position of the family has, or of some of its modules -> why.
        keep_heads: Told of an attention and the heads that stay, where weights and counters are not all there is.
    """

    stacks: tuple[Stack, ...]
    outside: Mapping[str, str]
    head_counters: tuple[str, str] | None = None
    tokens: frozenset[str] = frozenset()
    rows_end: bool = False
    key_heads: Callable[[Any], int] | None = None
    layouts: Mapping[str, Callable[[Any], tuple[int, ...]]] = field(default_factory=dict)
    norms_by_head: bool = False
    recurrent: str = ""
    aside: Mapping[str, str] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)
    keep_heads: Callable[[nn.Module, Sequence[int]], None] | None = None
