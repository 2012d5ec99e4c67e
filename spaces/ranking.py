"""A ranking: one score per candidate, what a search strategy produces."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sparsearch.errors import SparsearchError

__all__ = ["AlphaTrace", "Ranking"]


@dataclass(frozen=True)
class AlphaTrace:
    """How alpha went during a search: what to look at where a search does not settle.

    Attributes:
        candidates: Position, kind and size of those that were highest at the end, the highest first.
        steps: After which alpha was noted.
        alpha: For each of these steps, of each of these candidates.
    """

    candidates: tuple[str, ...]
    steps: tuple[int, ...]
    alpha: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Ranking:
    """Scores in the order of the space's candidates; a higher score is chosen first.

    Attributes:
        scores: Finite numbers.
        strategy: The strategy that made it.
        seed: Its seed.
        steps: Search steps taken.
        seconds: Wall time of the search.
        backbone: Weight fingerprint of the backbone that it was made on; these three say where it may be transferred.
        space: Fingerprint of the space.
        task: Name of the task.
        trace: How the scores came about; None where nothing was learned step by step.
    """

    scores: tuple[float, ...]
    strategy: str
    seed: int
    steps: int = 0
    seconds: float = 0.0
    backbone: str = ""
    space: str = ""
    task: str = ""
    trace: AlphaTrace | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        bad = [i for i, s in enumerate(self.scores) if not math.isfinite(s)]
        if bad:
            raise SparsearchError(
                f"the {self.strategy} ranking has {len(bad)} scores that are not finite (first: candidate {bad[0]})",
                "lower search.alpha_lr",
            )
