"""Packing: several texts in one row, none of which attends to another."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsearch.errors import BackboneError
from sparsearch.search.tasks.task import Split
from sparsearch.search.tasks.types.token_rows import IGNORED
from sparsearch.search.training.language_head import states_before_head

__all__ = ["check_packing", "pack"]

_TOLERANCE = 1e-4


def pack(split: Split, limit: int) -> Split:
    """The texts of a split in few rows: best fit, the longest first (Johnson 1973).

    There is no mask: where positions begin anew, transformers lets a text attend to itself alone. The padding at the
    end of a row is a text of its own. The first token of a text is never learnt, for it would be from the text before.

    Args:
        split: One text a row, as ``padded_split`` gives it.
        limit: Tokens of a packed row at most.
    """
    bins = _bins(split.lengths.tolist(), limit)
    longest = max(int(split.lengths[rows].sum()) for rows in bins)
    ids = torch.full((len(bins), longest), int(split.inputs["input_ids"].flatten()[0]))
    positions, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for number, rows in enumerate(bins):
        start = 0
        for row in rows:
            length = int(split.lengths[row])
            place = slice(start, start + length)
            ids[number, place] = split.inputs["input_ids"][row, :length]
            positions[number, place] = torch.arange(length)
            labels[number, place] = split.labels[row, :length]
            labels[number, start] = IGNORED
            start += length
        positions[number, start:] = torch.arange(longest - start)
    lengths = torch.tensor([int(split.lengths[rows].sum()) for rows in bins])
    return Split({"input_ids": ids, "position_ids": positions}, lengths, labels, True)


def _bins(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Rows that share one: each, the longest first, goes where it leaves the least room."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what is left of each, and its number; sorted
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = bisect_left(room, (lengths[row], 0))
        left, number = room.pop(place) if place < len(room) else (limit, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(row)
        insort(room, (left - lengths[row], number))
    return bins


@torch.no_grad()
def check_packing(model: nn.Module) -> None:
    """Check that packed texts give a model the states that each gives alone.

    Raises:
        BackboneError: If it takes no positions, or lets texts attend to each other.
    """
    device = next(model.parameters()).device
    texts = [torch.arange(n, n + 5, device=device)[None, :] for n in (0, 3)]
    packed = torch.cat(texts, dim=1)
    positions = torch.cat([torch.arange(t.shape[1], device=device) for t in texts])[None, :]
    try:
        found = states_before_head(model, {"input_ids": packed, "position_ids": positions}, "fp32")
    except TypeError:
        found = None
    alone = [states_before_head(model, {"input_ids": ids}, "fp32") for ids in texts]
    expected: Tensor = torch.cat(alone, dim=1)
    scale = max(1.0, float(expected.abs().max()))
    if found is None or not torch.allclose(found, expected, atol=_TOLERANCE * scale, rtol=0):
        raise BackboneError(
            f"task.packing: a {type(model).__name__} lets the texts of one row attend to each other",
            "leave task.packing out, or choose a model of another family (Llama, Gemma, Qwen, GPT-2)",
        )
