"""`sparsearch run`: launch a study, or continue it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from sparsearch.cli import console
from sparsearch.cli.console import errors, output, print_json
from sparsearch.cli.options import (
    DEFAULT_DB,
    Db,
    Json,
    Overrides,
    StudyFile,
    is_server,
    next_command,
    password_note,
    reading,
)
from sparsearch.cli.profile_view import ProfileRow, profile_of, profile_view
from sparsearch.cli.study_view import summary_view
from sparsearch.cli.tables import warning_line
from sparsearch.errors import Stopped
from sparsearch.search.phases import timed

if TYPE_CHECKING:
    from sparsearch.results.records import StudyRecord
    from sparsearch.results.report.summary import StudySummary
    from sparsearch.search.tasks.data_summary import DataSummary


__all__ = [
    "RunCommand",
    "run",
    "run_here",
]

Exhaustive = Annotated[
    bool,
    typer.Option(
        "--exhaustive", help="Run all trials, also those that the race leaves out or has left out."
    ),
]
Profile = Annotated[
    bool, typer.Option("--profile", help="Show where the time went, by phase and strategy.")
]


class RunCommand(TyperCommand):
    """The command, which still takes the former ``--ray-address``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the former option as the setting that it is now."""
        return super().parse_args(ctx, [*_with_settings(args)])


def _with_settings(args: Sequence[str]) -> Iterator[str]:
    left = iter(args)
    for word in left:
        option, equals, value = word.partition("=")
        if option != "--ray-address":
            yield word
            continue
        address = value if equals else next(left, "")
        console.errors().print("--ray-address is called --set workers.address=HOST:PORT now")
        yield from ("--set", f"workers.address={address}")


def run(
    study: StudyFile,
    db: Db = DEFAULT_DB,
    overrides: Overrides = None,
    exhaustive: Exhaustive = False,
    profile: Profile = False,
    as_json: Json = False,
) -> None:
    """Launch a study, or continue it: the same command always ends with the same trials."""
    from sparsearch.config.reader import read_study

    # Torch takes seconds to import; a mistyped file name is known before.
    overrides = [*(overrides or ()), *(["race=false"] if exhaustive else [])]
    content, _ = read_study(study, overrides)
    settings = [word for item in overrides for word in ("--set", item)]
    command = next_command(db, "run", str(study), *settings)
    seconds: dict[str, float] = {}
    try:
        if is_server(db):
            name, data = _run_at_service(content, db)
        else:
            with timed() as seconds:
                name, data = run_here(study, db, overrides)
    except (KeyboardInterrupt, Stopped) as error:
        hint = "\n".join(
            filter(None, (f"the same command continues: {command}", password_note(db)))
        )
        message = "interrupted; what is finished is stored"
        console.show_error(error.message if isinstance(error, Stopped) else message, hint)
        raise typer.Exit(console.INTERRUPTED) from None
    from sparsearch.results.answers import failure_of
    from sparsearch.results.report.summary import summarise

    with reading(db) as store:
        record = store.find_study(name)
        trials = store.trials(name)
    shown = profile_of(trials, seconds) if profile else ()
    _print_summary(record, summarise(record, trials), db, as_json, data, shown)
    if failure := failure_of(name, trials):
        raise failure


def run_here(study: Path, db: str, overrides: Sequence[str]) -> tuple[str, DataSummary | None]:
    """Run a study in this process: its name, and what its data holds."""
    from sparsearch.cli.progress import StudyProgress
    from sparsearch.workers.study import run as run_study

    with console.stdout_is_for_results(), StudyProgress(errors()) as progress:
        return run_study(study, db, overrides, progress).name, progress.data


def _run_at_service(content: Mapping[str, Any], db: str) -> tuple[str, DataSummary | None]:
    """Have a service run a study, and watch: its name, and what its data holds.

    Raises:
        Stopped: If it was stopped.
    """
    from sparsearch.cli.following import FollowedStudy
    from sparsearch.cli.progress import StudyProgress
    from sparsearch.results.answers import FAILURES
    from sparsearch.service.client.connection import Connection
    from sparsearch.service.client.launches import follow, launch, wait_for_answer

    with Connection(db) as service:
        launched = launch(service, content)
        name = launched.study
        errors().print(f"study {name} is {launched.state} at {service.url}", soft_wrap=True)
        try:
            with StudyProgress(errors()) as progress:
                shown = FollowedStudy(progress)
                for event, facts in follow(service, name, launched.last_event):
                    shown.tell(event, facts)
            wait_for_answer(service)  # which may have ended since: the summary is asked for next
        except KeyboardInterrupt:
            ends, tells = next_command(db, "stop", name), next_command(db, "trials", name)
            console.show_error(
                f"interrupted; study {name} goes on at {service.url}",
                f"{ends} ends it, {tells} tells how far it is",
            )
            raise typer.Exit(console.INTERRUPTED) from None
    end = facts["end"] or {"code": console.INTERRUPTED, "message": "", "hint": ""}
    if end["code"] == console.INTERRUPTED:
        raise Stopped(end["message"] or f"study {name} was stopped before it began")
    ran_to_its_end = end["message"] in [text.format(name) for text in FAILURES]
    if end["code"] and not ran_to_its_end:  # else the summary comes before it
        console.show_error(end["message"], end["hint"])
        raise typer.Exit(end["code"])
    return name, progress.data


def _print_summary(
    record: StudyRecord,
    summary: StudySummary,
    db: str,
    as_json: bool,
    data: DataSummary | None,
    profile: Sequence[ProfileRow],
) -> None:
    """How the study went, on what data, where it is stored, and what to type next."""
    from sparsearch.results.store.connection.urls import without_password

    following = _next_commands(record, summary, db)
    where, shown = ("server", db) if is_server(db) else ("db", without_password(db))
    if as_json:
        document = {where: shown, "study": record.as_dict(), "summary": summary.as_dict()}
        held = None if data is None else dataclasses.asdict(data)
        spent = {"profile": [dataclasses.asdict(row) for row in profile]} if profile else {}
        print_json({**document, "data": held, **spent, "next": following})
        return
    screen = output()
    screen.print(summary_view(summary))
    if profile:
        screen.print(profile_view(profile))
    warnings = (*summary.warnings, *(() if data is None else data.warnings))
    for warning in dict.fromkeys(warnings):
        screen.print(warning_line(warning))
    screen.print(f"\nstored {'at' if where == 'server' else 'in'} {shown}\nnext:", soft_wrap=True)
    for line in following:
        screen.print(f"  {line}", soft_wrap=True)
    screen.print(
        f"or look at it in a browser:\n  {_where_to_look(record.name, db)}", soft_wrap=True
    )
    if note := password_note(db):
        screen.print(note, soft_wrap=True)


def _where_to_look(study: str, db: str) -> str:
    """The study's page, and what makes one where there is no service yet."""
    if is_server(db):
        return f"{db}/studies/{study}"
    return f"{next_command(db, 'serve')}    # then open http://127.0.0.1:8642/studies/{study}"


def _next_commands(record: StudyRecord, summary: StudySummary, db: str) -> list[str]:
    """What one types after a run, with its real names."""
    budget = next((b for b in summary.budgets if b.best is not None), None)
    if budget is None or budget.best is None:
        return [next_command(db, "trials", summary.study)]
    limit = budget.budget.get("max_trainable_params")
    text = str(budget.budget.get("text", ""))
    within = ["--max-trainable-params", text if text.endswith("%") else str(limit)]
    name = (budget.best.structure or "")[:8]
    whole = record.settings.get("train", {}).get("backbone", False)
    of = ["--study", summary.study]
    commands = [
        ["best", *of, *(within if limit is not None else [])],
        ["show", name, *of, "--plot", f"{name}.html"],
        ["pareto", summary.study, "--plot", f"{summary.study}.html"],
        ["export", name, *of, "--to", "checkpoint" if whole else "spec", "--out", name],
    ]
    return [next_command(db, *words) for words in commands]
