"""`sparsearch best`: the best structure within limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType

from sparsearch.cli.console import output, print_json
from sparsearch.cli.options import (
    DEFAULT_DB,
    Db,
    Json,
    OfStudy,
    next_command,
    password_note,
    reading,
)
from sparsearch.cli.tables import (
    SHOWN_DIGITS,
    FittingTable,
    budget_text,
    count_text,
    facts,
    hash_fact,
    score_text,
    sparsity_facts,
    task_names,
    warning_line,
)
from sparsearch.config.registry import read_limits

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sparsearch.results.records import Best


__all__ = [
    "best",
    "best_of_tasks_table",
    "best_table",
]


def _stored(best: Best) -> str:
    """What the task costs to keep, and what of it is not trained."""
    from sparsearch.results.stored_size import untrained_bytes

    beside = untrained_bytes(best.stored_bytes, best.trainable_params)
    return f"{best.stored_bytes:,} bytes, of them {beside:,.0f} beside the trained values"


def best_table(best: Best) -> RenderableType:
    """One recommendation, and what makes it worth less than it looks."""
    from sparsearch.results.stored_size import is_swollen, swollen_text

    sizes = best.stored_bytes, best.trainable_params
    scores = f"{score_text(best.score)} validation, {score_text(best.test_score)} test"
    ratio = f"{100 * best.inference_flops_ratio:.2f}% of the dense backbone"
    share = 100 * best.trainable_params / best.structure.backbone.params
    table = facts(
        [
            hash_fact(best.structure.hash),
            ("study, trial", f"{best.study}, {best.trial}"),
            ("strategy", f"{best.strategy}, seed {best.seed}"),
            ("model", best.model),
            ("task", f"{best.task} (fingerprint {best.task_fingerprint[:SHOWN_DIGITS]})"),
            (best.metric, scores),
            ("budget", budget_text(best.budget)),
            ("parameters", f"{best.trainable_params:,} ({share:.3g}% of the backbone)"),
            ("stored", _stored(best)),
            ("head", f"{best.head_params:,} (not counted in the budget)"),
            ("FLOPs", ratio),
            *sparsity_facts(best),
        ]
    )
    return Group(table, warning_line(swollen_text(*sizes))) if is_swollen(*sizes) else table


def best_of_tasks_table(found: Sequence[Best]) -> RenderableType:
    """The best of each task."""
    right = ("score", "test", "params", "stored", "trial")
    columns = ("task", "metric", *right[:4], "strategy", "study", "trial", "structure")
    rows = [
        (
            task,
            b.metric,
            score_text(b.score),
            score_text(b.test_score),
            count_text(b.trainable_params),
            count_text(b.stored_bytes),
            b.strategy,
            b.study,
            str(b.trial),
            b.structure.hash[:SHOWN_DIGITS],
        )
        for b, task in zip(found, task_names(found), strict=True)
    ]
    title = "the best of each task: scores of different tasks or metrics do not compare"
    return FittingTable(title, columns, right, ("strategy", "trial", "test"), rows)


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
    max_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="N|SHARE%",
            help="What the task costs to keep: like 9084, or 0.01% of the backbone.",
        ),
    ] = None,
    max_inference_flops: Annotated[
        str | None, typer.Option(metavar="SHARE%", help="Like 75% of the dense backbone.")
    ] = None,
    min_weight_sparsity: Annotated[
        str | None,
        typer.Option(metavar="SHARE%", help="Like 50% of its weights zero or gone."),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Any limit, like max_bytes=20000; of a plug-in's, among trials whose budgets set it.",
        ),
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
        "max_bytes": max_bytes,
        "max_inference_flops": max_inference_flops,
        "min_weight_sparsity": min_weight_sparsity,
    }
    asked = {key: value for key, value in wanted.items() if value is not None}
    asked = read_limits(limit or (), asked)
    from sparsearch.results.records import BestQuery

    with reading(db) as store:
        found = store.best_of_each_task(BestQuery.of(asked))
        if not found:
            from sparsearch.results.store.reading.advice import nothing_found

            raise nothing_found(store, asked)
        one = store.best(**asked) if as_json else None
    if one is not None:
        print_json(one.as_dict())
        return
    first, *others = found
    of = ("--study", first.study)
    words = ("best", *of) if others else ("show", first.structure.hash[:8], *of)
    screen = output()
    screen.print(best_of_tasks_table(found) if others else best_table(first))
    screen.print(f"\nnext: {next_command(db, *words)}", soft_wrap=True)
    if note := password_note(db):
        screen.print(note, soft_wrap=True)
