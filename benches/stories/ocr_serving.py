"""The recogniser of text lines, served four ways: plain, batched, two instances, as an engine; beside peers.

    python -m benches.stories.ocr_serving                    on this processor; builds the engine once
    python -m benches.stories.ocr_serving --peers            and FastAPI, LitServe and Triton, installed into .peers
    python -m benches.stories.ocr_serving prepare            writes FOLDER/ocr-gpu, for a machine with a GPU
    python -m benches.stories.ocr_serving --gpu              there: ONNX Runtime's CUDA provider, and our FP16 engine
    python -m benches.stories.ocr_serving draw --json FILE   the page and the picture of what was measured elsewhere

Client batch 2, concurrency 2 to 16, real lines of 48 x 320 in bytes, HTTP, all on one machine. Peers that are installed
are measured in any case. Exit status 1: a request failed, or somebody misread the lines.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benches.stories import machine, ocr_findings, ocr_lines, ocr_models, ocr_ways
from benches.stories.ocr_findings import Reading, Results
from benches.stories.ocr_lines import Lines
from benches.stories.ocr_measuring import Point, add, in_turns, read, requests
from benches.stories.ocr_ways import Absent, Running, Way, serving
from benches.stories.report import DEFAULT_FOLDER, Story, publish

LEVELS: Final = (2, 4, 8, 16)
_TITLE: Final = "A text recogniser, served four ways"
_ASKS: Final = (
    "How many lines a second does one recogniser serve as it is, with dynamic batching, with two instances, and as an "
    "engine, and what becomes of the 95th percentile, when two to sixteen clients ask for two lines at a time?"
)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", nargs="?", default="measure", choices=["measure", "prepare", "draw"])
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT_FOLDER, metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=1.3, help="of a server at a concurrency in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--levels", type=int, nargs="+", default=list(LEVELS), help="requests at once")
    parser.add_argument("--lines", type=int, default=ocr_lines.LINES)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of the build")
    parser.add_argument("--cores", type=int, default=2, help="that all share, on the CPU")
    parser.add_argument("--peers", action="store_true", help="install peers that are missing")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--json", type=Path, help="of draw: what was written where plotly is not installed")
    parser.add_argument("--prepared", type=Path, help="of --gpu; default: FOLDER/ocr-gpu")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries --gpu without one")
    parser.add_argument("--contexts", type=int, default=2, help="of the engine on a GPU")
    parser.add_argument("--most-rows", type=int, default=max(ocr_models.GPU_BATCHES), help="of a batch on a GPU")
    parser.add_argument("--tune-seconds", type=float, default=15.0, help="of its largest batch; others a third")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    folder: Path = options.output.resolve()
    prepared: Path = (options.prepared or folder / "ocr-gpu").resolve()
    if options.do == "prepare":
        from benches.stories import ocr_cuda

        print("\n".join(ocr_cuda.prepare(prepared)))
        return 0
    if options.do == "draw":
        return _draw(options.json, folder)
    signal.signal(signal.SIGTERM, _end)
    with ExitStack() as stack:
        if options.gpu:
            lines = ocr_lines.saved(prepared).first(options.lines)
            servers, absent = _start_on_gpu(options, prepared, folder, stack)
            about: dict[str, object] = {"contexts": options.contexts, "tune_seconds": options.tune_seconds}
            if options.device == "cpu":
                absent.append(Absent("The GPU", "all of this ran on a processor, to try the script"))
        else:
            lines, servers, absent, about = _start(options, folder, stack)
        results, points = _measured(options, lines, servers)
    for each in absent:
        print(f"{each.name} not measured: {each.reason}", file=sys.stderr)
    told = {
        **about,
        "absent": [f"{each.name} was not measured: {each.reason}." for each in absent],
        "client_rows": ocr_models.CLIENT_ROWS,
        "seconds": options.seconds,
        "turns": {f"{name}, {level}": point.turns for (name, level), point in points.items()},
        "messages": {f"{name}, {level}": point.messages for (name, level), point in points.items() if point.messages},
    }
    publish(_story(results, told), folder)
    return 0 if _right(results) else 1


def _end(number: int, _: object) -> None:
    """The servers end with this when it is told to: they are sessions of their own, and ending them takes a while."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


# ---- starting ----


def _start(
    options: argparse.Namespace, folder: Path, stack: ExitStack
) -> tuple[Lines, list[Running], list[Absent], dict[str, object]]:
    own = folder / "ocr"
    onnx, engine = ocr_models.onnx_file(own), ocr_models.engine(own, options.budget)
    lines = ocr_lines.rendered(options.lines)
    usable = sorted(os.sched_getaffinity(0))[: options.cores]
    # Whoever is started from here on shares them.
    os.sched_setaffinity(0, usable)
    cores = len(usable)
    servers = [stack.enter_context(serving(way, own / "logs")) for way in ocr_ways.ours(onnx, engine.path, own, cores)]
    about: dict[str, object] = {
        "cores": cores,
        "engine": {
            "tactics": engine.tactics, "accuracy": engine.accuracy, "build_seconds": engine.seconds,
            "found": engine.found,
        },
    }  # fmt: skip
    if options.no_peers:
        return lines, servers, [], about
    found, absent, tried = _peers(options, onnx, own, lines, cores, stack)
    return lines, [*servers, *found], absent, about | {"layouts": tried}


def _peers(
    options: argparse.Namespace, onnx: Path, folder: Path, lines: Lines, cores: int, stack: ExitStack
) -> tuple[list[Running], list[Absent], dict[str, float]]:
    """Each in its better layout, by one look at the highest concurrency; with what was seen."""
    candidates: dict[str, list[Way]] = {}
    absent: dict[str, Absent] = {}
    for layout in ocr_ways.layouts(cores):
        ways, missing = ocr_ways.peers(onnx, layout, folder, install=options.peers)
        for way in ways:
            candidates.setdefault(way.name, []).append(way)
        absent |= {each.name: each for each in missing}
    found: list[Running] = []
    tried: dict[str, float] = {}
    for name, ways in candidates.items():
        try:
            rates = [_look(way, folder, lines, max(options.levels), options.seconds) for way in ways]
            tried |= {way.words: rate for way, rate in zip(ways, rates, strict=True)}
            best = ways[rates.index(max(rates))]
            found.append(stack.enter_context(serving(best, folder / "logs")))
        except RuntimeError as error:
            absent[name] = Absent(name, str(error))
    return found, list(absent.values()), tried


def _look(way: Way, folder: Path, lines: Lines, level: int, seconds: float) -> float:
    """Inferences a second."""
    print(f"{way.name}: {way.words} ...", file=sys.stderr, flush=True)
    point = Point()
    with serving(way, folder / "logs") as server:
        add(point, server, requests(lines, v2=way.v2), level, seconds)
    return point.figures()["infer_per_s"]


def _start_on_gpu(
    options: argparse.Namespace, prepared: Path, folder: Path, stack: ExitStack
) -> tuple[list[Running], list[Absent]]:
    ways, absent = ocr_ways.on_gpu(prepared, options.device, options.contexts, options.tune_seconds, options.most_rows)
    servers = []
    for way in ways:
        print(f"starting {way.name} ...", file=sys.stderr, flush=True)
        try:
            servers.append(stack.enter_context(serving(way, folder / "ocr" / "logs")))
        except RuntimeError as error:
            absent.append(Absent(way.name, str(error)))
    return servers, absent


# ---- measuring and telling ----


def _measured(
    options: argparse.Namespace, lines: Lines, servers: Sequence[Running]
) -> tuple[Results, dict[tuple[str, int], Point]]:
    if not servers:
        raise SystemExit("nobody can be measured: see above")
    levels = tuple(sorted(options.levels))
    print(f"reading {len(lines.texts)} lines with each, {levels[-1]} requests at once ...", file=sys.stderr, flush=True)
    texts = {each.way.name: read(each, lines, levels[-1]) for each in servers}
    threads = 2 if options.gpu else 1
    points = in_turns(servers, lines, levels, options.turns, options.seconds, threads)
    base = texts[servers[0].way.name]
    readings = {
        name: Reading(
            lines.accuracy(mine, hard=False),
            lines.accuracy(mine, hard=True),
            sum(one == other for one, other in zip(mine, base, strict=True)) / len(base),
        )
        for name, mine in texts.items()
    }
    results = Results(
        ours=tuple(each.way.name for each in servers if not each.way.peer),
        peers=tuple(each.way.name for each in servers if each.way.peer),
        levels=levels,
        points={key: point.figures() for key, point in points.items()},
        readings=readings,
        words={each.way.name: each.way.words for each in servers},
        gpu=options.gpu,
        amx=machine.has_amx(),
    )
    return results, points


def _story(results: Results, told: Mapping[str, Any]) -> Story:
    """`told`: what was measured besides; plain data."""
    engine = told.get("engine")
    built = (f"The engine: {', '.join(engine['tactics'])}; {engine['accuracy']}.",) if engine else ()
    return Story(
        name="ocr_serving_gpu" if results.gpu else "ocr_serving",
        title=_TITLE + (" on a GPU" if results.gpu else ""),
        asks=_ASKS,
        tables=ocr_findings.tables(results),
        figures=_if_drawable(lambda: ocr_findings.figures(results)),
        findings=(*ocr_findings.findings(results), *built, *told["absent"]),
        data={"results": ocr_findings.to_data(results), "told": told},
    )


def _draw(written: Path | None, folder: Path) -> int:
    if written is None:
        raise SystemExit("draw needs --json FILE")
    document = json.loads(written.read_text())
    data = document["data"]
    publish(_story(ocr_findings.from_data(data["results"]), data["told"]), folder, document["machine"])
    return 0


def _if_drawable(draw: Callable[[], tuple[object, ...]]) -> tuple[object, ...]:
    """None on a machine without plotly: the tables and the JSON stand without."""
    try:
        return draw()
    except ImportError:
        return ()


def _right(results: Results) -> bool:
    good = ocr_findings.accurate(results)
    return good and not any(each["failed"] for each in results.points.values())


if __name__ == "__main__":
    sys.exit(main())
