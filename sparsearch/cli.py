"""The command line. Results go to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed, 2 bad usage or config, 3 nothing feasible.
"""

from __future__ import annotations

from typing import Annotated

import typer

import sparsearch
from sparsearch import _commands_read, _commands_run
from sparsearch._console import guarded

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
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version."
        ),
    ] = False,
) -> None:
    """Search where PET modules and sparsity go in a pretrained transformer, under a budget."""


for _command in (
    _commands_run.run,
    _commands_run.stop,
    _commands_read.space,
    _commands_read.studies,
    _commands_read.trials,
    _commands_read.best,
    _commands_read.pareto,
    _commands_read.show,
    _commands_run.export,
    _commands_run.train,
):
    app.command()(guarded(_command))


def main() -> None:
    """Run the command line."""
    app(prog_name="sparsearch")


if __name__ == "__main__":
    main()
