"""Tables: what the commands show where no JSON is asked for. Readable at 80 columns."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sparsearch.results.summary import Spread, StrategySummary, StudySummary
    from sparsearch.results.values import Attempt, Best, StudyRecord, TrialRecord
    from sparsearch.search.task_checks import DataSummary
    from sparsearch.spaces.space import Space
    from sparsearch.spaces.structure import Structure
    from sparsearch.workers.preflight import Preflight

__all__ = [
    "STATE_STYLES",
    "best_of_tasks_table",
    "best_table",
    "budget_text",
    "data_table",
    "facts",
    "feasibility_table",
    "hash_fact",
    "pareto_table",
    "score_text",
    "space_table",
    "structure_table",
    "studies_table",
    "study_dict",
    "summary_view",
    "trial_dicts",
    "trials_table",
    "warning_line",
]

STATE_STYLES = {
    "ok": "green",
    "running": "cyan",
    "queued": "dim",
    "infeasible": "yellow",
    "cancelled": "yellow",
    "oom": "red",
    "failed": "red",
}

_CLASSES = 20
"""As many are shown one by one."""
_HASH = 8
_NOTHING = "-"


def _table(*columns: str, title: str = "", right: Iterable[str] = ()) -> Table:
    """A table with some columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    table.title_style = "bold"
    numbers = set(right)
    for column in columns:
        number = column in numbers
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=number)
    return table


@dataclasses.dataclass(frozen=True)
class _Fitting:
    """A table whose cells stay on one line, budgets aside; it leaves columns out where there is no room.

    Attributes:
        title: Above the table.
        columns: Names, from left to right.
        right: Those with numbers.
        spare: Those to leave out, the least important first.
        rows: A cell for each column.
    """

    title: str
    columns: Sequence[str]
    right: Sequence[str]
    spare: Sequence[str]
    rows: Sequence[Sequence[str | Text]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        endless = options.update(max_width=10_000)
        for count in range(len(self.spare) + 1):
            table = self._without(self.spare[:count])
            if table.__rich_measure__(console, endless).minimum <= options.max_width:
                break
        yield table

    def _without(self, left_out: Sequence[str]) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD, title=self.title, title_justify="left", title_style="bold",
            pad_edge=False, collapse_padding=True, show_edge=False,
        )  # fmt: skip
        if left_out:
            table.caption = f"no room here for {', '.join(left_out)}; --json has all"
            table.caption_justify = "left"
        kept = [i for i, column in enumerate(self.columns) if column not in left_out]
        for column in (self.columns[i] for i in kept):
            justify: Literal["left", "right"] = "right" if column in self.right else "left"
            table.add_column(column, justify=justify, no_wrap=column != "budget")
        for row in self.rows:
            table.add_row(*(row[i] for i in kept))
        return table


def facts(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Names and values, one per line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value)
    return grid


def hash_fact(name: str) -> tuple[str, RenderableType]:
    """A structure's name, whole: on a very narrow screen a prefix, which commands take as well."""
    return "structure", Text(name, no_wrap=True, overflow="crop")


def score_text(score: float | None) -> str:
    """A score with four decimals."""
    return _NOTHING if score is None else f"{score:.4f}"


def budget_words(budget: Mapping[str, Any] | None) -> str:
    """A budget in the user's words."""
    text, params = ((budget or {}).get(key) for key in ("text", "max_trainable_params"))
    if text:
        return str(text)
    return _NOTHING if params is None else f"{params:,} params"


def budget_text(budget: Mapping[str, Any] | None) -> str:
    """The same, with the number that a share of the parameters stands for."""
    words, params = budget_words(budget), (budget or {}).get("max_trainable_params")
    return words if params is None or f"{params:,} params" in words else f"{words} ({params:,})"


def settings_text(settings: Mapping[str, Any]) -> str:
    """What a trial has instead of the study's own settings; not which ranking it transfers."""
    return ", ".join(
        f"{path.partition('.')[2]} {f'{value:.3g}' if isinstance(value, float) else value}"
        for path, value in settings.items()
        if path != "search.transfer_from"
    )


def _count(number: int | float | None) -> str:
    return _NOTHING if number is None else f"{number:,.0f}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    return f"{seconds:.1f}" if seconds < 1000 else f"{seconds:,.0f}"


def _spread(value: Spread | None) -> str:
    """Mean, and the standard deviation where there are several seeds."""
    if value is None:
        return _NOTHING
    return f"{value.mean:.4f}" + (f" ({value.std:.4f})" if value.std is not None else "")


def feasibility_table(preflight: Preflight) -> RenderableType:
    """The smallest candidate, and what each budget buys."""
    least, space = preflight.smallest, preflight.space
    head = Text.assemble(
        (preflight.config.name, "bold"),
        f": {len(space.candidates):,} candidates with {space.trainable_params:,} trainable "
        f"parameters on a backbone of {space.backbone_params:,}",
        f"\nsmallest candidate: {least.kind} at {least.position}, {least.params:,} parameters"
        if least
        else "",
    )
    columns = ("budget", "parameters", "candidates that fit", "most together")
    table = _table(*columns, right=columns[1:])
    for row in preflight.feasibility:
        limit = row.budget.max_trainable_params
        table.add_row(row.budget.text, _count(limit), _count(row.fitting), _count(row.most))
    return Group(head, table)


def data_table(data: DataSummary) -> RenderableType:
    """The classes and their rows in each split; of targets the range."""
    splits = tuple(data.rows)
    if data.targets:
        table = _table(
            "split",
            "rows",
            "smallest",
            "mean",
            "largest",
            right=("rows", "smallest", "mean", "largest"),
        )
        for split, numbers in data.targets.items():
            table.add_row(split, _count(data.rows[split]), *(f"{n:.4g}" for n in numbers))
        return table
    table = _table("class", *splits, right=splits)
    listed = list(data.classes.items())
    for name, counts in listed[:_CLASSES]:
        table.add_row(Text(name), *map(_count, counts))
    if more := listed[_CLASSES:]:
        rest = [sum(counts) for counts in zip(*(c for _, c in more), strict=True)]
        table.add_row(f"{len(more)} more classes", *map(_count, rest))
    table.add_section()
    table.add_row("all rows", *(_count(data.rows[s]) for s in splits))
    return table


def warning_line(warning: str) -> Text:
    """What makes a result worth less than it looks."""
    return Text.assemble(("warning: ", "bold yellow"), warning)


def space_table(model: str, chosen: str, space: Space) -> RenderableType:
    """What a space holds, kind by kind."""
    share = 100 * space.trainable_params / space.backbone_params
    head = Text.assemble(
        (model, "bold"),
        f": {space.backbone_params:,} parameters, {len(space.positions)} positions; "
        f"space: {chosen}",
    )
    columns = ("kind", "candidates", "trainable params", "smallest", "largest")
    table = _table(*columns, right=columns[1:])
    for kind, row in space.by_kind.items():
        sizes = [c.params for c in space.candidates if c.kind == kind]
        table.add_row(
            kind,
            _count(row["candidates"]),
            _count(row["trainable_params"]),
            _count(min(sizes)),
            _count(max(sizes)),
        )
    table.add_section()
    table.add_row("all", _count(len(space.candidates)), _count(space.trainable_params), "", "")
    names = dict.fromkeys(re.sub(r"layers\.\d+", "layers.*", p.name) for p in space.positions)
    return Group(
        head,
        table,
        Text(f"everything together is {share:.3g}% of the backbone"),
        Text(f"positions, as `on:` takes them: {', '.join(names)}"),
    )


def study_dict(record: StudyRecord) -> dict[str, Any]:
    """The JSON object of a study."""
    keys = (
        "name model task task_fingerprint metric backbone_params trials finished best_score owner"
    )
    document = {key: getattr(record, key) for key in keys.split()}
    return document | {"created_at": record.created_at.isoformat()}


def _task_names(rows: Sequence[StudyRecord | Best]) -> list[str]:
    """What each row's task is called; with its fingerprint where another one has that name and metric."""
    tasks = {(row.task, row.metric, row.task_fingerprint) for row in rows}
    sharing = Counter((task, metric) for task, metric, _ in tasks)
    return [
        f"{row.task} ({row.task_fingerprint[:_HASH]})"
        if sharing[row.task, row.metric] > 1
        else row.task
        for row in rows
    ]


def studies_table(studies: Sequence[StudyRecord]) -> RenderableType:
    """All studies."""
    columns = ("study", "model", "task", "metric", "trials", "finished", "best", "run by")
    table = _table(*columns, right=("trials", "finished", "best"))
    for s, task in zip(studies, _task_names(studies), strict=True):
        table.add_row(
            s.name,
            s.model,
            task,
            s.metric,
            str(s.trials),
            str(s.finished),
            score_text(s.best_score),
            s.owner or _NOTHING,
        )
    return table


def trial_dicts(
    trials: Sequence[TrialRecord], attempts: Sequence[Attempt]
) -> list[dict[str, Any]]:
    """The JSON of ``trials``; ``tries`` are a trial's attempts."""
    tries: dict[int, list[dict[str, Any]]] = {t.number: [] for t in trials}
    for a in attempts:
        times = {"started_at": a.started_at, "deadline": a.deadline, "ended_at": a.ended_at}
        tries[a.trial].append(
            {"number": a.number, "worker": a.worker, "state": a.state, "message": a.message}
            | {key: None if t is None else t.isoformat() for key, t in times.items()}
        )
    return [dataclasses.asdict(t) | {"tries": tries[t.number]} for t in trials]


def trials_table(
    study: StudyRecord, trials: Sequence[TrialRecord], attempts: Sequence[Attempt]
) -> RenderableType:
    """All trials of a study, why some did not succeed, and which attempts came to nothing."""
    right = ("#", "seed", "score", "test", "params", "seconds")
    columns = ("#", "strategy", "budget", "seed", "state", *right[2:], "structure")
    rows = [
        (
            str(t.number),
            t.strategy,
            budget_words(t.budget),
            str(t.seed),
            Text(t.state, STATE_STYLES.get(t.state, "")),
            score_text(t.score),
            score_text(t.test_score),
            _count(t.trainable_params),
            _seconds(t.seconds),
            t.structure[:_HASH] if t.structure else _NOTHING,
        )
        for t in trials
    ]
    title = f"{study.name} ({study.metric})"
    table = _Fitting(title, columns, right, ("seconds", "test", "seed"), rows)
    told = [t for t in trials if t.message and t.state != "cancelled"]
    return Group(table, _messages(told), _in_vain(attempts))


def _in_vain(attempts: Sequence[Attempt]) -> RenderableType:
    """Attempts that were lost or interrupted, ran out of memory, or came too late, one line each."""
    return Text(
        "\n".join(
            f"trial {a.trial}, attempt {a.number} on {a.worker or 'no worker'} {a.state}: {a.message}"
            for a in attempts
            if a.state in ("lost", "interrupted", "oom", "late")
        )
    )


def _messages(trials: Sequence[TrialRecord]) -> RenderableType:
    """Why trials did not succeed, one line each."""
    lines = Text()
    for t in trials:
        first = (t.message.strip().splitlines() or ["no message"])[0]
        lines.append(f"trial {t.number} ({t.strategy}, {budget_text(t.budget)}, seed {t.seed}) ")
        lines.append(t.state, STATE_STYLES.get(t.state, ""))
        lines.append(f": {first}\n")
    lines.rstrip()
    return lines


def _stored(structure: Structure) -> str:
    """Size of the attached modules in a file, and what of it is not trained."""
    frozen = sum(c.frozen_bytes for c in structure.candidates)
    beside = f", of them {frozen:,} not trained" if frozen else ""
    return f"{structure.bytes:,} bytes{beside}"


def best_table(best: Best) -> RenderableType:
    """One recommendation."""
    scores = f"{score_text(best.score)} validation, {score_text(best.test_score)} test"
    ratio = f"{100 * best.inference_flops_ratio:.2f}% of the dense backbone"
    share = 100 * best.trainable_params / best.structure.backbone.params
    return facts(
        [
            hash_fact(best.structure.hash),
            ("study, trial", f"{best.study}, {best.trial}"),
            ("strategy", f"{best.strategy}, seed {best.seed}"),
            ("model", best.model),
            ("task", f"{best.task} (fingerprint {best.task_fingerprint[:_HASH]})"),
            (best.metric, scores),
            ("budget", budget_text(best.budget)),
            ("parameters", f"{best.trainable_params:,} ({share:.3g}% of the backbone)"),
            ("stored", _stored(best.structure)),
            ("head", f"{best.head_params:,} (not counted in the budget)"),
            ("FLOPs", ratio),
            *_sparse(best),
        ]
    )


def _sparse(best: Best) -> list[tuple[str, str]]:
    """How sparse the weights are, if they are."""
    share, masked = 100 * best.weight_sparsity, best.structure.pruned_weights
    text = f"{share:.2f}% of the linears' weights zero or gone, {masked:,} of them masked"
    return [("sparsity", text)] if share or masked else []


def pareto_table(study: StudyRecord, front: Sequence[Best]) -> RenderableType:
    """Structures that no other one beats, by parameters."""
    sparse = any(b.weight_sparsity for b in front)
    costs = ("params", "score", "test", "FLOPs", *(["sparsity"] if sparse else []))
    right = (*costs, "seed", "trial")
    columns = (*costs, "strategy", "budget", "seed", "trial", "structure")
    rows = [
        (
            _count(b.trainable_params),
            score_text(b.score),
            score_text(b.test_score),
            f"{100 * b.inference_flops_ratio:.1f}%",
            *([f"{100 * b.weight_sparsity:.1f}%"] if sparse else []),
            b.strategy,
            budget_words(b.budget),
            str(b.seed),
            str(b.trial),
            b.structure.hash[:_HASH],
        )
        for b in front
    ]
    title = f"{study.name} ({study.metric})"
    return _Fitting(title, columns, right, ("seed", "budget", "test"), rows)


def best_of_tasks_table(found: Sequence[Best]) -> RenderableType:
    """The best of each task."""
    right = ("score", "test", "params", "trial")
    columns = ("task", "metric", *right[:3], "strategy", "study", "trial", "structure")
    rows = [
        (
            task,
            b.metric,
            score_text(b.score),
            score_text(b.test_score),
            _count(b.trainable_params),
            b.strategy,
            b.study,
            str(b.trial),
            b.structure.hash[:_HASH],
        )
        for b, task in zip(found, _task_names(found), strict=True)
    ]
    title = "the best of each task: scores of different tasks or metrics do not compare"
    return _Fitting(title, columns, right, ("strategy", "trial", "test"), rows)


def structure_table(best: Best) -> RenderableType:
    """A structure's candidates, grouped by layer."""
    from sparsearch.results.places import candidate_name, place_of, pruned_share

    layers: dict[str, dict[str, list[Any]]] = {}
    for c in best.structure.candidates:
        place = place_of(c.position)
        row = f"{place.stack} {place.row}".strip()
        layers.setdefault(row, {}).setdefault(place.column, []).append(c)
    table = _table("layer", "position", "what", "params", right=("params",))
    for layer, columns in layers.items():
        for number, (column, chosen) in enumerate(columns.items()):
            names = " + ".join(candidate_name(c, pruned_share(c, best.structure)) for c in chosen)
            total = _count(sum(c.params for c in chosen))
            table.add_row("" if number else layer, column, names, total)
        table.add_section()
    everything = best.structure
    count = f"{len(everything.candidates)} candidates"
    table.add_row("all", "", count, _count(everything.trainable_params))
    return Group(best_table(best), table)


# The end of a run


def summary_view(summary: StudySummary) -> RenderableType:
    """Score against parameters, each budget's best structure, and whether the search paid off."""
    parts: list[RenderableType] = [_summary_table(summary), Text()]
    for budget in summary.budgets:
        parts.append(_best_line(budget.name, budget.best))
        parts += [Text(f"  {line}") for line in summary.findings(budget)]
    if summary.front:
        parts += [Text(), _front_table(summary.front)]
    if summary.unsuccessful:
        title = f"\n{len(summary.unsuccessful)} trials did not succeed:"
        parts += [Text(title, "bold"), _messages(summary.unsuccessful)]
    return Group(*parts)


def _front_table(front: Sequence[TrialRecord]) -> Table:
    """The best of planned and proposed trials, by parameters."""
    right = ("params", "validation", "test", "trial")
    title = "front of score against parameters, planned and proposed trials"
    table = _table(*right, "strategy", "settings", title=title, right=right)
    for t in front:
        scores = (score_text(t.score), score_text(t.test_score))
        table.add_row(
            _count(t.trainable_params or 0),
            *scores,
            str(t.number),
            t.strategy,
            settings_text(t.settings),
        )
    return table


def _summary_table(summary: StudySummary) -> Table:
    columns = ("budget", "strategy", "validation", "test", "seeds", "params")
    title = f"{summary.study}: {summary.metric}, mean (standard deviation) over seeds"
    table = _table(*columns, title=title, right=columns[2:])
    for budget in summary.budgets:
        for number, row in enumerate(budget.strategies):
            label = "" if number else budget_text(budget.budget)
            _add_strategy(table, label, row, searched=row.strategy == summary.searched)
        if not budget.strategies:
            table.add_row(budget_text(budget.budget), "no successful trial", "", "", "", "")
        table.add_section()
    for number, row in enumerate(summary.references):
        _add_strategy(table, "" if number else "references", row, searched=False)
    return table


def _add_strategy(table: Table, label: str, row: StrategySummary, *, searched: bool) -> None:
    table.add_row(
        label,
        Text(row.strategy, "bold" if searched else ""),
        _spread(row.validation),
        _spread(row.test),
        str(row.validation.n),
        _count(row.trainable_params),
    )


def _best_line(budget: str, best: TrialRecord | None) -> Text:
    if best is None:
        return Text(f"{budget}: no structure")
    return Text.assemble(
        (f"{budget}: ", "bold"),
        f"best on validation is {best.strategy} seed {best.seed}, structure ",
        ((best.structure or "")[:_HASH], "bold"),
        f", score {score_text(best.score)}, test {score_text(best.test_score)}",
    )
