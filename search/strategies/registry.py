"""Finds a strategy by its name; ranks by one."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

from sparsearch.config.registry import STRATEGIES
from sparsearch.errors import ConfigError, SparsearchError
from sparsearch.search.strategies.base import RankingContext, Strategy
from sparsearch.search.training.train import Observer, silent
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.ranking import Ranking

__all__ = ["find_strategy", "rank"]


def find_strategy(name: str) -> Strategy:
    """The strategy of a name, built in or registered under the entry point group ``sparsearch.strategies``.

    Raises:
        ConfigError: If there is none of that name.
    """
    strategy: Strategy = STRATEGIES.load(name)()
    return strategy


def rank(
    strategy: str, context: RankingContext, budget: Budget, seed: int, observe: Observer = silent
) -> Ranking:
    """The ranking of a strategy, on the weights that its tickets will be cut from.

    Raises:
        ConfigError: If the strategy cannot rank the space.
        SparsearchError: If it does not give each candidate a score.
    """
    chosen = find_strategy(strategy)
    if problems := chosen.check(context.space):
        raise ConfigError(problems)
    started = time.monotonic()
    late = context.train.steps_before_cut > 0
    with context.start().weights_in_place(context.model) if late else contextlib.nullcontext():
        ranking = chosen.rank(context, budget, seed, observe)
    scores, wanted = len(ranking.scores), len(context.space.candidates)
    if scores != wanted:
        raise SparsearchError(
            f"strategy {strategy!r} gave {scores} scores for {wanted} candidates"
        )
    return replace(ranking, seconds=time.monotonic() - started)
