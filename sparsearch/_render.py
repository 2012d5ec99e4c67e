"""Tables: what the commands show where no JSON is asked for. Readable at 100 columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sparsearch.results.summary import Spread, StrategySummary, StudySummary
    from sparsearch.results.values import Attempt, Best, StudyRecord, TrialRecord
    from sparsearch.spaces.space import Space
    from sparsearch.spaces.structure import Structure
    from sparsearch.workers.preflight import Preflight

__all__ = [
    "STATE_STYLES",
    "best_table",
    "budget_text",
    "facts",
    "feasibility_table",
    "pareto_table",
    "score_text",
    "space_table",
    "structure_table",
    "studies_table",
    "study_dict",
    "summary_view",
    "trial_dicts",
    "trials_table",
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

_HASH = 12
_SHORT_HASH = 8
_NOTHING = "-"


def _table(*columns: str, title: str = "", right: Iterable[str] = ()) -> Table:
    """A table with some columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    table.title_style = "bold"
    numbers = set(right)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def facts(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Names and values, one per line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value)
    return grid


def score_text(score: float | None) -> str:
    """A score with four decimals."""
    return _NOTHING if score is None else f"{score:.4f}"


def budget_text(budget: Mapping[str, Any] | None) -> str:
    """A budget in the user's words, with the number it stands for."""
    if budget is None:
        return _NOTHING
    text, params = str(budget.get("text", "")), budget.get("max_trainable_params")
    if params is None or f"{params:,} params" in text:
        return text or _NOTHING
    return f"{text} ({params:,})" if text else f"{params:,} params"


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
    return Group(head, table, Text(f"everything together is {share:.3g}% of the backbone"))


def study_dict(record: StudyRecord) -> dict[str, Any]:
    """The JSON object of a study."""
    keys = "name model task metric backbone_params trials finished best_score owner"
    document = {key: getattr(record, key) for key in keys.split()}
    return document | {"created_at": record.created_at.isoformat()}


def studies_table(studies: Sequence[StudyRecord]) -> RenderableType:
    """All studies."""
    columns = ("study", "model", "task", "metric", "trials", "finished", "best", "run by")
    table = _table(*columns, right=("trials", "finished", "best"))
    for s in studies:
        table.add_row(
            s.name,
            s.model,
            s.task,
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
    table = _table(*columns, title=f"{study.name} ({study.metric})", right=right)
    for t in trials:
        table.add_row(
            str(t.number),
            t.strategy,
            budget_text(t.budget),
            str(t.seed),
            Text(t.state, STATE_STYLES.get(t.state, "")),
            score_text(t.score),
            score_text(t.test_score),
            _count(t.trainable_params),
            _seconds(t.seconds),
            t.structure[:_SHORT_HASH] if t.structure else _NOTHING,
        )
    told = [t for t in trials if t.message and t.state != "cancelled"]
    return Group(table, _messages(told), _in_vain(attempts))


def _in_vain(attempts: Sequence[Attempt]) -> RenderableType:
    """Attempts that were lost, ran out of memory, or came too late, one line each."""
    return Text(
        "\n".join(
            f"trial {a.trial}, attempt {a.number} on {a.worker or 'no worker'} {a.state}: {a.message}"
            for a in attempts
            if a.state in ("lost", "oom", "late")
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
            ("structure", best.structure.hash),
            ("study, trial", f"{best.study}, {best.trial}"),
            ("strategy", f"{best.strategy}, seed {best.seed}"),
            ("model", best.model),
            ("task", best.task),
            (best.metric, scores),
            ("budget", budget_text(best.budget)),
            ("trainable params", f"{best.trainable_params:,} ({share:.3g}% of the backbone)"),
            ("stored", _stored(best.structure)),
            ("head params", f"{best.head_params:,} (not counted in the budget)"),
            ("inference FLOPs", ratio),
            *_sparse(best),
        ]
    )


def _sparse(best: Best) -> list[tuple[str, str]]:
    """How sparse the weights are, if they are."""
    share, masked = 100 * best.weight_sparsity, best.structure.pruned_weights
    text = f"{share:.2f}% of the linears' weights zero or gone, {masked:,} of them masked"
    return [("weight sparsity", text)] if share or masked else []


def pareto_table(study: StudyRecord, front: Sequence[Best]) -> RenderableType:
    """Trials that no other one beats, by parameters."""
    sparse = any(b.weight_sparsity for b in front)
    costs = ("params", "score", "test", "FLOPs", *(["sparsity"] if sparse else []))
    right = (*costs, "seed", "trial")
    columns = (*costs, "strategy", "budget", "seed", "trial", "structure")
    table = _table(*columns, title=f"{study.name} ({study.metric})", right=right)
    for b in front:
        table.add_row(
            _count(b.trainable_params),
            score_text(b.score),
            score_text(b.test_score),
            f"{100 * b.inference_flops_ratio:.1f}%",
            *([f"{100 * b.weight_sparsity:.1f}%"] if sparse else []),
            b.strategy,
            budget_text(b.budget),
            str(b.seed),
            str(b.trial),
            b.structure.hash[:_HASH],
        )
    return table


def structure_table(best: Best) -> RenderableType:
    """A structure's candidates, grouped by layer."""
    from sparsearch.results.places import candidate_name, place_of

    layers: dict[str, dict[str, list[Any]]] = {}
    for c in best.structure.candidates:
        place = place_of(c.position)
        row = f"{place.stack} {place.row}".strip()
        layers.setdefault(row, {}).setdefault(place.column, []).append(c)
    table = _table("layer", "position", "what", "params", right=("params",))
    for layer, columns in layers.items():
        for number, (column, chosen) in enumerate(columns.items()):
            names = " + ".join(map(candidate_name, chosen))
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
        ((best.structure or "")[:_SHORT_HASH], "bold"),
        f", score {score_text(best.score)}, test {score_text(best.test_score)}",
    )
