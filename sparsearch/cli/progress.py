"""Progress of a study on stderr: what budgets buy, bars for study and phase, a line per trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from sparsearch.cli.preflight_view import data_table, feasibility_table
from sparsearch.cli.tables import STATE_STYLES, budget_text, score_text, warning_line
from sparsearch.results.records import FINISHED
from sparsearch.workers.callbacks import StudyCallbacks

if TYPE_CHECKING:
    from sparsearch.results.records import Outcome, Trial, TrialRecord
    from sparsearch.search.tasks.data_summary import DataSummary
    from sparsearch.workers.preflight import Preflight
    from sparsearch.workers.preflight_summary import PreflightSummary

__all__ = ["PhaseBar", "StudyProgress"]


class PhaseBar:
    """A bar for whatever runs now; call it as an observer of ``search`` and ``train``.

    Bars move on a terminal only; elsewhere what matters is printed line by line.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("[bold]{task.description:<28}", markup=True),
            BarColumn(bar_width=26),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bars: dict[int | None, tuple[str, TaskID]] = {}

    def __enter__(self) -> Self:
        """Nothing shows before there is something to show."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Take the bars away."""
        self.progress.stop()

    def __call__(self, phase: str, done: int, total: int, score: float | None = None) -> None:
        """One step further; another phase replaces the bar."""
        self.step(None, phase, done, total, score)

    def step(
        self, trial: int | None, phase: str, done: int, total: int, score: float | None
    ) -> None:
        """One step further in a trial, by its number; each one that runs has a bar of its own."""
        self.progress.start()
        bar = self._bars.get(trial)
        if bar is None or bar[0] != phase:
            self.clear(trial)
            bar = (phase, self.progress.add_task(phase, total=total, note=""))
            self._bars[trial] = bar
        task = bar[1]
        if score is not None:  # stays until there is another
            self.progress.update(task, note=f"validation {score:.4f}")
        self.progress.update(task, completed=done, total=total)

    def clear(self, trial: int | None = None) -> None:
        """Take a trial's bar away."""
        bar = self._bars.pop(trial, None)
        if bar is not None:
            self.progress.remove_task(bar[1])


class StudyProgress(PhaseBar, StudyCallbacks):
    """A listener of ``workers.study.run``.

    Attributes:
        data: What the study's data holds, once it is loaded.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._study: TaskID | None = None
        self._loading: TaskID | None = None
        self._running: dict[int, str] = {}
        self.data: DataSummary | None = None

    def checked(self, preflight: Preflight) -> None:
        """Show what each budget buys, before anything is trained."""
        self.show_checked(preflight.summary)

    def show_checked(self, checked: PreflightSummary) -> None:
        """The same of a study that is checked elsewhere."""
        self.console.print(feasibility_table(checked))
        self.progress.start()
        self._loading = self.progress.add_task("loading model and data", total=None, note="")

    def loaded(self, data: DataSummary) -> None:
        """Show what the data holds, before anything is searched."""
        self.data = data
        self.console.print(data_table(data))
        for warning in data.warnings:
            self.console.print(warning_line(warning))

    def opened(
        self, study: str, queued: Sequence[Trial], finished: int, to_propose: int = 0
    ) -> None:
        """Say how much there is to do."""
        self.show_opened(study, len(queued) + to_propose, finished)

    def show_opened(self, study: str, left: int, finished: int) -> None:
        """The same in numbers; a study that is opened again begins its bar anew."""
        total = left + finished
        if self._study is not None:
            self.progress.remove_task(self._study)
        if self._loading is not None:
            self.progress.remove_task(self._loading)
            self._loading = None
        if not left:
            self.console.print(
                f"study {study} is finished already ({total} trials): nothing to run"
            )
            return
        done = f", {finished} finished before" if finished else ""
        self.console.print(f"study {study}: {left} trials to run{done}")
        self._study = self.progress.add_task(study, total=total, completed=finished, note="")

    def also_stored(self, study: str, trials: Sequence[TrialRecord]) -> None:
        """Say what the study holds beside what this command asks for."""
        strategies = dict.fromkeys(t.strategy for t in trials)
        budgets = dict.fromkeys(budget_text(t.budget) for t in trials if t.budget is not None)
        seeds = dict.fromkeys(str(t.seed) for t in trials)
        parts = [("", strategies), ("at ", budgets), ("under seed ", seeds)]
        shown = ", ".join(f"{word}{' '.join(names)}" for word, names in parts if names)
        left = sum(t.state not in FINISHED for t in trials)
        self.console.print(
            f"it also has {len(trials)} trials that this does not ask for: {shown}"
            + (f"; {left} of them wait for the command that asks for them" if left else ""),
            soft_wrap=True,
        )

    def started(self, trial: Trial) -> None:
        """Name the trial beside the study's bar."""
        self._running[trial.number] = _named(trial)
        self._show_running()

    def progressed(
        self, trial: Trial, phase: str, done: int, total: int, score: float | None
    ) -> None:
        """Move the trial's bar; it says which trial it is of where several run."""
        shown = phase if len(self._running) < 2 else f"{trial.number:>3} {trial.strategy} {phase}"
        self.step(trial.number, shown, done, total, score)

    def retried(self, trial: Trial, attempt: int, state: str, reason: str) -> None:
        """Say that an attempt came to nothing."""
        self._over(trial)
        first = (reason.strip().splitlines() or [""])[0]
        self.console.print(
            f"{trial.number:>4}  attempt {attempt} {state}, to be tried again: {first}",
            soft_wrap=True,
        )

    def finished(self, trial: Trial, outcome: Outcome) -> None:
        """One line per trial."""
        self._over(trial)
        if self._study is not None:
            self.progress.advance(self._study)
        self.console.print(_line(trial, outcome), soft_wrap=True)

    def _over(self, trial: Trial) -> None:
        self.clear(trial.number)
        self._running.pop(trial.number, None)
        self._show_running()

    def _show_running(self) -> None:
        names = list(self._running.values())
        if self._study is not None and names:
            note = names[0] if len(names) == 1 else f"{len(names)} trials at once"
            self.progress.update(self._study, note=note)


def _named(trial: Trial) -> str:
    budget = "" if trial.budget is None else f" {trial.budget.text}"
    return f"{trial.strategy}{budget} seed {trial.seed}"


def _line(trial: Trial, outcome: Outcome) -> Text:
    """Number, what it was, how it ended."""
    budget = budget_text(trial.budget.as_dict() if trial.budget is not None else None)
    line = Text.assemble(
        (f"{trial.number:>4}  ", "dim"),
        f"{trial.strategy:<8}  {budget:<14}  seed {trial.seed:<3} ",
        (f"{outcome.state:<10}", STATE_STYLES.get(outcome.state, "")),
    )
    if outcome.state != "ok":
        first = outcome.message.strip().splitlines()[0] if outcome.message.strip() else ""
        line.append(f"  {first}")
        return line
    line.append(
        f"  validation {score_text(outcome.score('validation'))}"
        f"  test {score_text(outcome.score('test'))}"
        f"  {outcome.trainable_params:>10,} params  {outcome.stored_bytes:>11,} bytes  {outcome.seconds:.1f} s"
    )
    return line
