"""Commands that work: run, export, train. Heavy imports are inside: help answers at once."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sparsearch import _console, _render
from sparsearch._console import errors, output, print_json
from sparsearch._options import (
    DEFAULT_DB,
    Db,
    Json,
    OfStudy,
    Overrides,
    RayAddress,
    StructureHash,
    StudyFile,
    StudyName,
    next_command,
    password_note,
    reading,
)
from sparsearch.errors import LeaseError, Stopped, StoreError, StructureError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sparsearch.results.store import Store
    from sparsearch.results.summary import StudySummary
    from sparsearch.results.values import StudyRecord, TrialRecord
    from sparsearch.search.task_checks import DataSummary
    from sparsearch.spaces.structure import Structure

__all__ = ["export", "run", "stop", "train"]

_ALL_FAILED, _NOTHING_FEASIBLE = 1, 3
_STOP_SECONDS = 90


def run(
    study: StudyFile,
    db: Db = DEFAULT_DB,
    overrides: Overrides = None,
    ray_address: RayAddress = None,
    as_json: Json = False,
) -> None:
    """Launch a study, or continue it: the same command always ends with the same trials."""
    from sparsearch._progress import StudyProgress
    from sparsearch.study_file import read_study

    # Torch takes seconds to import; a mistyped file name is known before.
    read_study(study, overrides or ())
    from sparsearch.results.summary import summarise
    from sparsearch.workers.study import run as run_study

    try:
        with _console.stdout_is_for_results(), StudyProgress(errors()) as progress:
            record = run_study(study, db, overrides or (), progress, ray_address)
    except (KeyboardInterrupt, Stopped) as error:
        settings = [word for item in overrides or () for word in ("--set", item)]
        settings += ["--ray-address", ray_address] if ray_address is not None else []
        command = next_command(db, "run", str(study), *settings)
        hint = "\n".join(
            filter(None, (f"the same command continues: {command}", password_note(db)))
        )
        message = "interrupted; what is finished is stored"
        _console.show_error(error.message if isinstance(error, Stopped) else message, hint)
        raise typer.Exit(_console.INTERRUPTED) from None
    with reading(db) as store:
        trials = store.trials(record.name)
    _print_summary(record, summarise(record, trials), db, as_json, progress.data)
    _exit_as_trials_went(trials)


def stop(study: StudyName, db: Db = DEFAULT_DB, as_json: Json = False) -> None:
    """End a running study's driver: what runs is cancelled and queued, so that `run` continues it."""
    from sparsearch.results.store import Store

    with reading(db) as store:
        record = store.find_study(study)
    name = record.name
    with Store.open(db, create=True) as store:
        owner = store.ask_to_stop(name)
        if owner is not None:
            errors().print(f"asked {owner} to end study {name}")
            _wait_until_free(store, name, owner)
    if as_json:
        print_json({"study": name, "stopped": owner})
    elif owner is None and record.finished == record.trials:
        output().print(f"nobody runs study {name}: all of its {record.trials} trials are finished")
    elif owner is None:
        output().print(f"nobody runs study {name}; `sparsearch run` continues it")
    else:
        output().print(f"study {name} is stopped; `sparsearch run` continues it")


def _wait_until_free(store: Store, study: str, owner: str) -> None:
    """Until the driver has given the study back."""
    give_up = time.monotonic() + _STOP_SECONDS
    while store.find_study(study).owner is not None:
        if time.monotonic() > give_up:
            raise LeaseError(
                f"{owner} still holds study {study!r} after {_STOP_SECONDS} s",
                "it ends at its next step; if it does not, end that process",
            )
        time.sleep(0.2)


def _print_summary(
    record: StudyRecord,
    summary: StudySummary,
    db: str,
    as_json: bool,
    data: DataSummary | None,
) -> None:
    """How the study went, on what data, where it is stored, and what to type next."""
    from sparsearch.results.urls import without_password

    following, shown = _next_commands(record, summary, db), without_password(db)
    if as_json:
        document = {"db": shown, "study": _render.study_dict(record), "summary": summary.as_dict()}
        held = None if data is None else dataclasses.asdict(data)
        print_json({**document, "data": held, "next": following})
        return
    console = output()
    console.print(_render.summary_view(summary))
    for warning in summary.warnings if data is None else data.warnings:
        console.print(_render.warning_line(warning))
    console.print(f"\nstored in {shown}\nnext:", soft_wrap=True)
    for line in following:
        console.print(f"  {line}", soft_wrap=True)
    if note := password_note(db):
        console.print(note, soft_wrap=True)


def _exit_as_trials_went(trials: Sequence[TrialRecord]) -> None:
    """Exit 3 where no budget was feasible, 1 where nothing succeeded."""
    budgeted = [t for t in trials if t.budget is not None]
    if budgeted and all(t.state == "infeasible" for t in budgeted):
        hint = "allow more parameters in budgets, or add smaller kinds to the space"
        _console.show_error("no budget of this study is feasible", hint)
        raise typer.Exit(_NOTHING_FEASIBLE)
    if trials and not any(t.state == "ok" for t in trials):
        _console.show_error("no trial of this study succeeded", "its messages are listed above")
        raise typer.Exit(_ALL_FAILED)


def _next_commands(record: StudyRecord, summary: StudySummary, db: str) -> list[str]:
    """What one types after a run, with its real names."""
    budget = next((b for b in summary.budgets if b.best is not None), None)
    if budget is None or budget.best is None:
        return [next_command(db, "trials", summary.study)]
    limit = budget.budget.get("max_trainable_params")
    text = str(budget.budget.get("text", ""))
    within = ["--max-trainable-params", text if text.endswith("%") else str(limit)]
    name = (budget.best.structure or "")[:8]
    whole = json.loads(record.config).get("train", {}).get("backbone", False)
    of = ["--study", summary.study]
    commands = [
        ["best", *of, *(within if limit is not None else [])],
        ["show", name, *of, "--plot", f"{name}.html"],
        ["pareto", summary.study, "--plot", f"{summary.study}.html"],
        ["export", name, *of, "--to", "checkpoint" if whole else "spec", "--out", name],
    ]
    return [next_command(db, *words) for words in commands]


class ServingFormat(StrEnum):
    """What --also takes; typer reads no list of Literal."""

    onnx = "onnx"
    torch = "torch"


def export(
    structure: StructureHash,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    to: Annotated[
        Literal["spec", "peft", "checkpoint"],
        typer.Option(
            "--to",
            help="structure.json and weights; an adapter folder for PEFT; or a merged, smaller model.",
        ),
    ] = "spec",
    also: Annotated[
        list[ServingFormat] | None,
        typer.Option("--also", help="A serving file beside a checkpoint; repeatable."),
    ] = None,
    study: OfStudy = None,
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Write a trained structure for other tools, and prove it by loading it again."""
    if also and to != "checkpoint":
        raise typer.BadParameter("--also goes with --to checkpoint")
    with reading(db) as store:
        best = store.find_structure(structure, study)
        weights = store.weights(best.study, best.trial)
    if weights is None:
        raise StoreError(
            f"trial {best.trial} of study {best.study!r} has no stored weights",
            f"train the structure anew: sparsearch train {best.structure.hash[:12]} STUDY.yaml",
        )
    from sparsearch.results.export import export as export_structure

    with _console.stdout_is_for_results():
        report = export_structure(best, weights, to, out, tuple(f.value for f in also or ()))
    if as_json:
        facts = {"structure": best.structure.hash, "to": to, "path": str(report.path)}
        proof = {"max_difference": report.max_difference}
        print_json({**facts, "files": report.files, "notes": report.notes, **proof})
        return
    console = output()
    console.print(f"structure {best.structure.hash[:12]} is in {report.path}", soft_wrap=True)
    for file in report.files:
        console.print(f"  {file}", soft_wrap=True)
    for note in report.notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print(f"loaded again; largest difference of the logits {report.max_difference:.2g}")


def train(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR_OR_STRUCTURE", help="An exported folder or file, or a structure's hash."
        ),
    ],
    study: StudyFile,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder for the trained structure."),
    ] = None,
    overrides: Overrides = None,
    db: Db = DEFAULT_DB,
    as_json: Json = False,
) -> None:
    """Train a structure as a study file says, from fresh modules and a fresh head."""
    from sparsearch._progress import PhaseBar
    from sparsearch.study_file import read_study

    read_study(study, overrides or ())
    structure = _structure_from(source, db)
    from sparsearch.workers.retrain import train_structure

    with _console.stdout_is_for_results(), PhaseBar(errors()) as bar:
        done = train_structure(
            structure, study, overrides=tuple(overrides or ()), out=out, observe=bar
        )
    if as_json:
        document = {"structure": done.structure.hash, "metric": done.metric, "score": done.score}
        document |= {"test_score": done.test_score, "epoch": done.epoch, "seconds": done.seconds}
        document |= {"out": None if done.out is None else str(done.out)}
        print_json({**document, "warnings": done.warnings})
        return
    valid, test = map(_render.score_text, (done.score, done.test_score))
    rows: list[tuple[str, RenderableType]] = [
        _render.hash_fact(done.structure.hash),
        ("parameters", f"{done.trainable_params:,}"),
        (done.metric, f"{valid} validation (best of epoch {done.epoch}), {test} test"),
        ("seconds", f"{done.seconds:.1f}"),
        ("written to", str(done.out) if done.out is not None else "nowhere; --out DIR keeps it"),
    ]
    output().print(_render.facts(rows))
    for warning in done.warnings:
        output().print(_render.warning_line(warning))


def _structure_from(source: str, db: str) -> Structure:
    """A folder or file that exists, else a hash in the database."""
    path = Path(source)
    if path.exists():
        from sparsearch.spaces.structure import Structure

        return Structure.load(path)
    if len(path.parts) > 1 or path.suffix or source.endswith("/"):
        raise StructureError(
            f"there is no file or folder {source!r}",
            "give a folder written by `sparsearch export --to spec`, or a structure's hash",
        )
    try:
        with reading(db) as store:
            return store.load_structure(source)
    except StoreError as error:
        raise StructureError(
            f"{source!r} is neither a file or folder nor found as a hash: {error.message}",
            error.hint,
        ) from error
