"""Commands that read: space, studies, trials, best, pareto, show."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsearch import _console, _render
from sparsearch._console import errors, output, print_json
from sparsearch._options import (
    DEFAULT_DB,
    Db,
    Json,
    OfStudy,
    Plot,
    StructureHash,
    StudyName,
    next_command,
    password_note,
    reading,
)
from sparsearch.errors import BackboneError, ConfigError, InfeasibleError, SparsearchError

if TYPE_CHECKING:
    from sparsearch.results.store import Store
    from sparsearch.results.values import Best
    from sparsearch.spaces.structure import Structure

__all__ = ["best", "pareto", "show", "space", "studies", "trials"]


def space(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Hub id, local folder, or pkg:NAME/FOLDER."),
    ],
    preset: Annotated[
        str | None, typer.Option("--preset", help="Name of a preset. [default: s3pet-m]")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="A kind instead of a preset; repeatable.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Hub revision.")] = None,
    as_json: Json = False,
) -> None:
    """Show what could be chosen in a model, and what it costs. No weights are loaded."""
    if preset is not None and kind:
        raise typer.BadParameter("give either --preset or --kind")
    kinds: dict[str, dict[str, Any]] | None = {name: {} for name in kind} if kind else None
    if kinds is None:
        preset = preset or "s3pet-m"
    from sparsearch.spaces.backbone import locate, skeleton
    from sparsearch.spaces.space import build_space

    with _console.stdout_is_for_results():
        found = build_space(skeleton(locate(model), revision), preset=preset, kinds=kinds)
    if not as_json:
        output().print(_render.space_table(model, preset or ", ".join(kind or ()), found))
        return
    numbers = {
        "backbone_params": found.backbone_params,
        "candidates": len(found.candidates),
        "trainable_params": found.trainable_params,
        "by_kind": found.by_kind,
    }
    chosen = {"model": model, "revision": revision, "preset": preset, "kinds": kind or None}
    names = [position.name for position in found.positions]
    print_json({**chosen, **numbers, "positions": len(names), "position_names": names})


def studies(db: Db = DEFAULT_DB, as_json: Json = False) -> None:
    """List the studies of a database."""
    with reading(db) as store:
        records = store.studies()
    if as_json:
        print_json([_render.study_dict(record) for record in records])
    elif records:
        output().print(_render.studies_table(records))
    else:
        errors().print("no study yet; `sparsearch run STUDY.yaml` launches one")


def trials(study: StudyName, db: Db = DEFAULT_DB, as_json: Json = False) -> None:
    """List the trials of a study, how they ended, and why."""
    with reading(db) as store:
        record = store.find_study(study)
        records = store.trials(record.name)
        attempts = store.attempts(record.name)
    if as_json:
        print_json(_render.trial_dicts(records, attempts))
    else:
        output().print(_render.trials_table(record, records, attempts))


def best(
    study: OfStudy = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The backbone, as the study file names it.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="Name of the task, or the beginning of its fingerprint."),
    ] = None,
    max_trainable_params: Annotated[
        str | None,
        typer.Option(metavar="N|SHARE%", help="Like 2271, or 0.01% of the backbone."),
    ] = None,
    max_inference_flops: Annotated[
        str | None, typer.Option(metavar="SHARE%", help="Like 75% of the dense backbone.")
    ] = None,
    min_weight_sparsity: Annotated[
        str | None,
        typer.Option(metavar="SHARE%", help="Like 50% of its weights zero or gone."),
    ] = None,
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Show the structure with the best validation score within limits.

    Where several tasks or metrics have one, the best of each is listed; --json then wants --task or --study.
    """
    wanted = {
        "study": study,
        "model": model,
        "task": task,
        "max_trainable_params": max_trainable_params,
        "max_inference_flops": max_inference_flops,
        "min_weight_sparsity": min_weight_sparsity,
    }
    asked = {key: value for key, value in wanted.items() if value is not None}
    from sparsearch.results.values import BestQuery

    with reading(db) as store:
        found = store.best_of_each_task(BestQuery(**asked))
        if not found:
            raise _nothing_found(store, asked)
        one = store.best(**asked) if as_json else None
    if one is not None:
        print_json(one.as_dict())
        return
    first, *others = found
    of = ("--study", first.study)
    words = ("best", *of) if others else ("show", first.structure.hash[:8], *of)
    console = output()
    console.print(_render.best_of_tasks_table(found) if others else _render.best_table(first))
    console.print(f"\nnext: {next_command(db, *words)}", soft_wrap=True)
    if note := password_note(db):
        console.print(note, soft_wrap=True)


def _nothing_found(store: Store, asked: dict[str, str]) -> SparsearchError:
    """Say which name is unknown, or which filter to loosen: one without which there is an answer."""
    words = {key: f"--{key.replace('_', '-')}" for key in asked}
    limits = ", ".join(f"{words[key]} {value}" for key, value in asked.items())
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
    for key in reversed(asked):
        other = _highest(store, {k: v for k, v in asked.items() if k != key})
        if other is None:
            continue
        hint = (
            f"without {words[key]} the best is {other.score:.4f} with {other.trainable_params:,} "
            f"trainable parameters at {100 * other.inference_flops_ratio:.1f}% of the dense FLOPs "
            f"(study {other.study}, model {other.model}, task {other.task})"
            f"{_reached(store.pareto(other.study), key)}"
        )
        return InfeasibleError(message, hint)
    if asked and _highest(store, {}) is not None:
        return InfeasibleError(message, "leave out two or more of these")
    return InfeasibleError(message, "`sparsearch studies` and `sparsearch trials STUDY` tell why")


def _highest(store: Store, asked: dict[str, str]) -> Best | None:
    """The highest of the best of each task, None too where a model's name is ambiguous: to hint at."""
    from sparsearch.results.values import BestQuery

    with contextlib.suppress(ConfigError):
        found = store.best_of_each_task(BestQuery(**asked))
        return max(found, key=lambda b: b.score, default=None)
    return None


def _reached(front: Sequence[Best], limit: str) -> str:
    """How far a study got towards a limit."""
    if limit == "max_trainable_params":
        return f"; the smallest in that study has {min(b.trainable_params for b in front):,}"
    if limit == "max_inference_flops":
        return f"; the fewest in that study are {min(b.inference_flops_ratio for b in front):.2%}"
    if limit == "min_weight_sparsity":
        most = max(b.weight_sparsity for b in front)
        return f"; the sparsest in that study has {most:.2%} of its weights zero or gone"
    return ""


def pareto(
    study: StudyName, plot: Plot = None, db: Db = DEFAULT_DB, as_json: Json = False
) -> None:
    """List the structures that no other one beats in score, parameters, FLOPs and sparsity."""
    with reading(db) as store:
        record = store.find_study(study)
        front = store.pareto(record.name)
        records = store.trials(record.name) if plot is not None else ()
    if plot is not None:
        from sparsearch.results.report import write_pareto_plot

        write_pareto_plot(record, records, front, plot)
        errors().print(f"wrote {plot}", soft_wrap=True)
    if as_json:
        print_json([point.as_dict() for point in front])
    elif front:
        output().print(_render.pareto_table(record, front))
    else:
        errors().print("no successful trial with a structure yet")


def show(
    structure: StructureHash,
    study: OfStudy = None,
    plot: Plot = None,
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Show what a structure attaches where; the picture is a heat map, layers x positions."""
    with reading(db) as store:
        found = store.find_structure(structure, study)
    if plot is not None:
        from sparsearch.results.report import write_structure_plot

        write_structure_plot(found, plot, _position_names(found.structure))
        errors().print(f"wrote {plot}", soft_wrap=True)
    if not as_json:
        output().print(_render.structure_table(found))
        return
    keys = ("position", "kind", "size", "params")
    chosen = [{key: getattr(c, key) for key in keys} for c in found.structure.candidates]
    print_json({**found.as_dict(), "candidates": chosen})


def _position_names(structure: Structure) -> tuple[str, ...]:
    """All positions of a structure's backbone where that is a folder at hand, else none."""
    from sparsearch.spaces.backbone import (
        hash_settings,
        locate,
        positions_of,
        same_settings,
        skeleton,
    )

    try:
        path = locate(structure.backbone.path)
        # A hub id could mean a download, for nothing but empty cells.
        if not Path(path).is_dir():
            return ()
        with _console.stdout_is_for_results():
            model = skeleton(path)
    except BackboneError:
        return ()
    if not same_settings(hash_settings(model), structure.backbone.config_hash):
        return ()
    return tuple(position.name for position in positions_of(model))
