"""Strategies: ways to choose candidates for a budget. Baselines are strategies like any other."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sparsearch.config import SearchConfig, TrainConfig
from sparsearch.errors import ConfigError, InfeasibleError
from sparsearch.search.bilevel import BilevelSearch
from sparsearch.search.cut import Limits, infeasible
from sparsearch.search.gates import Gates
from sparsearch.search.masking import even, mask_prices, weights_to_remove
from sparsearch.search.probe import probe
from sparsearch.search.seeds import derive, seed_everything
from sparsearch.search.slimming import learn_coefficients, shares, steps_to_draw
from sparsearch.search.stopping import CutWatch
from sparsearch.search.supernet import Supernet
from sparsearch.search.surgeon import cut_prices, prune_prices
from sparsearch.search.swaps import hard_gates, swap
from sparsearch.search.tasks import Task
from sparsearch.search.train import Observer, learning_rates, silent, steps_per_epoch, train
from sparsearch.search.update_magnitude import update_magnitudes
from sparsearch.search.warm_start import WarmStart, new_head
from sparsearch.spaces.align import take_bases
from sparsearch.spaces.budget import Budget
from sparsearch.spaces.kinds import Kind, make_kind
from sparsearch.spaces.positions import Position, matching
from sparsearch.spaces.ranking import Ranking
from sparsearch.spaces.space import Candidate, Space, make_candidate, overlaps, together

__all__ = ["RANKERS", "REFERENCES", "TRANSFER", "UNIFORM", "Problem", "rank", "unfit", "uniform"]

REFERENCES = ("head", "full")
"""Strategies without a budget: the task head alone, and full fine-tuning."""


TRANSFER = "transfer"
"""The strategy that takes a ranking which another study made."""


@dataclass(frozen=True)
class Problem:
    """What a ranking is made for.

    Attributes:
        model: A model with a head; nothing attached. It is the only copy of the backbone.
        space: What may be chosen.
        task: A search sees its training split (and validation, with ``checkpoint: best``), never its test split.
        search: How to search.
        train: Learning rates and precision, the same as in training.
        budgets: All that the study asks for; a search that draws budgets serves them all.
        start: Gives the warm start of the seed, with the bases that the space needs.
    """

    model: nn.Module
    space: Space
    task: Task
    search: SearchConfig
    train: TrainConfig
    budgets: tuple[Budget, ...]
    start: Callable[[], WarmStart]


def rank_s3pet(problem: Problem, budget: Budget, seed: int, observe: Observer) -> Ranking:
    """Bi-level search with a shifted global sigmoid (S3PET); scores are the gates' alpha.

    Gates close without what stands in for a cut, so that they would tell of another, worse model. Where something
    stands in for all cuts, a search that starts at prices leaves these where their prices put them, and places
    modules on the dense model, which the compensated one is close to.
    """
    search, space = problem.search, problem.space
    task = problem.task
    supernet = open_supernet(problem, seed, search.start == "probe")
    device = next(problem.model.parameters()).device
    gates = make_gates(space, search, task.max_length, device)
    served = (budget,) if search.budget_schedule != "sampled" else problem.budgets
    targets = [_parameters(space, b) for b in served]
    priced = search.start == "probe" and all(c.compensates for c in space.candidates if c.which)
    to_save = [0.0 if priced else _flops_to_save(space, b, task.max_length) for b in served]
    to_prune = [float(weights_to_remove(space, b)) for b in served]
    watch = CutWatch(
        space, served, search.cut, search.stop_distance, search.stop_length, task.max_length
    )
    try:
        if search.start == "probe":
            start = probed(problem, supernet, seed)
            with torch.no_grad():
                gates.alpha.copy_(start_alpha(space, start, task.max_length))
        bilevel = BilevelSearch(
            supernet, gates, task, search, problem.train, min(targets), seed,
            max(targets), (min(to_save), max(to_save)), (min(to_prune), max(to_prune)),
            lambda alpha: watch.settled(alpha.tolist()),
            lambda alpha: hard_gates(space, alpha, budget, search.cut, task.max_length),
        )  # fmt: skip
        alpha = bilevel.run(observe)
        if search.swaps:
            alpha = swap(supernet, task, space, alpha, budget, search.cut, search.swaps)
    finally:
        supernet.close()
    scores = tuple(alpha.tolist())
    return Ranking(scores, "s3pet", seed, bilevel.taken)


def make_gates(space: Space, search: SearchConfig, tokens: int, device: torch.device) -> Gates:
    """Gates of a space, with further budgets where it has something to cut or to mask."""
    n = len(space.candidates)
    cost = torch.tensor([c.params for c in space.candidates], device=device)
    saving = overlap = None
    if space.removals:
        flops = [-c.inference_flops(tokens) if c.which else 0 for c in space.candidates]
        saving = torch.tensor(flops, dtype=torch.float64, device=device)
        rows = torch.tensor([*overlaps(space)], dtype=torch.float64).reshape(-1, 4)
        overlap = torch.sparse_coo_tensor(
            rows[:, :2].T.long(), rows[:, 2], (n, n), check_invariants=True
        ).to(device)
    return Gates(
        cost,
        control=search.control,
        gradient=search.budget_gradient,
        relaxation=search.relaxation,
        temperature=search.temperature,
        saving=saving,
        overlap=overlap,
        masks=mask_prices(space, device),
    )


def start_alpha(space: Space, scores: Tensor, tokens: int) -> Tensor:
    """A probe as a start: log densities, by parameters for what is attached, by what it saves for what is removed.

    What is cut saves FLOPs, what is pruned weights.
    """
    cuts = torch.tensor([bool(c.which) for c in space.candidates])
    pruned = torch.tensor([c.pruned_weights for c in space.candidates])
    params = torch.tensor([c.params for c in space.candidates])
    flops = torch.tensor([-c.inference_flops(tokens) for c in space.candidates])
    attached = ~cuts & (pruned == 0)
    alpha = torch.zeros(len(scores))
    if attached.any():
        alpha[attached] = log_density(scores[attached], params[attached])
    for removed, saving in ((cuts, flops), (pruned > 0, pruned)):
        if removed.any():
            alpha[removed] = -log_density(-scores[removed], saving[removed])
    return alpha


def log_density(scores: Tensor, cost: Tensor) -> Tensor:
    """Logarithm of score per parameter, mean 0 and standard deviation 1: a probe as a start of alpha.

    Zeros where nothing tells candidates apart: all scores are zero, or there is one alone.
    """
    density = scores.double() / cost
    if len(density) < 2 or not density.max() > 0:
        return torch.zeros(len(density))
    logs = torch.log(density.clamp_min(density.max() * 1e-6))
    return ((logs - logs.mean()) / logs.std().clamp_min(1e-6)).float()


def open_supernet(problem: Problem, seed: int, warm: bool) -> Supernet:
    """The problem's space, attached and aligned, perhaps over a warm head; whoever opens it closes it."""
    model, space = problem.model, problem.space
    aligning = any(kind.aligns for kind in space.kinds.values())
    new_head(model, seed, "head")
    if warm or problem.train.head_first or problem.train.steps_before_cut or aligning:
        start = problem.start()
        start.load_head(model)
    seed_everything(seed, "supernet")
    supernet = Supernet(model, space, problem.task.type, problem.train.precision)
    if aligning:
        take_bases(model, start.bases)
    return supernet


def probed(problem: Problem, supernet: Supernet, seed: int) -> Tensor:
    """The gradient probe's scores; what compensates when it is cut has the surgeon's prices instead."""
    space, tokens = problem.space, problem.task.max_length
    scores = probe(supernet, problem.task, problem.search.probe, problem.train, seed)
    if any(space.kinds[space.candidates[i].kind].aligns for i in space.removals):
        prices = cut_prices(problem.model, space, problem.start().bases, tokens)
        for i, price in prices.items():
            scores[i] = price * space.candidates[i].inference_flops(tokens)
    if any(kind.aligns for kind in space.kinds.values()) and space.bands:
        for i, price in prune_prices(problem.model, space, problem.start().bases).items():
            scores[i] = -price * space.candidates[i].pruned_weights
    return scores


def rank_probe(problem: Problem, budget: Budget, seed: int, observe: Observer) -> Ranking:
    """Gradients of all candidates' parameters at the identity point, over a warm head."""
    supernet = open_supernet(problem, seed, warm=True)
    try:
        scores = probed(problem, supernet, seed)
    finally:
        supernet.close()
    return Ranking(tuple(map(float, scores)), "probe", seed)


def _parameters(space: Space, budget: Budget) -> float:
    """The budget as a number of parameters, the one that gates are held to.

    Bytes, of which some are frozen, as the parameters that have the same share of the space.
    """
    caps = [float(space.trainable_params)]
    if budget.max_trainable_params is not None:
        caps.append(float(budget.max_trainable_params))
    if budget.max_bytes is not None:
        attached = together(space, [c for c in space.candidates if not c.which])
        whole = max(1, sum(c.bytes for c in attached))
        caps.append(budget.max_bytes * space.trainable_params / whole)
    return max(1.0, min(caps))


def _flops_to_save(space: Space, budget: Budget, tokens: int) -> float:
    """FLOPs per token that the gates save, as expected; never more than there are."""
    flops = Limits(space, budget, tokens).flops
    most = -sum(space.candidates[i].inference_flops(tokens) for i in space.removals)
    return float(min(most, max(0, -flops))) if flops is not None else 0.0


def rank_random(problem: Problem, budget: Budget, seed: int, observe: Observer) -> Ranking:
    """Uniform scores: with the greedy cut, draws among the candidates that still fit until none does."""
    stream = random.Random(seed)
    return Ranking(tuple(stream.random() for _ in problem.space.candidates), "random", seed)


def rank_even(problem: Problem, budget: Budget, seed: int, observe: Observer) -> Ranking:
    """The same share of rank units, heads, bands everywhere."""
    return Ranking(even(problem.space), "even", seed)


def rank_slimming(problem: Problem, budget: Budget, seed: int, observe: Observer) -> Ranking:
    """Slimming coefficients, trained with the whole model until the ticket stops changing (EarlyBERT)."""
    search, space = problem.search, problem.space
    new_head(problem.model, seed, "head")
    if problem.train.steps_before_cut:
        problem.start().load_head(problem.model)
    watch = CutWatch(
        space,
        (budget,),
        "greedy",
        search.stop_distance,
        search.stop_length,
        problem.task.max_length,
    )
    scores, steps = learn_coefficients(
        problem.model, space, problem.task, search, problem.train, watch.settled, seed, observe
    )
    return Ranking(scores, "slimming", seed, steps)


def rank_surgeon(problem: Problem, budget: Budget, seed: int, observe: Observer) -> Ranking:
    """What cutting and pruning cost at the pretrained weights, by the Fisher matrix (Optimal Brain Surgeon).

    What is attached comes evenly.
    """
    space, model = problem.space, problem.model
    bases = problem.start().bases
    prices = cut_prices(model, space, bases, problem.task.max_length)
    prices |= prune_prices(model, space, bases)
    scores = [-prices[i] if i in prices else s for i, s in enumerate(even(space))]
    return Ranking(tuple(scores), "surgeon", seed)


def rank_update_magnitude(
    problem: Problem, budget: Budget, seed: int, observe: Observer
) -> Ranking:
    """DSEE's: all that attaches is trained, in whole epochs, until the ticket is drawn: what moved least is cut.

    The share of heads is that of neurons, over all layers or (``allocation``) in each. What is attached or masked
    comes evenly; nothing is masked while the rest trains.
    """
    space, task = problem.space, problem.task
    unmasked = replace(space, candidates=tuple(c for c in space.candidates if not c.masks))
    supernet = open_supernet(replace(problem, space=unmasked), seed, warm=False)
    try:
        steps = steps_to_draw(problem.search, problem.train, task)
        per_epoch = steps_per_epoch(task, problem.train)
        epochs = max(1, math.ceil(steps / per_epoch))
        config = problem.train.model_copy(update={"epochs": epochs})
        groups = learning_rates(problem.model, config.lr, config.kind_lr)
        train(
            problem.model, task, config, groups, derive(seed, "update magnitude"),
            lambda phase, done, total, score=None: observe("search", done, total),
        )  # fmt: skip
        magnitudes = update_magnitudes(problem.model, unmasked)
    finally:
        supernet.close()
    places = shares(unmasked, magnitudes, problem.search.allocation)
    scores = list(even(space))
    for i, j in zip(space.removals, unmasked.removals, strict=True):
        scores[i] = places[j]
    return Ranking(tuple(scores), "update-magnitude", seed, epochs * per_epoch)


RANKERS: Mapping[str, Callable[[Problem, Budget, int, Observer], Ranking]] = {
    "s3pet": rank_s3pet,
    "probe": rank_probe,
    "random": rank_random,
    "slimming": rank_slimming,
    "even": rank_even,
    "magnitude": rank_even,  # on a space whose masks have no scores, see ``masking.without_scores``
    "surgeon": rank_surgeon,
    "update-magnitude": rank_update_magnitude,
}
"""Strategies that score every candidate; the cut does the rest."""

UNIFORM: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "lora": ("lora", ("*",)),
    "lora-qv": ("lora", ("*.attn.q", "*.attn.v", "*.cross.q", "*.cross.v")),
    "spectral": ("spectral", ("*",)),
    "bitfit": ("bitfit", ("*",)),
    "lnfit": ("lnfit", ("*",)),
    "adapter": ("adapter", ("*.attn", "*.cross", "*.ffn")),
}
"""Fixed patterns, each the largest that fits: kind, and where."""


def rank(
    strategy: str, problem: Problem, budget: Budget, seed: int, observe: Observer = silent
) -> Ranking:
    """The ranking of a strategy in ``RANKERS``, on the weights that its tickets will be cut from.

    Raises:
        ConfigError: If the strategy cannot rank the space.
    """
    if problems := unfit(strategy, problem.space):
        raise ConfigError(problems)
    started = time.monotonic()
    late = problem.train.steps_before_cut > 0
    with problem.start().weights_in_place(problem.model) if late else contextlib.nullcontext():
        ranking = RANKERS[strategy](problem, budget, seed, observe)
    return replace(ranking, seconds=time.monotonic() - started)


def unfit(strategy: str, space: Space) -> list[str]:
    """Why a strategy cannot rank a space; empty if it can."""
    if strategy == "slimming" and len(space.removals) < len(space.candidates):
        return ["the slimming strategy ranks heads and neurons; the space has other kinds"]
    operated = {c.kind for c in space.candidates if c.which or c.masks}
    if strategy == "surgeon" and not all(space.kinds[name].aligns for name in operated):
        return [
            "the surgeon strategy needs what is cut or pruned to be weighed on data: set heads: "
            "{compensate: linear}, neurons: {compensate: linear}, weight_mask: {importance: saliency}"
        ]
    return []


def uniform(
    strategy: str, space: Space, budget: Budget, tokens: int = 128
) -> tuple[tuple[Candidate, ...], Kind]:
    """The largest uniform structure of a pattern that fits, and its kind.

    First the largest equal size on all positions; where size one does not fit on all, size one
    on as many of the top layers as fit; where not even one layer fits, on the top layer's first
    positions.

    Raises:
        InfeasibleError: If no position fits, naming the smallest unit of the pattern; or if the budget asks for
            sparsity or cuts, of which these patterns have none.
    """
    if weights_to_remove(space, budget):
        raise InfeasibleError(
            f"budget {budget.text}: {strategy} sets no weights to zero",
            "compare with `even` and `magnitude`",
        )
    limits = Limits(space, budget, tokens)
    if limits.flops is not None and limits.flops < 0:
        raise InfeasibleError(
            f"budget {budget.text}: {strategy} cuts nothing, so that all FLOPs of the backbone stay",
            "compare with `even` and `random`",
        )
    name, patterns = UNIFORM[strategy]
    kind = space.kinds.get(name) or make_kind(name, {})
    positions = [p for p in matching(space.positions, patterns) if kind.accepts(p)]
    largest: tuple[Candidate, ...] = ()
    for level in _levels(kind, positions):
        if not limits.fits(level):
            break
        largest = level
    if not largest:
        units = tuple(make_candidate(kind, p, 1) for p in positions)
        raise infeasible(
            Space(units, {name: kind}, space.positions, space.backbone_params), budget, tokens
        )
    return largest, kind


def _levels(kind: Kind, positions: Sequence[Position]) -> Iterator[tuple[Candidate, ...]]:
    """Uniform structures from the smallest to the largest."""
    layers: dict[str, list[Position]] = {}
    for position in positions:
        if position.layer is not None:
            stack = position.name.partition("layers.")[0]
            layers.setdefault(f"{stack}{position.layer}", []).append(position)
    from_top = list(layers.values())[::-1]
    top = from_top[0] if from_top else []
    for count in range(1, len(top)):
        yield tuple(make_candidate(kind, p, 1) for p in top[:count])
    for count in range(1, len(from_top)):
        yield tuple(
            make_candidate(kind, p, 1) for layer in from_top[count - 1 :: -1] for p in layer
        )
    for size in range(1, _largest_size(kind, positions) + 1):
        yield tuple(make_candidate(kind, p, min(size, kind.largest(p))) for p in positions)


def _largest_size(kind: Kind, positions: Sequence[Position]) -> int:
    """Size beyond which more buys nothing anywhere."""
    if kind.name in ("lora", "adapter"):
        return max(min(p.in_features, p.out_features) for p in positions)
    return max(kind.largest(p) for p in positions)
