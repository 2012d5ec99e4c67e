"""What a user may write about searching and training."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from sparsearch.config.fields import Number, Positive, Rate, Section
from sparsearch.config.registry import STRATEGIES

__all__ = [
    "LinearisedConfig",
    "ProbeConfig",
    "SearchConfig",
    "Strategy",
]

Allocation = Literal["layerwise", "global"]


def _known_strategy(name: str) -> str:
    """A misspelt strategy gets the nearest name; one that is like none gets them all."""
    names = STRATEGIES.names()
    if name in STRATEGIES:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
    raise ValueError(f"{name!r} is no strategy; {advice}")


Strategy = Annotated[str, AfterValidator(_known_strategy)]


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


class LinearisedConfig(Section):
    """Joint selection under a linear model.

    Attributes:
        rows: Training rows: half of them fit the linear model, the other half judges it.
        columns: Directions of a candidate's values, those of the largest covariance with the residuals.
        outputs: Outputs of a row that are explained: the residuals' first principal directions.
        ridge: Penalty of the fit, as a multiple of the mean squared norm of a column.
    """

    rows: Annotated[int, Field(ge=2)] = 512
    columns: Positive = 4
    outputs: Positive = 8
    ridge: Annotated[Number, Field(gt=0)] = 0.1


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
        start: Alpha starts at zero, at the logarithm of a gradient probe's densities, or at the places of
            candidates in the order of a joint selection under a linear model.
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
        linearised: Joint selection under a linear model, as a strategy and as a start of alpha.
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
    start: Literal["zero", "probe", "linearised"] = "zero"
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
    linearised: LinearisedConfig = LinearisedConfig()
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
