"""Modules whose gates are shut need no forward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsearch.search.gates.gates import Gates
from sparsearch.search.gates.targets import Targets

__all__ = [
    "IdleModules",
]


class IdleModules:
    """Which candidates are so improbable that they need not run, known without waiting for the device.

    Probabilities start their way to the host at one look and are read at the next, which on a GPU
    is long after they arrived.

    Args:
        gates: Whose probabilities.
        threshold: Smallest probability that runs.
    """

    def __init__(self, gates: Gates, threshold: float) -> None:
        self.gates, self.threshold = gates, threshold
        self._coming: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    @torch.no_grad()
    def refresh(self, targets: Targets) -> list[bool]:
        """For every candidate whether it is idle, by the probabilities of the look before this one."""
        p = self.gates.probabilities(targets)
        known = self._coming if self._arrived is None or self._arrived.query() else None  # type: ignore[no-untyped-call]
        if p.device.type == "cuda":
            self._coming = torch.empty(p.shape, dtype=p.dtype, pin_memory=True)
            self._coming.copy_(p, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        else:
            self._coming = known = p
        if known is None:
            return [False] * len(p)
        return (known < self.threshold).tolist()
