"""Rows of tokens, each with a label or none: padded to one length, refused where they are too long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sparsearch.config.tasks.task import TaskConfig
from sparsearch.errors import DataError
from sparsearch.search.tasks.task import Split

__all__ = ["IGNORED", "padded_split"]

IGNORED = -100
"""Label of a token that is read, not learnt; as everywhere in PyTorch."""


def padded_split(
    config: TaskConfig,
    split: str,
    rows: Sequence[tuple[list[int], list[int]]],
    tokenizer: Any,
    limit: int,
) -> Split:
    """A split of rows of any lengths, padded at the right.

    Args:
        config: The task.
        split: Name of the split, for messages.
        rows: Token ids and labels of each row, as many of both.
        tokenizer: Has the padding token.
        limit: Tokens per row at most.

    Raises:
        DataError: If a row is longer. None is cut: a completion that ends too early would be learnt as one that ends
            there, and entities beyond the cut would not be counted.
    """
    lengths = [len(ids) for ids, _ in rows]
    longer = [row for row, length in enumerate(lengths) if length > limit]
    most = max(lengths)
    if longer:
        raise DataError(
            f"split {split!r}, row {longer[0]}: {lengths[longer[0]]} tokens, more than {limit} "
            f"({len(longer)} such rows, the longest has {most})",
            f"set task.max_length: {most}, or shorten the rows"
            if limit == config.max_length
            else f"the model takes no more than {limit} tokens: shorten or split the rows",
        )
    missing = [most - length for length in lengths]
    pad = tokenizer.pad_token_id
    ids = [row + [pad] * n for (row, _), n in zip(rows, missing, strict=True)]
    mask = [[1] * length + [0] * n for length, n in zip(lengths, missing, strict=True)]
    labels = [row + [IGNORED] * n for (_, row), n in zip(rows, missing, strict=True)]
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    return Split(inputs, torch.tensor(lengths), torch.tensor(labels), token_labels=True)
