"""`--custom-ops MODULE` of the verbs that load engines: imports the user's functions before anything is loaded.

An engine names the module that it was built with and never imports it: what runs here is what the command line says.
"""

from typing import Annotated

import typer


def _import(modules: list[str] | None) -> list[str] | None:
    from penstock.engine import import_ops

    for each in modules or ():
        import_ops(each)
    return modules


CustomOps = Annotated[
    list[str] | None,
    typer.Option(
        "--custom-ops",
        metavar="MODULE",
        callback=_import,
        help="Registers the custom operators of engines; repeatable.",
    ),
]
