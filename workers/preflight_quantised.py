"""What a study cannot do with a backbone that it loads in 8 or 4 bits."""

from __future__ import annotations

from sparsearch.config.study import StudyConfig
from sparsearch.search.strategies.registry import find_strategy
from sparsearch.spaces.backbone.quantised.check import kind_problems
from sparsearch.spaces.space import Space

__all__ = ["quantised_problems"]


def quantised_problems(config: StudyConfig, space: Space) -> list[str]:
    """Kinds, strategies, settings and limits that need a backbone's plain weights; none where they are plain."""
    if config.model.quantise is None:
        return []
    problems = [f"space: {problem}" for problem in kind_problems(space.kinds.values())]
    strategies = [config.search.strategy, *config.baselines, *config.proposed_strategies]
    whole = [name for name in dict.fromkeys(strategies) if find_strategy(name).whole_model]
    if whole:
        problems.append(
            f"{', '.join(whole)} trains the backbone's weights, which model.quantise keeps in {config.model.quantise} "
            "bits: leave it out of baselines"
        )
    if config.train.backbone:
        problems.append(
            "train.backbone trains the backbone's weights: leave it or model.quantise out"
        )
    if any(budget.max_inference_flops is not None for budget in config.budgets):
        problems.append(
            "budgets: max_inference_flops counts modules as merged, and nothing merges into quantised ones: leave it "
            "or model.quantise out"
        )
    return problems
