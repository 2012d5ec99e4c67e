"""The part of the vocabulary that a task reads: where embeddings train, only its rows need gradients and moments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sparsearch.search.tasks.task import Task

__all__ = ["only_rows_read"]


@contextlib.contextmanager
def only_rows_read(
    model: nn.Module, task: Task, groups: list[dict[str, Any]]
) -> Iterator[list[dict[str, Any]]]:
    """Hold, inside the context, the trained rows of the token embeddings in a small table of their own.

    A row that no batch reads has no gradient and, without weight decay, never moves; yet the gradient of the whole
    table is filled, clipped and stepped over. MiniLM's 30,522 rows are half of its weights, and a data set reads a
    tenth to a third of them. The numbers are those of the whole table.

    Args:
        model: Its token embeddings train, or the context does nothing; so it does where another module holds the
            same weight (a tied output layer), or the model reads what it writes.
        task: Training and validation splits are all that may be read inside.
        groups: Of the optimiser, without weight decay.

    Yields:
        The groups, the small table in the place of the large one.
    """
    embedding = _embedding_of(model)
    reads_tokens = "input_ids" in task.train.inputs
    if (
        embedding is None
        or not reads_tokens
        or not embedding.weight.requires_grad
        or not _held_once(model, embedding)
    ):
        yield groups
        return
    read = task.behaviour.tokens_read(task)
    if read is None:
        yield groups
        return
    whole = embedding.weight
    padding = embedding.padding_idx
    if padding is not None:
        read = torch.cat([read, torch.tensor([padding])])
    rows: Tensor = torch.unique(read)
    rows = rows.to(whole.device)
    place = torch.full((len(whole),), -1, device=whole.device).index_copy_(
        0, rows, torch.arange(len(rows), device=whole.device)
    )
    table = nn.Parameter(whole.detach()[rows])
    hook = embedding.register_forward_pre_hook(lambda _, args: (place[args[0]], *args[1:]))
    embedding.weight = table
    if padding is not None:
        embedding.padding_idx = int(place[padding])
    try:
        yield [
            group | {"params": [table if p is whole else p for p in group["params"]]}
            for group in groups
        ]
    finally:
        hook.remove()
        embedding.weight, embedding.padding_idx = whole, padding
        with torch.no_grad():
            whole[rows] = table.detach()


def _embedding_of(model: nn.Module) -> nn.Embedding | None:
    """The token embeddings, where the model says which they are and a lookup is all that they do."""
    try:
        found = model.get_input_embeddings()  # type: ignore[operator]
    except (
        NotImplementedError
    ):  # a model whose names transformers does not know, and that does not say it either
        return None
    return found if isinstance(found, nn.Embedding) and found.max_norm is None else None


def _held_once(model: nn.Module, embedding: nn.Embedding) -> bool:
    holders = [
        m for m in model.modules() if any(p is embedding.weight for p in m._parameters.values())
    ]
    return len(holders) == 1
