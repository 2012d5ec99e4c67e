"""What gates are held to in expectation, and how that changes over a search."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sparsearch.search.training.seeds import derive

__all__ = ["BudgetSchedule", "Targets"]


@dataclass(frozen=True)
class Targets:
    """A budget in the units of gates, as expectations.

    Attributes:
        params: Trainable parameters that are on.
        flops_saved: FLOPs per token that removals save.
        weights_removed: Weights that masks set to zero or removals take away.
    """

    params: float
    flops_saved: float = 0.0
    weights_removed: float = 0.0


class BudgetSchedule:
    """The targets of each step.

    Removals and masks start at none and reach their targets cubically over the first half of a search (Zhu and
    Gupta 2017).

    Args:
        low: The targets; where they are drawn from a range, its lower end.
        high: Upper end of the range; ``low`` if not given.
        mode: ``fixed``; ``sampled``: parameters are drawn log-uniformly from the range at each step; ``annealed``: they
            fall geometrically from all of the space's over the first half.
        seed: Of what is drawn.
        whole: Parameters of the whole space, where ``annealed`` starts.
    """

    def __init__(
        self,
        low: Targets,
        high: Targets | None = None,
        mode: str = "fixed",
        seed: int = 0,
        whole: float = 0.0,
    ) -> None:
        self.low, self.high, self.mode = low, high or low, mode
        self.whole = max(low.params, whole)
        self._generator = torch.Generator().manual_seed(derive(seed, "budgets"))

    @property
    def final(self) -> Targets:
        """What a search is judged under: the fewest parameters, all that is to be removed."""
        return replace(self.high, params=self.low.params)

    def at(self, progress: float) -> Targets:
        """The targets of the next step; drawn anew at each call.

        Args:
            progress: Fraction of the search that is done, 0 to 1.
        """
        low, high, params = self.low, self.high, self.low.params
        if self.mode == "sampled":
            params *= (high.params / low.params) ** self._draw()
        elif self.mode == "annealed":
            params = self.whole * (params / self.whole) ** min(1.0, 2 * progress)
        return Targets(
            params,
            self._ramp(low.flops_saved, high.flops_saved, progress),
            self._ramp(low.weights_removed, high.weights_removed, progress),
        )

    def _ramp(self, low: float, high: float, progress: float) -> float:
        drawn = self._draw() if low < high else 1.0
        return (1 - (1 - min(1.0, 2 * progress)) ** 3) * (low + (high - low) * drawn)

    def _draw(self) -> float:
        return float(torch.rand((), generator=self._generator))
