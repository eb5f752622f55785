"""`penstock check`: may this engine run here? Exit 0 run, 3 retune, 4 refuse (damaged files, too); 1 no such file."""

from pathlib import Path
from typing import Annotated, Final

import typer

from penstock.cli.custom_ops import CustomOps
from penstock.cli.output import plain, print_json
from penstock.engine import check as check_engine

EXIT: Final = {"run": 0, "retune": 3, "refuse": 4}


def check(
    file: Annotated[Path, typer.Argument(help="An engine file.", show_default=False)],
    custom_ops: CustomOps = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say whether an engine runs on this machine, and why not: run (exit 0), retune (3) or refuse (4)."""
    from penstock.engine import fingerprint
    from penstock.engine.runtimes import LIBRARIES

    verdict = check_engine(file)
    if as_json:
        built = verdict.sealed.manifest.fingerprint if verdict.sealed is not None else None
        print_json(
            {
                "file": file.name,
                "action": verdict.action,
                "reasons": list(verdict.reasons),
                "exit_status": EXIT[verdict.action],
                "built_on": plain(built),
                "this_machine": plain(verdict.here or fingerprint.here(LIBRARIES)),
            }
        )
    else:
        print(verdict.action + "".join(f"\n  {reason}" for reason in verdict.reasons))
    raise typer.Exit(EXIT[verdict.action])
