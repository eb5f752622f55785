"""`penstock compare`: the same inputs through two models, and how far their outputs are from each other."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.custom_ops import CustomOps
from penstock.cli.output import console, plain, print_json, ranges, read, say, shapes_text, table

if TYPE_CHECKING:
    from penstock.build.gate import Verdict
    from penstock.build.metrics import OutputError


def _gate(text: str) -> Any:
    from penstock.build.gate import parse

    return parse(text)


def compare(
    reference: Annotated[
        Path, typer.Argument(metavar="A", help="The reference: an engine or a model file.", show_default=False)
    ],
    candidate: Annotated[Path, typer.Argument(metavar="B", help="What is compared with it.", show_default=False)],
    inputs: Annotated[Path | None, typer.Option(help="Arrays to run on: data.npz or a folder; default: noise.")] = None,
    shapes: Annotated[
        list[Any] | None,
        typer.Option(
            parser=ranges, metavar="NAME:DIMS", help="Of the noise; default: an engine's optimum. Repeatable."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many inputs, at most.")] = 8,
    accuracy: Annotated[
        Any,
        typer.Option(
            parser=read(_gate),
            metavar="GATE",
            help="'cosine>=0.999' or 'module:metric drop<=0.01'; exit 1 if it fails.",
        ),
    ] = None,
    custom_ops: CustomOps = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare the outputs of two models, and judge them when told how."""
    from penstock.build import comparing
    from penstock.engine import load

    first, second = load(reference), load(candidate)
    comparing.same_inputs(first, second)
    at = comparing.shapes_of([second, first], shapes or ()) if inputs is None else {}
    arrays = comparing.samples_of(first, at, inputs, samples)
    what = inputs.name if inputs else f"noise of {shapes_text(at)}"
    say(f"{reference.name} and {candidate.name} on {len(arrays)} inputs: {what}")
    errors = comparing.compare(first, second, arrays)
    verdict = comparing.judge(accuracy, first, second, arrays) if accuracy is not None else None
    if as_json:
        print_json(
            {
                "reference": reference.name,
                "candidate": candidate.name,
                "inputs": inputs.name if inputs else "noise",
                "shapes": None if inputs else plain(at),
                "samples": len(arrays),
                "outputs": [_output(each) for each in errors],
                "accuracy": _verdict(accuracy.text, verdict) if verdict is not None else None,
            }
        )
    else:
        _print(errors, verdict)
    if verdict is not None and not verdict.passed:
        say(verdict.message)
        raise typer.Exit(1)


def _output(error: "OutputError") -> dict[str, Any]:
    return {
        "name": error.output,
        "cosine": error.cosine,
        "max_absolute_error": error.maximum_absolute,
        "max_relative_error": error.maximum_relative,
        "snr_db": error.snr_db,
        "identical": error.maximum_absolute == 0 and not error.fault if error.numeric else error.agreement == 1,
        "agreement": error.agreement,
        "positions": error.compared,
        "fault": error.fault or None,
    }


def _verdict(gate: str, verdict: "Verdict") -> dict[str, Any]:
    return {
        "gate": gate,
        "passed": verdict.passed,
        "measured": verdict.measured,
        "limit": verdict.limit,
        "interval": verdict.interval,
        "expected": verdict.expected,
        "output": verdict.output or None,
        "message": verdict.message,
    }


def _print(errors: "Sequence[OutputError]", verdict: "Verdict | None") -> None:
    out = console()
    found = table("output", ">cosine", ">max abs", ">max rel", ">SNR dB", ">agreement", "")
    for each in errors:
        share = "" if each.agreement is None else f"{100 * each.agreement:.2f} % of {each.compared}"
        found.add_row(
            each.output,
            _number(each.cosine, ".6f"),
            _number(each.maximum_absolute, ".3g"),
            _number(each.maximum_relative, ".3g"),
            _number(each.snr_db, ".1f"),
            share,
            each.fault,
        )
    out.print(found)
    if verdict is not None and verdict.passed:
        out.print(f"passed: {verdict.message}", markup=False)


def _number(value: float | None, form: str) -> str:
    if value is None:
        return ""
    return format(value, form) if math.isfinite(value) else ("equal" if value > 0 and form == ".1f" else str(value))
