"""`sparsearch latency`: which share of the FLOPs a latency takes on this machine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from sparsearch.cli import console
from sparsearch.cli.console import output, print_json
from sparsearch.cli.options import DEFAULT_TYPE, Json, TaskType
from sparsearch.cli.tables import table_of
from sparsearch.config.tasks.types import facts_of

if TYPE_CHECKING:
    from sparsearch.search.selection.latency import SlimLatency

__all__ = ["latency", "latency_table"]

_SHARES = (0.8, 0.65, 0.5, 0.42, 0.36, 0.3, 0.25)
"""FLOPs of the models that are measured."""


def latency_table(measured: Sequence[SlimLatency], rows: int, tokens: int) -> RenderableType:
    """What was measured, the largest model first."""
    columns = ("FLOPs", "milliseconds", "of the dense latency", "middle half")
    table = table_of(*columns, right=columns)
    for m in measured:
        half = f"{m.low:.2f} to {m.high:.2f}"
        table.add_row(f"{m.flops:.1%}", f"{1000 * m.seconds:.1f}", f"{m.ratio:.2f}", half)
    many = "one row" if rows == 1 else f"{rows} rows"
    return Group(
        table,
        Text(
            f"{many} of {tokens} tokens; heads and neurons cut evenly over the layers, weights at random: "
            "what is left decides the time"
        ),
    )


def latency(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or pkg:NAME/FOLDER.")
    ],
    target: Annotated[
        str | None,
        typer.Option("--target", help="A share of the dense latency, like 60%, to reach."),
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Hub revision.")] = None,
    task_type: TaskType = DEFAULT_TYPE,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows of a batch.")] = 1,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, help="Tokens of a row, unless it is an image.")
    ] = 64,
    rounds: Annotated[int, typer.Option("--rounds", min=3, help="Rounds of measurement.")] = 15,
    as_json: Json = False,
) -> None:
    """Measure how fast cut models are here, and tell which FLOPs a latency takes. No weights are loaded."""
    from sparsearch.config.percentages import parse_percentage
    from sparsearch.errors import InfeasibleError
    from sparsearch.search.selection.latency import flops_at, measure_latency
    from sparsearch.spaces.backbone.loading import locate, skeleton
    from sparsearch.spaces.backbone.tokens import row_tokens

    wanted = None if target is None else float(parse_percentage(target))
    if wanted is not None and not 0 < wanted < 1:
        raise typer.BadParameter(
            f"--target {target!r} is no share of the dense latency below 100%"
        )
    with console.stdout_is_for_results():
        bare = skeleton(locate(model), revision, facts_of(task_type).auto_model)
        tokens = row_tokens(bare, tokens)
        dense = type(bare)(bare.config)
        measured = measure_latency(dense, _SHARES, batch=batch_size, tokens=tokens, rounds=rounds)
    flops = None if wanted is None else flops_at(wanted, measured)
    if as_json:
        print_json(
            {
                "model": model,
                "type": task_type,
                "batch_size": batch_size,
                "tokens": tokens,
                "measured": [dataclasses.asdict(m) for m in measured],
                "target": wanted,
                "max_inference_flops": flops,
            }
        )
    else:
        output().print(latency_table(measured, batch_size, tokens))
        if flops is not None:
            output().print(
                f'{target} of the latency: write budgets: {{max_inference_flops: ["{math.floor(100 * flops)}%"]}}',
                markup=False,
                highlight=False,
            )
    if wanted is not None and flops is None:
        fastest = min(measured, key=lambda m: m.ratio)
        raise InfeasibleError(
            f"cutting heads and neurons reaches {fastest.ratio:.0%} of the dense latency here, not {target}",
            "take a smaller model, larger batches, or a higher --target",
        )
