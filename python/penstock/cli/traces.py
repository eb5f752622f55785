"""`penstock inspect FILE.jsonl`: what the requests in a trace of `penstock serve --trace` took, step by step."""

from pathlib import Path
from typing import TYPE_CHECKING

from penstock.cli.output import console, print_json, table

if TYPE_CHECKING:
    from penstock.pipeline.summary import Summary


def show_trace(file: Path, *, as_json: bool, most: int | None) -> None:
    """`most`: how many of the slowest requests are drawn; None: all."""
    from penstock.pipeline.summary import summary
    from penstock.pipeline.waterfall import records

    found = summary(records(file), most)
    if as_json:
        document = {"kind": "trace", "file": file.name, "requests": found.requests}
        print_json(document | {"steps": found.rows, "shown": found.shown})
    else:
        _print(file, found, slowest=most is not None)


def _print(file: Path, found: "Summary", *, slowest: bool) -> None:
    from penstock.pipeline.waterfall import render

    out = console()
    out.print(f"{file.name}: {found.requests} requests", markup=False, soft_wrap=True)
    if not found.requests:
        return
    times = (">mean ms", ">queue", ">median", ">99 %", ">max")
    steps = table("pipeline", "step", "kind", ">ok", ">failed", ">cancelled", *times)
    for each in found.rows:
        counts = (str(count) for count in (each.ok, each.failed, each.cancelled))
        figures = (each.mean_ms, each.queue_mean_ms, each.median_ms, each.percentile_99_ms, each.max_ms)
        shown = ("" if figure is None else f"{figure:.2f}" for figure in figures)
        steps.add_row(each.pipeline, each.step, each.kind, *counts, *shown)
    out.print(steps)
    if slowest and found.requests > len(found.shown):
        out.print(f"\nthe slowest {len(found.shown)}:", markup=False)
    for record in found.shown:
        out.print(f"\n{render(record)}", markup=False, soft_wrap=True)
