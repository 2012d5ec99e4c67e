"""`sparsearch space`: what could be chosen in a model, and what it costs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from sparsearch.cli import console
from sparsearch.cli.console import output, print_json
from sparsearch.cli.options import DEFAULT_TYPE, Json, TaskType
from sparsearch.cli.preflight_view import coverage_lines
from sparsearch.cli.tables import count_text, table_of
from sparsearch.config.tasks.types import facts_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from transformers import PreTrainedModel

    from sparsearch.search.bilevel.estimate import SearchEstimate
    from sparsearch.spaces.coverage import Reach
    from sparsearch.spaces.space import Space


__all__ = [
    "space",
    "space_table",
]


def space_table(
    model: str, chosen: str, space: Space, reach: Sequence[Reach], unreached: Sequence[str]
) -> RenderableType:
    """What a space holds, kind by kind, and how much of the backbone it reaches."""
    share = 100 * space.trainable_params / space.backbone_params
    head = Text.assemble(
        (model, "bold"),
        f": {space.backbone_params:,} parameters, {len(space.positions)} positions; "
        f"space: {chosen}",
    )
    columns = ("kind", "candidates", "trainable params", "smallest", "largest", "bytes")
    table = table_of(*columns, right=columns[1:])
    for kind, row in space.by_kind.items():
        sizes = [c.params for c in space.candidates if c.kind == kind]
        table.add_row(
            kind,
            count_text(row["candidates"]),
            count_text(row["trainable_params"]),
            count_text(min(sizes)),
            count_text(max(sizes)),
            count_text(row["bytes"]),
        )
    table.add_section()
    everything = count_text(len(space.candidates)), count_text(space.trainable_params)
    table.add_row("all", *everything, "", "", count_text(space.stored_bytes - space.choice_bytes))
    names = dict.fromkeys(re.sub(r"layers\.\d+", "layers.*", p.name) for p in space.positions)
    return Group(
        head,
        table,
        Text(f"everything together is {share:.3g}% of the backbone"),
        Text(
            f"a task also stores which candidates were chosen: {space.choice_bytes:,} bytes, in all at most "
            f"{space.stored_bytes:,}"
        ),
        Text(f"positions, as `on:` takes them: {', '.join(names)}"),
        reach_table(reach),
        *coverage_lines(space.guessed, unreached),
    )


def reach_table(reach: Sequence[Reach]) -> RenderableType:
    """In how many layers each kind is, and which share of the backbone's parameters it changes."""
    columns = ("kind", "role", "positions", "layers", "of the backbone")
    table = table_of(*columns, right=columns[2:])
    for row in reach:
        layers = f"{row.layers} of {row.of_layers}"
        share = f"{100 * row.share:.3g}%"
        table.add_row(row.kind, row.role, count_text(row.positions), layers, share)
    return table


def _estimates(
    bare: PreTrainedModel,
    preset: str | None,
    kinds: dict[str, dict[str, Any]] | None,
    rows: int,
    tokens: int,
) -> tuple[dict[str, SearchEstimate], dict[str, str]]:
    """What a search needs as it is by default, and with recomputed layers; and why the latter is left out, if so."""
    from sparsearch.errors import BackboneError
    from sparsearch.search.bilevel.estimate import Pass, estimate_search
    from sparsearch.search.bilevel.operations import measure_rates
    from sparsearch.spaces.space import list_space

    rates = measure_rates(rows, tokens, int(bare.config.get_text_config().hidden_size))

    def estimate(*, recompute: bool) -> SearchEstimate:
        return estimate_search(
            lambda: type(bare)(bare.config),
            lambda model: list_space(model, preset=preset, kinds=kinds),
            Pass(rows, tokens, recompute=recompute),
            rates,
        )

    needs = {"default": estimate(recompute=False)}
    try:
        return needs | {"checkpointing": estimate(recompute=True)}, {}
    except BackboneError as error:
        return needs, {"checkpointing": error.message}


def _numbers(one: SearchEstimate) -> dict[str, float]:
    """An estimate as plain values."""
    return {**dataclasses.asdict(one), "peak_bytes": one.peak_bytes}


def estimate_table(
    needs: Mapping[str, SearchEstimate], left_out: Mapping[str, str], rows: int, tokens: int
) -> RenderableType:
    """Memory and time of a first-order search, and why a way of it has no row."""
    columns = (
        "a search",
        "weights",
        "modules",
        "activations",
        "together",
        "TFLOP",
        "seconds",
    )
    table = table_of(*columns, right=columns[1:])
    for name, one in needs.items():
        parts = one.weight_bytes, one.module_bytes, one.activation_bytes, one.peak_bytes
        sizes = [f"{size / 2**30:.2f}" for size in parts]
        named = "as it is" if name == "default" else name
        table.add_row(named, *sizes, f"{one.flops / 1e12:.3g}", f"{one.step_seconds:.3g}")
    any_of_them = next(iter(needs.values()))
    products, others = any_of_them.flops_per_second / 1e9, any_of_them.bytes_per_second / 1e9
    return Group(
        table,
        Text(
            f"sizes in GiB; a step of first order, {rows} rows of {tokens} tokens; seconds at the {products:,.0f} "
            f"GFLOP/s and {others:,.1f} GB/s that this machine has just shown; checkpointing is train.checkpointing: "
            "true; the program itself, the data and a language model's head come on top"
        ),
        *(Text(f"{name} is left out: {why}") for name, why in left_out.items()),
    )


def space(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Hub id, local folder, or pkg:NAME/FOLDER; or a GGUF file there.",
        ),
    ],
    preset: Annotated[
        str | None, typer.Option("--preset", help="Name of a preset. [default: s3pet-m]")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="A kind instead of a preset; repeatable.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Hub revision.")] = None,
    task_type: TaskType = DEFAULT_TYPE,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Memory and time of a search, from shapes alone.")
    ] = False,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Rows of a batch, for --estimate.")
    ] = 32,
    tokens: Annotated[
        int,
        typer.Option(
            "--tokens", min=1, help="Tokens of a row, for --estimate, unless it is an image."
        ),
    ] = 128,
    as_json: Json = False,
) -> None:
    """Show what could be chosen in a model, and what it costs. No weights are loaded."""
    if preset is not None and kind:
        raise typer.BadParameter("give either --preset or --kind")
    kinds: dict[str, dict[str, Any]] | None = {name: {} for name in kind} if kind else None
    if kinds is None:
        preset = preset or "s3pet-m"
    from sparsearch.spaces.backbone.loading import locate, skeleton
    from sparsearch.spaces.backbone.tokens import row_tokens
    from sparsearch.spaces.coverage import describe_unreached, find_unreached, reach_of
    from sparsearch.spaces.space import list_space

    with console.stdout_is_for_results():
        bare = skeleton(locate(model), revision, facts_of(task_type).auto_model)
        found = list_space(bare, preset=preset, kinds=kinds)
        tokens = row_tokens(bare, tokens) if estimate else tokens
        needs, left_out = (
            _estimates(bare, preset, kinds, batch_size, tokens) if estimate else ({}, {})
        )
    reach, unreached = reach_of(found), find_unreached(bare)
    if not as_json:
        lines = describe_unreached(unreached, found.backbone_params)
        output().print(space_table(model, preset or ", ".join(kind or ()), found, reach, lines))
        if needs:
            output().print(estimate_table(needs, left_out, batch_size, tokens))
        return
    numbers = {
        "backbone_params": found.backbone_params,
        "candidates": len(found.candidates),
        "trainable_params": found.trainable_params,
        "stored_bytes": found.stored_bytes,
        "choice_bytes": found.choice_bytes,
        "by_kind": found.by_kind,
    }
    chosen = {
        "model": model,
        "revision": revision,
        "type": task_type,
        "preset": preset,
        "kinds": kind or None,
    }
    names = [position.name for position in found.positions]
    coverage = {
        "guessed": found.guessed,
        "reach": [dataclasses.asdict(row) for row in reach],
        "unreached": [dataclasses.asdict(row) for row in unreached],
    }
    print_json(
        {
            **chosen,
            **numbers,
            "positions": len(names),
            "position_names": names,
            "coverage": coverage,
            **(
                {"estimate": {name: _numbers(one) for name, one in needs.items()}} if needs else {}
            ),
            **({"estimate_left_out": left_out} if left_out else {}),
        }
    )
