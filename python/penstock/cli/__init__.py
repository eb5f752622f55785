"""The command line: argument parsing and nothing else. One module per verb.

Errors are one line on standard error and exit 1; wrong usage exits 2.
"""

import sys

import typer

import penstock
from penstock.cli.bench import bench
from penstock.cli.build import build
from penstock.cli.check import check
from penstock.cli.compare import compare
from penstock.cli.inspect import inspect
from penstock.cli.serve import serve
from penstock.cli.time import time
from penstock.cli.usage import usage
from penstock.errors import PenstockError

app = typer.Typer(
    name="penstock",
    help="Takes a model and makes it serve as fast as the machine can.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (serve, build, inspect, check, time, compare, bench):
    app.command(name=verb.__name__)(usage(verb))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"penstock {penstock.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    """Takes a model and makes it serve as fast as the machine can."""


def main() -> None:
    """The `penstock` command."""
    try:
        app()
    except (PenstockError, OSError, MemoryError) as error:
        text = error.message if isinstance(error, PenstockError) else str(error)
        if isinstance(error, MemoryError):
            text = f"there is not enough memory: {text or 'none was given'}"
        print(f"penstock: {text}", file=sys.stderr)
        sys.exit(1)
