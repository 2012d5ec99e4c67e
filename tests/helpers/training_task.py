"""A task of either type, of random tokens, that a short training learns."""

from __future__ import annotations

import torch

from sparsearch.search.tasks.task import Split, Task


def make_task(rows=48, kind="classification") -> Task:
    ids = torch.randint(5, 60, (rows, 8), generator=torch.Generator().manual_seed(0))
    labels = (ids[:, 1] > 30).long() if kind == "classification" else ids[:, 1] / 60
    split = Split(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.full((rows,), 8), labels
    )
    metric = "accuracy" if kind == "classification" else "pearson"
    return Task(
        "toy", kind, metric, ("a", "b") if metric == "accuracy" else (), 8, split, split, split
    )
