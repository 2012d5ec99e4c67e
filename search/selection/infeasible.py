"""Why nothing fits a budget, and the nearest that would."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsearch.errors import InfeasibleError
from sparsearch.search.selection.limits import Limits, smallest, without_flops
from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.candidate import Candidate
from sparsearch.spaces.space import Space

__all__ = [
    "no_flops_left",
    "not_that_few",
    "reconstruction_too_large",
    "scores_too_large",
]


def infeasible(
    space: Space, budget: Budget, tokens: int = 128, cuts: Sequence[Candidate] = ()
) -> InfeasibleError:
    """The error of a budget under which nothing can be attached beside what is cut."""
    free = without_flops(space, budget, tokens)
    fitting = [c for c in space.candidates if c.role == "attach" and free.fits([*cuts, c])]
    limits = Limits(space, budget, tokens)
    if fitting and not any(limits.fits([*cuts, c]) for c in fitting):
        return no_flops_left(space, budget, tokens, cuts, fitting)
    if budget.max_bytes is not None:
        stored = min(c.bytes for c in space.candidates if c.role == "attach")
        if stored > budget.max_bytes:
            return InfeasibleError(
                f"budget {budget.text} = {budget.max_bytes:,} bytes: the smallest candidate takes {stored:,}",
                f"allow at least {stored} bytes, or add smaller kinds to the space",
            )
    least = smallest(space)
    have = f" = {budget.max_trainable_params:,} parameters" if budget.max_trainable_params else ""
    share = 100 * least.params / space.backbone_params
    return InfeasibleError(
        f"budget {budget.text}{have} is too small for any candidate; the smallest is {least.kind} at "
        f"{least.position} with {least.params:,} parameters ({share:.4g}% of the backbone, {least.bytes:,} bytes)",
        f"allow at least {least.params} parameters, or add smaller kinds to the space",
        least_params=least.params,
    )


def no_flops_left(
    space: Space,
    budget: Budget,
    tokens: int,
    cuts: Sequence[Candidate],
    fitting: Sequence[Candidate],
) -> InfeasibleError:
    """The error of a limit on FLOPs under which nothing can be attached that the other limits allow."""
    dense = dense_flops_per_token(space.positions, tokens)
    left = dense + sum(c.inference_flops(tokens) for c in cuts)
    least = min(fitting, key=lambda c: c.inference_flops(tokens))
    needed = (left + least.inference_flops(tokens)) / dense
    return InfeasibleError(
        f"budget {budget.text}: {left / dense:.4%} of the FLOPs are left after all cuts, and the least that can be "
        f"attached, {least.kind} at {least.position}, makes them {needed:.4%}",
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


def not_that_few(space: Space, budget: Budget, tokens: int, total: int) -> InfeasibleError:
    """The error of a limit on FLOPs that cutting everything but the guarded rest does not meet."""
    reached = 100 * (1 + total / dense_flops_per_token(space.positions, tokens))
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
