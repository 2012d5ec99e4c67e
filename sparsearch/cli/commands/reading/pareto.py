"""`sparsearch pareto`: the structures that no other one beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType

from sparsearch.cli.console import errors, output, print_json
from sparsearch.cli.options import (
    DEFAULT_DB,
    Db,
    Json,
    Plot,
    StudyName,
    reading,
)
from sparsearch.cli.tables import SHOWN_DIGITS, FittingTable, budget_words, count_text, score_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sparsearch.results.records import Best, StudyRecord


__all__ = [
    "pareto",
    "pareto_table",
]


def pareto_table(study: StudyRecord, front: Sequence[Best]) -> RenderableType:
    """Structures that no other one beats, by parameters; what they store in bytes."""
    sparse = any(b.weight_sparsity for b in front)
    costs = ("params", "stored", "score", "test", "FLOPs", *(["sparsity"] if sparse else []))
    right = (*costs, "seed", "trial")
    columns = (*costs, "strategy", "budget", "seed", "trial", "structure")
    rows = [
        (
            count_text(b.trainable_params),
            count_text(b.stored_bytes),
            score_text(b.score),
            score_text(b.test_score),
            f"{100 * b.inference_flops_ratio:.1f}%",
            *([f"{100 * b.weight_sparsity:.1f}%"] if sparse else []),
            b.strategy,
            budget_words(b.budget),
            str(b.seed),
            str(b.trial),
            b.structure.hash[:SHOWN_DIGITS],
        )
        for b in front
    ]
    title = f"{study.name} ({study.metric})"
    return FittingTable(title, columns, right, ("seed", "budget", "test"), rows)


def pareto(
    study: StudyName, plot: Plot = None, db: Db = DEFAULT_DB, as_json: Json = False
) -> None:
    """List the structures that no other one beats in score, parameters, stored bytes, FLOPs and sparsity."""
    with reading(db) as store:
        record = store.find_study(study)
        front = store.pareto(record.name)
        records = store.trials(record.name) if plot is not None else ()
    if plot is not None:
        from sparsearch.results.report.pareto_figure import write_pareto_plot

        write_pareto_plot(record, records, front, plot)
        errors().print(f"wrote {plot}", soft_wrap=True)
    if as_json:
        print_json([point.as_dict() for point in front])
    elif front:
        output().print(pareto_table(record, front))
    else:
        errors().print("no successful trial with a structure yet")
