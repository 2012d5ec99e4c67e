"""Budgets: hard limits, resolved once against a backbone, kept in both forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from sparsearch.config.budgets import SHARE
from sparsearch.config.study import BudgetConfig
from sparsearch.errors import ConfigError

__all__ = ["Budget", "parse_share", "resolve", "resolve_all", "served_limits"]


@dataclass(frozen=True)
class Budget:
    """Limits that a structure never exceeds; None is no limit. The task head is counted apart.

    Attributes:
        max_trainable_params: Trainable parameters.
        max_bytes: Stored bytes of the attached modules (float32).
        max_inference_flops: Share of the dense backbone's FLOPs after merging, 1.0 = dense.
        min_weight_sparsity: Share of the weights of the dense backbone's linears that are zero or gone after
            merging and cutting.
        text: The limits as the user wrote them ("0.01%").
    """

    max_trainable_params: int | None = None
    max_bytes: int | None = None
    max_inference_flops: float | None = None
    min_weight_sparsity: float | None = None
    text: str = ""

    @property
    def limits(self) -> tuple[tuple[str, int | float], ...]:
        """Names and values of the limits that are set, however they were written."""
        named = {
            "max_trainable_params": self.max_trainable_params,
            "max_bytes": self.max_bytes,
            "max_inference_flops": self.max_inference_flops,
            "min_weight_sparsity": self.min_weight_sparsity,
        }
        return tuple((name, value) for name, value in named.items() if value is not None)

    def as_dict(self) -> dict[str, int | float | str]:
        """The limits that are set, and the user's text."""
        return {**dict(self.limits), "text": self.text}


def resolve_all(budgets: Sequence[BudgetConfig], backbone_params: int) -> tuple[Budget, ...]:
    """A study's budgets, resolved against its backbone.

    Equal limits are one budget, however they were written: the first one's text stays.

    >>> texts = ("3%", "3.0%", 30)
    >>> resolve_all([BudgetConfig(max_trainable_params=text) for text in texts], 1000)[0].text
    '3%'
    """
    first: dict[object, Budget] = {}
    for budget in (resolve(backbone_params, **b.model_dump()) for b in budgets):
        first.setdefault(budget.limits, budget)
    return tuple(first.values())


def served_limits(budgets: Sequence[Budget], *, every: bool) -> list[dict[str, int | float]]:
    """The limits that a search serves which draws budgets: of each one, or the two ends of their range.

    >>> served_limits([Budget(300), Budget(100), Budget(200)], every=False)
    [{'max_trainable_params': 100}, {'max_trainable_params': 300}]
    """
    limits = [dict(budget.limits) for budget in budgets]
    if every:
        return limits
    names = dict.fromkeys(name for found in limits for name in found)
    values = {name: [found[name] for found in limits if name in found] for name in names}
    return [{name: end(listed) for name, listed in values.items()} for end in (min, max)]


def parse_share(value: str) -> Fraction:
    """The exact share that a percentage names.

    >>> parse_share("0.01%")
    Fraction(1, 10000)

    Raises:
        ConfigError: If the text is no percentage.
    """
    match = SHARE.match(value)
    if match is None:
        raise ConfigError([f"{value!r} is neither a whole number nor a percentage like '0.01%'"])
    return Fraction(match[1]) / 100


def resolve(
    backbone_params: int,
    *,
    max_trainable_params: int | str | None = None,
    max_bytes: int | None = None,
    max_inference_flops: str | None = None,
    min_weight_sparsity: str | None = None,
) -> Budget:
    """Resolve relative limits against a backbone.

    >>> resolve(22_713_216, max_trainable_params="0.01%").max_trainable_params
    2271

    Raises:
        ConfigError: If a limit cannot be read.
    """
    texts = []
    params: int | None = None
    if isinstance(max_trainable_params, str):
        params = int(parse_share(max_trainable_params) * backbone_params)
        texts.append(max_trainable_params)
    elif max_trainable_params is not None:
        params = max_trainable_params
        texts.append(f"{params:,} params")
    if max_bytes is not None:
        texts.append(f"{max_bytes:,} bytes")
    flops: float | None = None
    if max_inference_flops is not None:
        flops = float(parse_share(max_inference_flops))
        texts.append(f"{max_inference_flops} FLOPs")
    sparsity: float | None = None
    if min_weight_sparsity is not None:
        sparsity = float(parse_share(min_weight_sparsity))
        texts.append(f"{min_weight_sparsity} sparsity")
    return Budget(params, max_bytes, flops, sparsity, ", ".join(texts))
