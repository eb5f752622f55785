"""`penstock time`: trtexec's job, flags and report layout, for engines and for model files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from penstock import limits
from penstock.cli.custom_ops import CustomOps
from penstock.cli.output import console, plain, print_json, ranges, say, shapes_text, table
from penstock.cli.roofline import ROOFLINE, ceilings_json, memory_json, memory_text, region_json, roofline_cells
from penstock.cli.usage import number
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.build.timing import OfDevice, Report, Times
    from penstock.engine import Runtime
    from penstock.engine.plan import Region, Shapes
    from penstock.engine.roofline import Verdict

_MOST_CALLS: Final = 10**9
"""Of a stream; a year of calls of 30 ms."""

_MOST_THREADS: Final = 1024
"""More than a machine has cores; libraries hang where the system refuses them threads."""

_MILLISECONDS = "min = {:.4g} ms, max = {:.4g} ms, mean = {:.4g} ms, median = {:.4g} ms"
_NO_COPY = "0 ms: the CPU computes where the arrays are"


def _percentiles(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < each <= 100 for each in found):
        raise typer.BadParameter(f"expected numbers up to 100 as in 90,95,99, got {text!r}")
    return found


def time(
    file: Annotated[Path, typer.Argument(help="An engine, or model.onnx or model.xml in FP32.", show_default=False)],
    shapes: Annotated[
        list[Any] | None,
        typer.Option(parser=ranges, metavar="NAME:DIMS", help="Default: the optimum of the first profile. Repeatable."),
    ] = None,
    inputs: Annotated[Path | None, typer.Option(help="Arrays to run on: data.npz or a folder; default: noise.")] = None,
    iterations: Annotated[
        int, typer.Option(min=1, max=_MOST_CALLS, help="At least so many calls of each stream.")
    ] = 10,
    duration: Annotated[
        float, typer.Option(min=0, max=limits.LONGEST_SECONDS, callback=number, help="At least so many seconds.")
    ] = 3,
    warm_up: Annotated[
        float,
        typer.Option(
            "--warmUp",
            min=0,
            max=1000 * limits.LONGEST_SECONDS,
            callback=number,
            help="Milliseconds before anything is timed.",
        ),
    ] = 200,
    streams: Annotated[
        int, typer.Option("--streams", "--infStreams", min=1, max=limits.INSTANCES, help="Callers at once.")
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, max=_MOST_THREADS, help="Threads of a call; default: cores / streams.")
    ] = None,
    percentile: Annotated[
        Any, typer.Option(parser=_percentiles, metavar="P,P,...", help="Of the latency.")
    ] = "90,95,99",
    dump_profile: Annotated[
        bool, typer.Option("--dumpProfile", help="Time each region, by the library's counters.")
    ] = False,
    runtime: Annotated[str | None, typer.Option(help="Of a model file: onnxruntime or openvino.")] = None,
    custom_ops: CustomOps = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Time an engine or a model alone: throughput, latency, and where the time goes."""
    from penstock.build import timing
    from penstock.build.comparing import samples_of, shapes_of
    from penstock.build.samples import Samples
    from penstock.engine import RUNTIMES, load

    if runtime is not None and runtime not in RUNTIMES:
        raise UsageError.of("runtime", runtime, f"one of {', '.join(RUNTIMES)}")
    model = load(file, runtime=runtime, threads=threads, instances=streams)
    at = shapes_of([model], shapes or ())
    data = samples_of(model, at, inputs, max(1, *(shape[0] for shape in at.values() if shape))) if inputs else None
    samples = Samples(model.inputs, data)
    samples.settle(lambda given: model(**given), [at])
    arrays = samples.at(at)
    say(f"{file.name} with {shapes_text(at)}, {streams} stream{'s' if streams > 1 else ''}, {duration:g} s")
    wanted = timing.Load(streams, warm_up, duration, iterations)
    report = timing.measure(model, arrays, wanted, percentile)
    device = timing.of_device(model, arrays, report)
    regions = device.regions if device else timing.profile(file, model, arrays) if dump_profile else None
    if as_json:
        print_json(_document(file, model, at, wanted, report, regions, device))
        return
    _print(report, at, regions if dump_profile else None, device)


def _rows(shapes: "Shapes") -> int:
    return next((shape[0] for shape in shapes.values() if shape), 1)


def _statistics(times: "Times") -> dict[str, float]:
    return {
        "min": times.minimum,
        "max": times.maximum,
        "mean": times.mean,
        "median": times.median,
        **{f"percentile_{rank:g}": value for rank, value in times.percentiles},
    }


def _document(
    file: Path,
    model: "Runtime",
    shapes: "Shapes",
    wanted: Any,
    report: "Report",
    regions: "tuple[Region, ...] | None",
    device: "OfDevice | None",
) -> dict[str, Any]:
    latency, phases = _statistics(report.latency), report.phases
    return {
        "file": file.name,
        "runtime": model.name,
        "device": _device(model),
        "shapes": plain(shapes),
        "streams": wanted.streams,
        "calls": report.calls,
        "wall_time_s": report.wall_seconds,
        "throughput_calls_per_s": report.calls_per_second,
        "throughput_rows_per_s": report.calls_per_second * _rows(shapes),
        "latency_ms": latency,
        "enqueue_time_ms": _statistics(report.enqueue) if report.enqueue else None,
        "host_to_device_ms": _statistics(phases.copy_in) if phases else dict.fromkeys(latency, 0.0),
        "compute_ms": _statistics(phases.compute) if phases else latency,
        "device_to_host_ms": _statistics(phases.copy_out) if phases else dict.fromkeys(latency, 0.0),
        "regions": None
        if regions is None
        else [region_json(each, device.ceilings if device else None) for each in regions],
        "device_memory": memory_json(device.memory) if device else None,
        "ceilings": ceilings_json(device.ceilings) if device else None,
        "verdict": _verdict(device.verdict) if device else None,
    }


def _verdict(verdict: "Verdict") -> dict[str, Any]:
    return {
        "bound": verdict.bound,
        "text": verdict.text,
        "time_ms": dict(verdict.milliseconds),
        "floor_ms": verdict.floor_ms,
        "roofline_share": verdict.share_of_floor,
    }


def _device(model: "Runtime") -> str:
    from penstock.engine import Engine

    return model.manifest.fingerprint.device if isinstance(model, Engine) else "cpu"


def _line(name: str, times: "Times") -> str:
    text = _MILLISECONDS.format(times.minimum, times.maximum, times.mean, times.median)
    return f"{name}: {text}" + "".join(f", percentile({rank:g}%) = {value:.4g} ms" for rank, value in times.percentiles)


def _print(report: "Report", shapes: "Shapes", regions: "tuple[Region, ...] | None", device: "OfDevice | None") -> None:
    out = console()
    rows, phases = _rows(shapes), report.phases
    lines = [
        "=== Performance summary ===",
        f"Throughput: {report.calls_per_second:.6g} qps"
        + (f" ({report.calls_per_second * rows:.6g} rows/s)" if rows > 1 else ""),
        _line("Latency", report.latency),
        _line("Enqueue Time", report.enqueue) if report.enqueue else "Enqueue Time: none, the calling thread computes",
        _line("H2D Latency", phases.copy_in) if phases else f"H2D Latency: {_NO_COPY}",
        _line("Compute Time", phases.compute if phases else report.latency),
        _line("D2H Latency", phases.copy_out) if phases else f"D2H Latency: {_NO_COPY}",
        f"Total Host Walltime: {report.wall_seconds:.6g} s",
        f"Total Compute Time: {(phases.compute if phases else report.latency).mean * report.calls / 1000:.6g} s",
    ]
    if device:
        lines += [f"Device Memory: {memory_text(device.memory)}", device.verdict.text]
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
    if regions is not None:
        total = sum(each.microseconds for each in regions) or 1.0
        out.print("\n=== Profile ===")
        ceilings = device.ceilings if device else None
        profile = table(
            "region", "kind", "precision", "tactic", ">time us", ">share", *ROOFLINE[: 4 if ceilings else 0]
        )
        for each in regions:
            share = f"{100 * each.microseconds / total:.1f} %"
            more = roofline_cells(each, ceilings) if ceilings else ()
            profile.add_row(each.name, each.kind, each.precision, each.tactic, f"{each.microseconds:.1f}", share, *more)
        profile.add_row("total", "", "", "", f"{sum(each.microseconds for each in regions):.1f}", "")
        out.print(profile)
