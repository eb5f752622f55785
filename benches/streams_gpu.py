"""Contexts of one engine side by side on a GPU: how throughput grows, what overlaps, what an urgent stream gains.

    python benches/streams_gpu.py resnet50.engine --spans contexts.json
    python benches/streams_gpu.py contexts.json --picture docs/pictures/contexts.svg

Takes a built engine. Two tables in Markdown: rows per second by number of contexts, at the smallest and the largest
bucket; latency of a context at the smallest bucket, alone, beside contexts that keep the device busy at the largest,
and beside the same with a stream of higher priority. Then how much of the copying was hidden behind computing; what
ran when is written to a file, of which a picture is drawn on any machine. Every fiftieth answer is compared with that
of a context on its own.
"""

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import penstock as ps

Arrays = dict[str, NDArray[Any]]

COLOURS: Final = {
    "host copy in": "#c9ced6",
    "copy in": "#5b8def",
    "compute": "#f2994a",
    "copy out": "#27ae60",
    "host copy out": "#c9ced6",
}
PICTURE_CALLS: Final = 5
PICTURE_CONTEXTS: Final = 3
URGENT: Final = -5


@dataclass(frozen=True)
class Part:
    """What the engine's timeline calls a span, here and in the file."""

    context: int
    call: int
    part: str
    begin: float
    end: float


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("given", type=Path, help="an engine to measure, or the .json of one that was, to draw")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--contexts", default="1,2,4,8")
    parser.add_argument("--busy", type=int, default=2, help="contexts that keep the device busy")
    parser.add_argument("--spans", type=Path, help="where what ran when is written")
    parser.add_argument("--picture", type=Path, help="SVG of the contexts at the largest bucket")
    wanted = parser.parse_args()
    if wanted.given.suffix == ".json":
        found = json.loads(wanted.given.read_text())
        draw(wanted.picture, [Part(**each) for each in found["spans"]], found["title"])
        return 0
    engine: Any = ps.load(wanted.given)
    counts = [int(each) for each in wanted.contexts.split(",")]
    wrong, spans, title = measure(engine, wanted.given.stem, counts, wanted.busy, wanted.seconds)
    if wanted.spans is not None:
        wanted.spans.write_text(json.dumps({"title": title, "spans": [asdict(each) for each in spans]}))
    if wanted.picture is not None:
        draw(wanted.picture, spans, title)
    return 1 if wrong else 0


def measure(
    engine: Any, name: str, counts: Sequence[int], busy: int, seconds: float
) -> tuple[int, Sequence[Part], str]:
    """Prints the tables; wrong answers, and the spans of contexts at the largest bucket with a title."""
    buckets = sorted(engine.manifest.buckets, key=_rows)
    least, most = (_inputs(engine, each.shapes) for each in (buckets[0], buckets[-1]))
    wrong = _scaling(engine, least, most, counts, seconds)
    wrong += _urgent(engine, least, most, busy, seconds)
    title = f"Contexts of {name}, batch {_rows(buckets[-1])}"
    return wrong, _overlap(engine, buckets[-1].program, most), title


def _rows(bucket: Any) -> int:
    return int(min(shape[0] for shape in bucket.shapes.values()))


@dataclass
class Worker:
    """A context in a thread that calls it again and again until it is told to stop."""

    execute: Callable[[Arrays], Arrays]
    inputs: Arrays
    expected: Arrays
    wrong: int = 0

    def __post_init__(self) -> None:
        self.milliseconds: list[float] = []

    def work(self, stop: threading.Event) -> None:
        while not stop.is_set():
            began = time.perf_counter()
            answers = self.execute(self.inputs)
            self.milliseconds.append(1e3 * (time.perf_counter() - began))
            if len(self.milliseconds) % 50 == 1:
                self.wrong += any(not np.array_equal(answers[name], self.expected[name]) for name in self.expected)


def together(workers: Sequence[Worker], seconds: float) -> float:
    """Runs them side by side; the seconds that it took."""
    stop = threading.Event()
    threads = [threading.Thread(target=each.work, args=(stop,)) for each in workers]
    began = time.perf_counter()
    for each in threads:
        each.start()
    time.sleep(seconds)
    stop.set()
    for each in threads:
        each.join()
    return time.perf_counter() - began


def _inputs(engine: Any, shapes: Any) -> Arrays:
    rng = np.random.default_rng(7)
    types = {spec.name: spec.dtype for spec in engine.inputs}
    return {
        name: rng.standard_normal(shape).astype(types[name])
        if types[name].kind == "f"
        else rng.integers(0, 255, shape).astype(types[name])
        for name, shape in shapes.items()
    }


def _worker(engine: Any, inputs: Arrays, expected: Arrays, *, in_place: bool = False, priority: int = 0) -> Worker:
    """`in_place`: its rows lie in the memory that the device copies from, as a server's do."""
    instance = engine.instance(priority=priority)
    if in_place:
        inputs = {name: _laid(instance.input_memory()[name], array) for name, array in inputs.items()}
    instance.execute(inputs)  # captured, and warm
    return Worker(instance.execute, inputs, expected)


def _laid(memory: NDArray[Any], array: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found


def _scaling(engine: Any, least: Arrays, most: Arrays, counts: Sequence[int], seconds: float) -> int:
    wrong = 0
    print("| rows of a call | contexts | rows/s | of one context | p50 ms | p99 ms |")
    print("|---|---|---|---|---|---|")
    for inputs, in_place in ((least, False), (most, False), (most, True)):
        rows, first = len(next(iter(inputs.values()))), 0.0
        expected = engine(**inputs)
        for count in counts:
            workers = [_worker(engine, inputs, expected, in_place=in_place) for _ in range(count)]
            took = together(workers, seconds)
            times = [each for worker in workers for each in worker.milliseconds]
            rate = rows * len(times) / took
            first = first or rate
            wrong += sum(each.wrong for each in workers)
            p50, p99 = np.percentile(times, [50, 99])
            title = f"{rows}, in place" if in_place else str(rows)
            print(f"| {title} | {count} | {rate:.0f} | {rate / first:.2f} x | {p50:.3f} | {p99:.3f} |", flush=True)
    print(f"\n{wrong} wrong answers\n", flush=True)
    return wrong


def _urgent(engine: Any, least: Arrays, most: Arrays, busy: int, seconds: float) -> int:
    expected, long = engine(**least), engine(**most)
    wrong = 0
    print(f"| a call of the smallest bucket | p50 ms | p99 ms | calls of {busy} contexts at the largest, per second |")
    print("|---|---|---|---|")
    beside = (("alone", 0, 0), ("beside them", 0, busy), (f"beside them, priority {URGENT}", URGENT, busy))
    for title, priority, crowd in beside:
        one = _worker(engine, least, expected, priority=priority)
        others = [_worker(engine, most, long, in_place=True) for _ in range(crowd)]
        took = together([one, *others], 2 * seconds)
        p50, p99 = np.percentile(one.milliseconds, [50, 99])
        calls = sum(len(each.milliseconds) for each in others) / took
        wrong += sum(each.wrong for each in (one, *others))
        print(f"| {title} | {p50:.3f} | {p99:.3f} | {calls:.0f} |", flush=True)
    print(f"\n{wrong} wrong answers\n", flush=True)
    return wrong


def _overlap(engine: Any, program: int, inputs: Arrays) -> Sequence[Part]:
    found = engine.compiled(program).timeline(inputs, PICTURE_CONTEXTS, PICTURE_CALLS + 3)
    spans = [Part(**{name: getattr(each, name) for name in Part.__dataclass_fields__}) for each in found]
    copies = [(each.begin, each.end) for each in spans if each.part in ("copy in", "copy out")]
    computing = [(each.begin, each.end) for each in spans if each.part == "compute"]
    whole = sum(end - begin for begin, end in copies)
    hidden = sum(
        max(0.0, min(end, last) - max(begin, first)) for begin, end in copies for first, last in _merged(computing)
    )
    print(
        f"copies on the device {whole:.2f} ms, of which behind somebody's computing {100 * hidden / whole:.0f} %",
        flush=True,
    )
    return spans


def draw(picture: Path, spans: Sequence[Part], title: str) -> None:
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(drawn(spans, escape(title)))


def _merged(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, end))
    return merged


def drawn(spans: Sequence[Part], title: str) -> str:
    """A lane for each context and what it uses: the host, the copies, the kernels."""
    shown = [each for each in spans if 1 <= each.call <= PICTURE_CALLS]
    start, stop = min(each.begin for each in shown), max(each.end for each in shown)
    width, left, lane, top = 1000.0, 110.0, 20.0, 64.0
    scale = (width - left - 20) / (stop - start)
    rows = {"host copy in": 0, "host copy out": 0, "copy in": 1, "copy out": 1, "compute": 2}
    names = ("host", "copies", "kernels")
    count = 1 + max(each.context for each in shown)
    height = top + count * (3 * lane + 14) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
        f'<text x="16" y="24" font-size="15" font-weight="600">{title}</text>',
    ]
    at = 16.0
    for part, text in (("host copy in", "host copies"), ("copy in", "host to device"), ("compute", "kernels"),
                       ("copy out", "device to host")):  # fmt: skip
        parts.append(f'<rect x="{at:.0f}" y="36" width="12" height="12" fill="{COLOURS[part]}"/>')
        parts.append(f'<text x="{at + 17:.0f}" y="46">{text}</text>')
        at += 130
    for context in range(count):
        base = top + context * (3 * lane + 14)
        for row, name in enumerate(names):
            y = base + row * lane
            parts.append(f'<text x="{left - 8:.0f}" y="{y + 14:.1f}" text-anchor="end">{name} {context + 1}</text>')
            parts.append(
                f'<rect x="{left}" y="{y:.1f}" width="{width - left - 20}" height="{lane - 3}" fill="#f6f7f9"/>'
            )
    for each in shown:
        y = top + each.context * (3 * lane + 14) + rows[each.part] * lane
        x, wide = left + scale * (each.begin - start), max(0.6, scale * (each.end - each.begin))
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{lane - 3}" fill="{COLOURS[each.part]}"/>'
        )
    step = max(1, round((stop - start) / 8))
    for tick in range(0, int(stop - start) + 1, step):
        x = left + scale * tick
        parts.append(f'<text x="{x:.1f}" y="{height - 12:.0f}" text-anchor="middle" fill="#555">{tick} ms</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
