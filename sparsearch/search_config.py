"""What a user may write about searching and training."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from sparsearch._fields import KIND_NAMES, Number, Positive, Rate, Section

__all__ = [
    "KIND_LR",
    "SAMPLE_ROWS",
    "START_BATCH",
    "ProbeConfig",
    "SearchConfig",
    "Strategy",
    "TrainConfig",
]

Allocation = Literal["layerwise", "global"]

_Strategy = Literal[
    "s3pet",
    "probe",
    "random",
    "slimming",
    "even",
    "magnitude",
    "surgeon",
    "update-magnitude",
    "transfer",
    "lora",
    "lora-qv",
    "spectral",
    "bitfit",
    "lnfit",
    "adapter",
    "head",
    "full",
]


def _known_strategy(value: Any) -> Any:
    """A misspelt strategy gets the nearest name; one that is like none gets them all."""
    names = get_args(_Strategy)
    if not isinstance(value, str) or value in names:
        return value
    near = difflib.get_close_matches(value, names, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
    raise ValueError(f"{value!r} is no strategy; {advice}")


Strategy = Annotated[_Strategy, BeforeValidator(_known_strategy)]


class ProbeConfig(Section):
    """A gradient probe.

    Attributes:
        score: What a parameter's gradient g is worth: |g| (``l1``), |g| times its learning rate
            (``step``), g^2 (``l2``), the mean of g^2 over rows (``fisher``), or |g w| after a
            few steps (``weight``).
        rows: Training rows that it sees.
        cut: Greedy by a candidate's total, or by its density, total per parameter.
    """

    score: Literal["l1", "l2", "step", "fisher", "weight"] = "step"
    rows: Positive = 512
    cut: Literal["greedy", "density", "knapsack"] = "density"


class SearchConfig(Section):
    """How structures are chosen. Defaults follow S3PET except where ``docs/decisions`` says why not.

    Attributes:
        strategy: What makes the ranking.
        order: Of the gradient through the unrolled step.
        bilevel: Gates learn on the other half of the training split; else on the same batches.
        steps: Search steps; 0 leaves alpha at its start.
        control: How gates meet the budget: shifted global sigmoid, tau-theta softmax, or an L0
            penalty.
        budget_gradient: Exact implicit gradient of the shift, or S3PET's detach trick.
        relaxation: Of the gates' samples.
        l0_weight: Weight of the L0 penalty.
        start: Alpha starts at zero, or at the logarithm of a gradient probe's densities.
        warmup: Share of the steps in which weights alone learn, all gates open, their rates rising.
        budget_schedule: Gates are held at the trial's budget; or at one drawn anew for each step
            (log-uniform over the study's budgets), so that one search ranks for all of them; or
            at one that falls from the whole space to the trial's.
        final_temperature: At the last step; the temperature moves there geometrically.
        skip_below: Candidates with a smaller probability are not run.
        checkpoint: Gates of the last step, or of the best validation score with soft gates, or with
            the hard structure that they are cut to.
        cut: Greedy by score, by score per parameter, or an exact knapsack.
        swaps: Exchanges across the edge of the cut that are tried at the end, each judged by the
            validation loss of the hard structure.
        early_stop: Stop when the cuts at the target budgets have stopped changing.
        stop_every: Steps between two looks at the cuts.
        stop_length: Cuts that must agree.
        stop_distance: Largest distance at which two cuts agree; 1.0 is that of random structures.
        probe: The gradient probe, as a strategy and as a start of alpha.
        l1: Weight of the slimming coefficients' penalty (EarlyBERT).
        coefficient_lr: Their learning rate.
        draw: When slimming and ``update-magnitude`` draw their ticket, as a share of an epoch (EarlyBERT: 0.2), in
            place of ``steps``.
        allocation: Whether they cut the same share in each layer, or let the layers compete; or which of the
            two for each kind, {heads: layerwise, neurons: global}.
        transfer_from: What the strategy ``transfer`` takes its ranking from: a study of the same database, or
            the key of a ranking in it; if not given, the ranking whose structure is best on another task.
    """

    strategy: Strategy = "s3pet"
    order: Literal["first", "second"] = "first"
    bilevel: bool = True
    steps: Annotated[int, Field(ge=0)] = 300
    batch_size: Positive = 32
    alpha_lr: Rate = 0.1
    clip: Annotated[Number, Field(gt=0)] = 2.0
    control: Literal["shift", "tau-theta", "l0"] = "shift"
    budget_gradient: Literal["exact", "detach"] = "exact"
    relaxation: Literal["concrete", "hard-concrete", "none"] = "concrete"
    temperature: Annotated[Number, Field(gt=0)] = 1.0
    l0_weight: Annotated[Number, Field(ge=0)] = 1.0
    start: Literal["zero", "probe"] = "zero"
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    budget_schedule: Literal["fixed", "sampled", "annealed"] = "fixed"
    final_temperature: Annotated[Number, Field(gt=0)] | None = None
    skip_below: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    checkpoint: Literal["last", "best", "hard"] = "last"
    valid_every: Positive = 100
    cut: Literal["greedy", "density", "knapsack"] = "greedy"
    swaps: Annotated[int, Field(ge=0)] = 0
    early_stop: bool = False
    stop_every: Positive = 5
    stop_length: Annotated[int, Field(ge=2)] = 5
    stop_distance: Annotated[Number, Field(ge=0, le=1)] = 0.15
    probe: ProbeConfig = ProbeConfig()
    l1: Annotated[Number, Field(ge=0)] = 1e-4
    coefficient_lr: Rate = 1e-2
    draw: Annotated[Number, Field(gt=0)] | None = None
    allocation: Allocation | dict[str, Allocation] = "global"
    transfer_from: str | None = None

    @model_validator(mode="after")
    def _allocates_what_is_cut(self) -> SearchConfig:
        kinds = {"heads", "neurons"}
        if not isinstance(self.allocation, str) and (other := set(self.allocation) - kinds):
            raise ValueError(
                f"allocation is for {' and '.join(sorted(kinds))}, not for {', '.join(sorted(other))}"
            )
        return self


SAMPLE_ROWS = 1024
START_BATCH = 32

KIND_LR = {
    "lora": 3e-3,
    "spectral": 3e-2,
    "bitfit": 5e-3,
    "adapter": 3e-3,
    "low_rank_adapter": 3e-3,
    "weight_mask": 1e-3,
}
"""Rates of the kinds that want another one than biases and gains; see decision 1."""


def _with_default_rates(value: Any) -> Any:
    """Naming one kind's rate leaves the others at their defaults."""
    return {**KIND_LR, **value} if isinstance(value, Mapping) else value


class TrainConfig(Section):
    """How a structure is trained, the same for every strategy; a search trains its modules alike.

    Attributes:
        lr: For attached modules and the head.
        kind_lr: Kind (or ``head``) -> its own rate, over the defaults; other kinds take ``lr``.
        full_lr: For the reference that trains the whole backbone.
        warmup: Share of the steps with a rising learning rate; afterwards it falls linearly to 0.
        precision: ``auto`` takes bf16 autocast where the processor computes it natively.
        head_first: Whether the head learns alone, over the frozen backbone, before the rest joins.
        start_rows: Training rows of which a seed's warm start is made: its head, the directions that units take
            from the gradient, the moments by which cuts are priced.
        start_steps: Steps of a brief fine-tuning of all linears, on the training split, from whose changes units
            take their directions in the place of the gradient; 0 for the gradient. With ``backbone`` what it
            leaves is what is cut, and its steps are taken off the training that follows. It needs the memory of
            full fine-tuning.
        dropout: Whether the backbone's own dropout is on.
        backbone: Whether the backbone trains too, for structures that only cut: what is left of it is
            fine-tuned from its pretrained weights, as EarlyBERT does, or from what ``start_steps`` left of them.
        cache_bytes: Most memory for outputs of the frozen layers below all that trains, which then
            run once instead of in each epoch, and once for trials in a row with the same lowest layer; 0 runs
            them again. Needs dropout off.
    """

    epochs: Positive = 3
    batch_size: Positive = 32
    lr: Rate = 2e-2
    kind_lr: Annotated[dict[str, Rate], BeforeValidator(_with_default_rates)] = Field(
        default_factory=lambda: dict(KIND_LR)
    )
    full_lr: Rate = 1e-4
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.06
    clip: Annotated[Number, Field(gt=0)] = 2.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    head_first: bool = False
    start_rows: Positive = SAMPLE_ROWS
    start_steps: Annotated[int, Field(ge=0)] = 0
    dropout: bool = False
    backbone: bool = False
    cache_bytes: Annotated[int, Field(ge=0)] = 2**30

    @property
    def steps_before_cut(self) -> int:
        """Steps of a brief fine-tuning before a ticket is cut from what it left."""
        return self.start_steps if self.backbone else 0

    @property
    def steps_taken(self) -> int:
        """Those steps in batches of the ticket's training."""
        return math.ceil(self.steps_before_cut * START_BATCH / self.batch_size)

    @model_validator(mode="after")
    def _known_kinds(self) -> TrainConfig:
        unknown = sorted(set(self.kind_lr) - {*KIND_NAMES, "head"})
        if unknown:
            raise ValueError(f"kind_lr names {unknown}; known: {', '.join((*KIND_NAMES, 'head'))}")
        return self
