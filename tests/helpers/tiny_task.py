"""A task of random tokens that a tiny model learns, and settings to train on it."""

from __future__ import annotations

import torch

from sparsearch.config.study import TrainConfig
from sparsearch.search.tasks.task import Split, Task

TRAIN = TrainConfig(precision="fp32", batch_size=8)


def make_task(rows: int = 32, end: int | None = None) -> Task:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (rows, 8), generator=generator)
    if end is not None:
        ids[:, -1] = end
    split = Split(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        torch.full((rows,), 8),
        (ids[:, 1] > 30).long(),
    )
    return Task("toy", "classification", "accuracy", ("a", "b"), 8, split, split, split)
