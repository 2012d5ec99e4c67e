"""Why nothing fits a budget, and the nearest that would."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsearch.errors import InfeasibleError
from sparsearch.search.selection.caps import Caps, smallest
from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.candidate import Candidate

__all__ = [
    "no_flops_left",
    "not_that_few",
    "reconstruction_too_large",
    "scores_too_large",
]


_TOLD_APART = ("max_trainable_params", "max_inference_flops")
"""Limits whose errors say more than what the smallest candidate costs."""


def infeasible(caps: Caps, cuts: Sequence[Candidate] = ()) -> InfeasibleError:
    """The error of a budget under which nothing can be attached beside what is cut."""
    space, budget = caps.space, caps.budget
    free = caps.without("max_inference_flops")
    fitting = [c for c in space.candidates if c.role == "attach" and free.fits([*cuts, c])]
    if fitting and not any(caps.fits([*cuts, c]) for c in fitting):
        return no_flops_left(caps, cuts, fitting)
    attached = [c for c in space.candidates if c.role == "attach"]
    for limit in caps.limits:
        if limit.name in _TOLD_APART:
            continue
        most = caps.get(limit.name) or 0
        least_cost = min(limit.cost(c, caps.tokens) for c in attached)
        if least_cost > most:
            return InfeasibleError(
                f"budget {budget.text} = {most:,} {limit.unit}: the smallest candidate takes {least_cost:,}",
                f"allow at least {least_cost} {limit.unit}, or add smaller kinds to the space",
            )
    least = smallest(space)
    params = budget.get("max_trainable_params")
    have = f" = {params:,} parameters" if params else ""
    share = 100 * least.params / space.backbone_params
    return InfeasibleError(
        f"budget {budget.text}{have} is too small for any candidate; the smallest is {least.kind} at "
        f"{least.position} with {least.params:,} parameters ({share:.4g}% of the backbone, {least.bytes:,} bytes)",
        f"allow at least {least.params} parameters, or add smaller kinds to the space",
        least_params=least.params,
    )


def no_flops_left(
    caps: Caps, cuts: Sequence[Candidate], fitting: Sequence[Candidate]
) -> InfeasibleError:
    """The error of a limit on FLOPs under which nothing can be attached that the other limits allow."""
    tokens = caps.tokens
    dense = dense_flops_per_token(caps.space.positions, tokens)
    left = dense + sum(c.inference_flops(tokens) for c in cuts)
    least = min(fitting, key=lambda c: c.inference_flops(tokens))
    needed = (left + least.inference_flops(tokens)) / dense
    return InfeasibleError(
        f"budget {caps.budget.text}: {left / dense:.4%} of the FLOPs are left after all cuts, and the least "
        f"that can be attached, {least.kind} at {least.position}, makes them {needed:.4%}",
        "allow more FLOPs, or add kinds that merge into the backbone (lora, bitfit) to the space",
        least_flops=needed,
    )


def scores_too_large(budget: Budget, masks: Sequence[Candidate]) -> InfeasibleError:
    """The error of masks whose scores alone exceed a budget."""
    params, stored = sum(c.params for c in masks), sum(c.bytes for c in masks)
    return InfeasibleError(
        f"budget {budget.text}: masks of {len(masks)} matrices reach that sparsity, but their scores have {params:,} "
        f"trainable parameters and with the masks take {stored:,} bytes",
        f"allow at least {params} parameters, or lower weight_mask's rank",
    )


def not_that_few(caps: Caps, total: int) -> InfeasibleError:
    """The error of a limit on FLOPs that cutting everything but the guarded rest does not meet."""
    space, budget = caps.space, caps.budget
    reached = 100 * (1 + total / dense_flops_per_token(space.positions, caps.tokens))
    if not space.removals:
        return InfeasibleError(
            f"budget {budget.text}: nothing in this space removes FLOPs; the least it can reach is 100%",
            "leave max_inference_flops out, or add the kinds heads and neurons to the space",
        )
    return InfeasibleError(
        f"budget {budget.text}: one head and 64 neurons stay in each layer, so that the least it can reach "
        f"is {math.ceil(10 * reached) / 10:.1f}%",
        "allow more FLOPs",
        least_flops=reached / 100,
    )


def reconstruction_too_large(budget: Budget, cuts: Sequence[Candidate]) -> InfeasibleError:
    """The error of what stands in for what is cut, where that alone exceeds a budget."""
    return InfeasibleError(
        f"budget {budget.text}: what stands in for what is cut takes {sum(c.bytes for c in cuts):,} bytes alone",
        "allow more bytes, or leave `compensate: linear` out",
    )
