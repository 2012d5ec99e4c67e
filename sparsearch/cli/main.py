"""The command line. Results go to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed, 2 bad usage or config, 3 nothing feasible.
"""

from __future__ import annotations

from typing import Annotated

import typer

import sparsearch
from sparsearch.cli.commands.reading.best import best
from sparsearch.cli.commands.reading.diff import diff
from sparsearch.cli.commands.reading.export import export
from sparsearch.cli.commands.reading.pareto import pareto
from sparsearch.cli.commands.reading.report import report
from sparsearch.cli.commands.reading.show import show
from sparsearch.cli.commands.reading.studies import studies
from sparsearch.cli.commands.reading.trials import trials
from sparsearch.cli.commands.running import database
from sparsearch.cli.commands.running.delete import delete
from sparsearch.cli.commands.running.latency import latency
from sparsearch.cli.commands.running.run import RunCommand, run
from sparsearch.cli.commands.running.serve import serve
from sparsearch.cli.commands.running.space import space
from sparsearch.cli.commands.running.stop import stop
from sparsearch.cli.commands.running.train import train
from sparsearch.cli.console import guarded
from sparsearch.cli.options import SERVER_VARIABLE

__all__ = ["app", "main"]

app = typer.Typer(
    name="sparsearch",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sparsearch {sparsearch.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            envvar=SERVER_VARIABLE,
            metavar="URL",
            help="Ask a service in place of a database, like http://127.0.0.1:8642.",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    """Search where PET modules and sparsity go in a pretrained transformer, under a budget."""


app.command(cls=RunCommand)(guarded(run))
for _command in (
    stop,
    delete,
    space,
    latency,
    studies,
    trials,
    best,
    pareto,
    show,
    diff,
    report,
    export,
    train,
    serve,
):
    app.command()(guarded(_command))


_database = typer.Typer(
    name="db", no_args_is_help=True, help="Back the database up, restore, upgrade and check it."
)
_database.command()(guarded(database.backup))
_database.command()(guarded(database.restore))
_database.command()(guarded(database.upgrade))
_database.command()(guarded(database.check))
app.add_typer(_database)


def main() -> None:
    """Run the command line."""
    app(prog_name="sparsearch")


if __name__ == "__main__":
    main()
