"""`penstock build`: a model in, an engine out, with progress on standard error and the race's table at the end."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.output import accuracy_text, console, plain, print_json, ranges, read, say, table
from penstock.cli.progress import Shown
from penstock.errors import InvalidArgument

if TYPE_CHECKING:
    from penstock.build.evidence import Evidence
    from penstock.engine import Engine


def _parsed(name: str) -> Any:
    """A parser of penstock.build.options, which is imported when a flag is given."""

    def parser(text: str) -> Any:
        from penstock.build import options

        return getattr(options, name)(text)

    return read(parser)


def _gate(text: str) -> Any:
    from penstock.build.gate import parse

    return parse(text)


Texts = list[str] | None


def build(
    model: Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the engine goes: NAME.engine.", show_default=False)
    ],
    precision: Annotated[
        Any,
        typer.Option(
            "--precision",  # typer 0.27 takes a metavar that is the name in capitals for the name
            parser=_parsed("parse_precision"),
            metavar="PRECISION",
            help="auto, or the narrowest that may be used: int8, fp8, fp16, bf16, tf32, fp32.",
        ),
    ] = "auto",
    device: Annotated[
        Any, typer.Option("--device", parser=_parsed("parse_device"), metavar="DEVICE", help="auto, cpu or cuda:N.")
    ] = "auto",
    shapes: Annotated[
        list[Any] | None,
        typer.Option(
            parser=ranges,
            metavar="NAME:DIMS",
            help="x:1x3x224x224, or min,opt,max: x:1x3x8x8,8x3x8x8,64x3x8x8; repeat for more inputs or profiles.",
        ),
    ] = None,
    min_shapes: Annotated[
        str | None, typer.Option("--minShapes", metavar="NAME:DIMS", help="As trtexec: x:1x3x224x224,mask:1x5.")
    ] = None,
    opt_shapes: Annotated[str | None, typer.Option("--optShapes", metavar="NAME:DIMS", help="As trtexec.")] = None,
    max_shapes: Annotated[str | None, typer.Option("--maxShapes", metavar="NAME:DIMS", help="As trtexec.")] = None,
    buckets: Annotated[
        Any,
        typer.Option(
            parser=_parsed("parse_buckets"), metavar="N,N,...", help="Batches to prepare; default: min, opt and max."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="data.npz, a folder, or module:function; without it there is no INT8."),
    ] = None,
    accuracy: Annotated[
        Any,
        typer.Option(
            parser=read(_gate), metavar="GATE", help="'cosine>=0.999' (the default) or 'module:metric drop<=0.01'."
        ),
    ] = None,
    budget: Annotated[
        Any,
        typer.Option(parser=_parsed("parse_seconds"), metavar="TIME", help="For everything: 90s, 5m, 2h. Default: 5m."),
    ] = None,
    timing_cache: Annotated[Path | None, typer.Option(metavar="FILE", help="Keeps timings between builds.")] = None,
    workspace: Annotated[
        Any,
        typer.Option(parser=_parsed("parse_bytes"), metavar="SIZE", help="What the programs may hold together: 1GiB."),
    ] = None,
    preprocess: Annotated[
        Texts,
        typer.Option(metavar="TEXT", help="Folded into the engine: x:uint8,nhwc,mean=127.5,std=127.5; repeatable."),
    ] = None,
    reduce: Annotated[
        Texts, typer.Option(metavar="TEXT", help="Ids and scores in place of a huge output: y:argmax@2; repeatable.")
    ] = None,
    custom_ops: Annotated[
        Texts,
        typer.Option(metavar="MODULE", help="Registers Python functions for operators nobody knows; repeatable."),
    ] = None,
    contexts: Annotated[
        int, typer.Option(metavar="N", help="On a GPU: choose kernels for so many contexts that compute at once.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Build the fastest engine that this machine can run inside an accuracy budget."""
    from penstock.build import build as build_engine
    from penstock.build import evidence

    profiles = list(shapes or [])
    if (given := _trtexec(min_shapes, opt_shapes, max_shapes)) is not None:
        profiles.append(given)
    with Shown() as progress:
        made = build_engine(
            model,
            output=output,
            precision=precision,
            device=device,
            shapes=profiles or None,
            buckets=buckets,
            calibration=calibration,
            accuracy=accuracy,
            budget_seconds=budget,
            timing_cache=timing_cache,
            workspace_bytes=workspace,
            preprocess=preprocess or (),
            reduce=reduce or (),
            custom_ops=custom_ops or (),
            contexts=contexts,
            progress=progress,
        )
    found = evidence.from_json(made.evidence)
    if as_json:
        print_json(_document(model, output, made, found))
    else:
        _print(output, made, found)


def _trtexec(minimum: str | None, optimum: str | None, maximum: str | None) -> Any:
    from penstock.build.shapes import parse_trtexec

    try:
        return parse_trtexec(minimum, optimum, maximum)
    except InvalidArgument as error:
        raise typer.BadParameter(error.message) from None


def _document(model: Path, output: Path, made: "Engine", found: "Evidence") -> dict[str, Any]:
    from penstock.build import evidence

    manifest = made.manifest
    return {
        "model": model.name,
        "engine": str(output),
        "content_hash": made.content_hash,
        "precision": manifest.precision,
        "build_time_s": found.seconds,
        "buckets": [
            {
                "shapes": plain(each.shapes),
                "tactic": manifest.programs[each.program].tactic.name,
                "time_us": each.microseconds,
            }
            for each in manifest.buckets
        ],
        "candidates": [
            {
                "tactic": row.tactic.name,
                "time_us": list(row.microseconds),
                "chosen": row.chosen,
                "verdict": row.verdict,
            }
            for row in evidence.rows(found)
        ],
        "reasons": list(evidence.reasons(found)),
        "accuracy": plain(found.accuracy),
        "notes": list(found.notes),
    }


def _print(output: Path, made: "Engine", found: "Evidence") -> None:
    out = console()
    out.print(race_table(found))
    from penstock.build import evidence

    for line in (*evidence.reasons(found), *_closing(found)):
        out.print(line, markup=False, soft_wrap=True)
    seconds, precision = found.seconds, made.manifest.precision
    say(f"{output.name} is built: {precision}, {_count(len(made.manifest.programs))}, {seconds:.0f} s")


def _count(programs: int) -> str:
    return f"{programs} program{'' if programs == 1 else 's'}"


def race_table(found: "Evidence") -> Any:
    """Every candidate, its time in each bucket, and what became of it."""
    from penstock.build import evidence

    order = evidence.by_size(found.buckets)
    made = table("candidate", *(f">{evidence.label(found.buckets[each])} ms" for each in order), "verdict")
    for row in evidence.rows(found):
        timed = [row.microseconds[each] for each in order]
        times = ["" if each is None else evidence.milliseconds(each) for each in timed]
        made.add_row(row.tactic.name, *times, row.verdict, style="bold" if row.chosen else None)
    return made


def _closing(found: "Evidence") -> list[str]:
    from penstock.build import evidence

    lines = [accuracy_text(found)]
    if found.calibration is None:
        lines.append("no calibration data, so INT8 was not tried")
    floating = found.sensitivity
    if floating is not None and floating.form:
        lines.append(f"{floating.form}: {len(floating.kept)} of {floating.layers} layers are left in floating point")
    elif floating is not None:
        lines.append(f"no set of layers was found that lets INT8 pass, in {floating.evaluations} trials")
    if found.mixed is not None and found.mixed.form:
        lines.append(f"{found.mixed.form}: {evidence.kept_wide(found.mixed)}")
    elif found.mixed is not None:
        lines.append(
            f"no layers were found that let the others be in sixteen bits, in {found.mixed.evaluations} trials"
        )
    return [*lines, *found.notes]
