"""Who competes in the judge: a strategy, its space, its settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["BYTES", "CONTESTANTS", "DEFAULT", "OURS", "Contestant"]

OURS: dict[str, Any] = {
    "start": "probe",
    "budget_schedule": "sampled",
    "final_temperature": 0.2,
    "skip_below": 0.01,
    "steps": 50,
}
PUBLISHED: dict[str, Any] = {
    "order": "second",
    "budget_gradient": "detach",
    "relaxation": "concrete",
    "checkpoint": "best",
    "valid_every": 20,
    "cut": "greedy",
}


@dataclass(frozen=True)
class Contestant:
    """A strategy with settings of its own.

    Attributes:
        strategy: As in a study, or ``adalora`` (the PEFT library's).
        search: Settings of the search over the defaults.
        preset: Its space.
        space: Its space instead, kind by kind.
        train: Settings of training over the preset's.
        draws: Structures per seed.
        shared: One ranking serves all budgets.
    """

    strategy: str
    search: dict[str, Any] = field(default_factory=dict)
    preset: str = "fine"
    space: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    draws: int = 1
    shared: bool = False


GRADIENT: dict[str, Any] = {"start_steps": 0}


def _ours(
    changes: dict[str, Any] | None = None, preset: str = "fine", *, shared: bool = True
) -> Contestant:
    """Ours with one switch turned, on directions of the gradient."""
    return Contestant("s3pet", OURS | (changes or {}), preset, GRADIENT, shared=shared)


CONTESTANTS = {
    "head": Contestant("head"),
    "full": Contestant("full"),
    "random": Contestant("random", train=GRADIENT, draws=2),  # per seed, so six per budget
    "lora-qv": Contestant("lora-qv"),
    "lora": Contestant("lora"),
    "spectral": Contestant("spectral", train=GRADIENT),
    "bitfit": Contestant("bitfit"),
    "lnfit": Contestant("lnfit"),
    "adalora": Contestant("adalora"),
    "probe": Contestant("probe", train=GRADIENT),
    "s3pet-published": Contestant("s3pet", PUBLISHED, "s3pet-m"),
    "ours": Contestant("s3pet", OURS, shared=True),
    # What does it: the directions of ours, placed by others, and the other way round.
    "random-directed": Contestant("random", draws=2),
    "spectral-directed": Contestant("spectral"),
    "probe-directed": Contestant("probe"),
    "ours-gradient": _ours(),
    # One switch turned each, for the ablation table.
    "ours-separate": _ours({"budget_schedule": "fixed"}, shared=False),
    "ours-long": _ours({"steps": 200}),
    "ours-early-stop": _ours({"steps": 200, "early_stop": True}),
    "ours-zero-start": _ours({"start": "zero"}),
    "ours-one-temperature": _ours({"final_temperature": None}),
    "ours-slow-alpha": _ours({"alpha_lr": 0.03}),
    "ours-no-skipping": _ours({"skip_below": 0.0}),
    "ours-warm-up": _ours({"warmup": 0.2}),
    "ours-hard-concrete": _ours({"relaxation": "hard-concrete"}),
    "ours-detach": _ours({"budget_gradient": "detach"}),
    "ours-single-level": _ours({"bilevel": False, "steps": 2 * OURS["steps"]}),
    "ours-second-order": _ours({"order": "second"}),
    "ours-density-cut": _ours({"cut": "density"}),
    "ours-knapsack-cut": _ours({"cut": "knapsack"}),
    "ours-hard-checkpoint": _ours(
        {"checkpoint": "hard", "valid_every": 25, "budget_schedule": "fixed"}, shared=False
    ),
    "ours-swaps": _ours({"swaps": 10, "budget_schedule": "fixed"}, shared=False),
    "ours-annealed": _ours({"budget_schedule": "annealed"}, shared=False),
    "ours-s3pet-m": _ours(preset="s3pet-m"),
    "probe-s3pet-m": Contestant("probe", {}, "s3pet-m"),
    "random-s3pet-m": Contestant("random", {}, "s3pet-m", draws=5),
}
DEFAULT = [name for name in CONTESTANTS if not name.startswith("ours-")]


def _in_bits(bits: Any) -> dict[str, Any]:
    """Kinds that store nothing beside their values, in some precisions."""
    one = {"bits": bits}
    return {"lora": {"max_rank": 2, **one}, "bitfit": one, "lnfit": one, "ia3": one}


MIXED = _in_bits([8, 4, 2])


def _uniform(strategy: str, kind: str, bits: int) -> Contestant:
    """A pattern of one kind, as large as fits."""
    options = {"max_rank": 64} if kind == "lora" else {}
    return Contestant(strategy, space={kind: {**options, "bits": bits}})


def _ranked(strategy: str, search: dict[str, Any], bits: Any, draws: int = 1) -> Contestant:
    """One ranking of the space serves all budgets."""
    return Contestant(strategy, search, space=_in_bits(bits), draws=draws, shared=True)


BYTES = {
    "head": Contestant("head"),
    "full": Contestant("full"),
    "linearised": _ranked("linearised", {}, [8, 4, 2]),
    "random": Contestant("random", space=MIXED, draws=2),
    "probe": _ranked("probe", {}, [8, 4, 2]),
    "s3pet": _ranked("s3pet", OURS, [8, 4, 2]),
    "lora-qv": _uniform("lora-qv", "lora", 4),
    "lnfit": _uniform("lnfit", "lnfit", 4),
    "bitfit": _uniform("bitfit", "bitfit", 4),
    "ia3": _uniform("ia3", "ia3", 4),
    "lora-mlp": _uniform("lora-mlp", "lora", 4),
    "lora-xs": _uniform("lora-xs", "lora_xs", 4),
    "vera": _uniform("vera", "vera", 4),
    # The same in other precisions, and one switch turned each.
    "lora-qv-2": _uniform("lora-qv", "lora", 2),
    "lnfit-2": _uniform("lnfit", "lnfit", 2),
    "bitfit-2": _uniform("bitfit", "bitfit", 2),
    "lora": _uniform("lora", "lora", 4),
    "s3pet-linearised": _ranked("s3pet", OURS | {"start": "linearised"}, [8, 4, 2]),
    **{f"linearised-{bits}": _ranked("linearised", {}, bits) for bits in (32, 4, 2)},
    **{f"s3pet-{bits}": _ranked("s3pet", OURS, bits) for bits in (32, 4, 2)},
}
"""At equal stored bytes: values in 8, 4 or 2 bits, as the ranking chooses; a uniform pattern in 4, if unsaid."""
