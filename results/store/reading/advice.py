"""What to ask instead where a question has no answer, or several."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sparsearch.config.registry import LIMITS
from sparsearch.errors import ConfigError, InfeasibleError, SparsearchError

if TYPE_CHECKING:
    from sparsearch.results.records import Best
    from sparsearch.results.source import StudySource


__all__ = [
    "nothing_found",
    "of_one_task",
]


def of_one_task(found: Sequence[Best]) -> Best | None:
    """The best structure, None if there is none.

    Args:
        found: The best of each task.

    Raises:
        ConfigError: If there are several, whose scores do not compare.
    """
    if len(found) > 1:
        tasks = "; ".join(
            f"{b.task} ({b.metric}, study {b.study}), fingerprint {b.task_fingerprint[:8]}"
            for b in found
        )
        raise ConfigError(
            [f"scores of different tasks or metrics do not compare; there are: {tasks}"],
            "name one with --task or --study; --task takes a name or the beginning of a fingerprint",
        )
    return found[0] if found else None


def nothing_found(store: StudySource, asked: Mapping[str, str]) -> SparsearchError:
    """Say which name is unknown, or which filter to loosen: one without which there is an answer."""
    words = {key: _option(key) for key in asked}
    limits = ", ".join(f"{words[key]}{value}" for key, value in asked.items())
    within = f" within {limits}" if limits else " yet"
    message = f"no successful trial has a structure{within}"
    studies = store.studies()
    named = {
        "model": {s.model for s in studies},
        "task": {s.task for s in studies},
    }
    for key, known in named.items():
        wanted = asked.get(key)
        by_fingerprint = key == "task" and any(
            s.task_fingerprint.startswith(wanted or "") for s in studies
        )
        if wanted is not None and known and wanted not in known and not by_fingerprint:
            there = ", ".join(sorted(known))
            return InfeasibleError(message, f"there is no such {key}; there are: {there}")
    for key in reversed([*asked]):
        other = _highest(store, {k: v for k, v in asked.items() if k != key})
        if other is None:
            continue
        hint = (
            f"without {words[key].rstrip()} the best is {other.score:.4f} with {other.trainable_params:,} "
            f"trainable parameters at {100 * other.inference_flops_ratio:.1f}% of the dense FLOPs "
            f"(study {other.study}, model {other.model}, task {other.task})"
            f"{_reached(store.pareto(other.study), key)}"
        )
        return InfeasibleError(message, hint)
    if asked and _highest(store, {}) is not None:
        return InfeasibleError(message, "leave out two or more of these")
    return InfeasibleError(message, "`sparsearch studies` and `sparsearch trials STUDY` tell why")


def _option(name: str) -> str:
    """How the command line begins to ask for a name or a limit."""
    if name in LIMITS and not LIMITS.load(name).column:  # among trials whose budgets set it
        return f"--limit {name}="
    return f"--{name.replace('_', '-')} "


def _highest(store: StudySource, asked: Mapping[str, str]) -> Best | None:
    """The highest of the best of each task, None too where a model's name is ambiguous: to hint at."""
    from sparsearch.results.records import BestQuery

    with contextlib.suppress(ConfigError):
        found = store.best_of_each_task(BestQuery.of(asked))
        return max(found, key=lambda b: b.score, default=None)
    return None


def _reached(front: Sequence[Best], limit: str) -> str:
    """How far a study got towards a limit."""
    if limit not in LIMITS or not (bound := LIMITS.load(limit)()).column:
        return ""
    reached = [getattr(b, bound.column) for b in front]
    return f"; {bound.closest.format(min(reached) if bound.is_most else max(reached))}"
