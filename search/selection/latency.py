"""What cutting saves at inference on this machine: latency of slim models, beside their share of the dense FLOPs."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from transformers import PreTrainedModel

from sparsearch.config.tasks.types import TASK_TYPES
from sparsearch.errors import BackboneError, InfeasibleError
from sparsearch.search.selection.selector import Selector
from sparsearch.search.training.device import is_out_of_memory
from sparsearch.spaces.backbone.flops import dense_flops_per_token
from sparsearch.spaces.backbone.identity import identify
from sparsearch.spaces.backbone.inputs.samples import sample_inputs
from sparsearch.spaces.backbone.parameters import positions_of
from sparsearch.spaces.backbone.tokens import row_tokens
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.compaction.compact import compact
from sparsearch.spaces.space import build_space
from sparsearch.spaces.structure import Structure, make_structure

__all__ = ["SlimLatency", "even_cut", "flops_at", "forward_seconds", "measure_latency"]

_ANY_TASK = next(iter(TASK_TYPES))
"""No loss is asked for."""
_WARM_UP = 3
"""Rounds before those that count."""


@dataclass(frozen=True)
class SlimLatency:
    """How long a slim model takes for a batch.

    Attributes:
        flops: Its FLOPs, as a fraction of the dense model's.
        seconds: Of a forward pass, the median.
        ratio: Of the dense model's time, the median over rounds in which both ran.
        low: The lower end of the middle half of these ratios.
        high: The upper end.
    """

    flops: float
    seconds: float
    ratio: float
    low: float
    high: float


def even_cut(model: PreTrainedModel, flops: float, tokens: int, block: int = 16) -> Structure:
    """A structure that cuts as large a share of the heads and neurons in each layer, any of them.

    Args:
        model: The backbone; which of its units go does not change what is left to compute.
        flops: What it may have, as a fraction of the dense model's.
        tokens: Sequence length at which FLOPs are counted.
        block: Neurons that go together.

    Raises:
        InfeasibleError: If so much cannot be cut.
        ConfigError: If the model has no heads or no neurons that can be cut.
    """
    space = build_space(model, kinds={"heads": {}, "neurons": {"block": block}})
    groups: dict[tuple[str, str], list[int]] = {}
    for i, c in enumerate(space.candidates):
        groups.setdefault((c.kind, c.position), []).append(i)
    scores = [0.0] * len(space.candidates)
    for members in groups.values():
        for place, i in enumerate(members):
            scores[i] = place / len(members)
    budget = Budget(max_inference_flops=flops, text=f"{flops:.0%} FLOPs")
    chosen = Selector(space, budget, "greedy", tokens).select(scores)
    return make_structure(space, chosen, identify(model), _ANY_TASK)


@torch.inference_mode()
def forward_seconds(model: PreTrainedModel, batch: int, tokens: int) -> float:
    """Seconds of one forward pass on a CPU, over rows without padding, or over images.

    Raises:
        BackboneError: If the model reads neither tokens nor images, or does not take rows of so many tokens.
    """
    inputs = sample_inputs(model, batch, tokens)
    started = time.perf_counter()
    try:
        model.base_model(**inputs)
    except (RuntimeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise BackboneError(
            f"a {type(model).__name__} does not take {batch} x {tokens} tokens: {error}",
            "take fewer tokens",
        ) from error
    return time.perf_counter() - started


def measure_latency(
    model: PreTrainedModel,
    shares: Sequence[float],
    *,
    batch: int = 1,
    tokens: int = 64,
    rounds: int = 15,
) -> tuple[SlimLatency, ...]:
    """Measure models that are cut evenly, side by side with the dense one.

    Each slim model takes turns with the dense one, so that a busy machine meets both alike. Two models are in memory at
    a time.

    Args:
        model: The dense model on the CPU, in the type that it will run in; it stays as it is.
        shares: FLOPs of the slim models, as fractions of the dense model's; what cannot be reached is left out.
        batch: Rows of a batch.
        tokens: Tokens of a row; an image has as many as the model makes of it.
        rounds: Of measurement, after three that do not count.

    Returns:
        One entry per share, the largest first.

    Raises:
        InfeasibleError: If none of them can be reached.
        BackboneError: If the model reads neither tokens nor images, or does not take rows of so many tokens.
    """
    dense = model.eval()
    tokens = row_tokens(dense, tokens)
    forward_seconds(dense, batch, tokens)
    total = dense_flops_per_token(positions_of(dense), tokens)
    found: list[SlimLatency] = []
    unreached: list[InfeasibleError] = []
    for share in sorted(shares, reverse=True):
        try:
            structure = even_cut(dense, share, tokens)
        except InfeasibleError as error:
            unreached.append(error)
            continue
        slim = compact(copy.deepcopy(dense), structure, attached=False)
        pairs = [
            (forward_seconds(slim, batch, tokens), forward_seconds(dense, batch, tokens))
            for _ in range(_WARM_UP + rounds)
        ][_WARM_UP:]
        low, ratio, high = statistics.quantiles((a / b for a, b in pairs), n=4)
        left = 1 + structure.inference_flops(tokens) / total
        seconds = statistics.median(a for a, _ in pairs)
        found.append(SlimLatency(left, seconds, ratio, low, high))
    if unreached and not found:
        raise unreached[0]
    return tuple(found)


def flops_at(target: float, measured: Sequence[SlimLatency]) -> float | None:
    """The FLOPs, as a fraction of the dense model's, at which a latency is reached: linear between what was measured.

    Args:
        target: Latency as a fraction of the dense model's.
        measured: The largest FLOPs first.

    Returns:
        None if none of the models is that fast.

    >>> fast, slow = SlimLatency(0.4, 0, 0.5, 0, 0), SlimLatency(0.8, 0, 0.9, 0, 0)
    >>> f"{flops_at(0.7, [slow, fast]):.2f}", flops_at(0.4, [slow, fast])
    ('0.60', None)
    """
    points = [(1.0, 1.0), *((m.flops, m.ratio) for m in measured)]
    for (more, slower), (fewer, faster) in pairwise(points):
        if faster <= target <= slower:
            return fewer + (more - fewer) * (target - faster) / max(slower - faster, 1e-9)
    return None
