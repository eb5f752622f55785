"""Models in eight bits and in 16 in one process: both tuned, captured and timed in turns, and their steps side by side.

Where layers are slower in eight bits, a third is the same with those in 16.

    python benches/probes_gpu/eight.py --graphs .gpu --models resnet50_int8:64 vit_b32_fp8:64 --seconds 80

Subjects and graphs are the bench's (`benches/engine_gpu.py prepare`). Errors are norm-relative against FP32 on inputs
that nothing was tuned or calibrated on. Needs torch and the package's `engine` folder.
"""

import argparse
import statistics
import sys
import time
import traceback
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "python")]

import torch  # noqa: E402

from benches.gpu import ours, ready, weights  # noqa: E402
from benches.gpu.subjects import SUBJECTS, Subject  # noqa: E402
from penstock.engine import cores  # noqa: E402
from penstock.engine.cuda.candidates import Tuned  # noqa: E402
from penstock.engine.cuda.mixing import slower, times_of  # noqa: E402
from penstock.engine.cuda.tuner import tune  # noqa: E402
from penstock.engine.lowered import from_json  # noqa: E402

if TYPE_CHECKING:
    from penstock.engine.cuda.precompile import Compilers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=Path, required=True)
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="NAME:BATCH[:SECONDS[:OF 16 BITS]]",
        help="or `sweep`: cuts of a few convolutions",
    )
    parser.add_argument("--seconds", type=float, default=80.0, help="after which no model is begun")
    parser.add_argument("--tune-seconds", type=float, default=12.0)
    parser.add_argument("--wide-seconds", type=float, default=4.0, help="for tuning the same in 16 bits")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--all", type=int, default=4, help="candidates named in a row")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with ours.compilers(options.device, cores.available()) as compilers:
        for each in options.models:
            name, batch, *seconds = [*each.split(":"), "1"] if ":" not in each else each.split(":")
            if time.monotonic() >= until:
                print(f"{each}: no time was left")
                continue
            try:
                if name == "sweep":
                    sweep(compilers)
                    continue
                own, wide, *_ = [*map(float, seconds), *(options.tune_seconds, options.wide_seconds)[len(seconds) :]]
                measure(SUBJECTS[name], int(batch), own, wide, options, compilers)
            except Exception:  # the others are still measured
                traceback.print_exc(file=sys.stdout)
            torch.cuda.empty_cache()


def measure(
    subject: Subject,
    batch: int,
    seconds: float,
    wide_seconds: float,
    options: argparse.Namespace,
    compilers: "Compilers | None",
) -> None:
    started = time.monotonic()
    folder, device = options.graphs, options.device
    graph = from_json((folder / f"{subject.name}.b{batch}.json").read_bytes())
    tensors = weights.complete(graph, weights.carried(folder, subject, batch), device)
    given, others = weights.inputs(subject, batch, 7), weights.inputs(subject, batch, 8)
    wide = ours.Model(graph, tensors, given, device)
    narrow = ours.Model(graph, tensors, given, device, subject.eight, [others])
    ways: list[ready.Ready] = []
    rows: dict[str, list[Tuned]] = {}
    tries = [(narrow, seconds), (wide, wide_seconds)]
    for model, limit in tries:
        if limit <= 0:
            continue
        result = tune(model.executor(), model.inputs(others), seconds=limit, compilers=compilers)
        rows[model.label] = result.rows
        note = f"{result.untimed} untimed in {result.seconds:.0f} s"
        for way in ours.ways(model, result.choices, note, compilers):
            ways.append(replace(way, way=model.label))  # the first: launched early
            break
        if model is wide:
            lost = slower(narrow.graph, times_of(rows[narrow.label]), times_of(rows[wide.label]))
            print(f"{len(lost)} layers slower in eight bits: {' '.join(sorted(lost))[:200]}")
            tries += [(narrow.mixed(lost), seconds / 2)] if lost else []
    turns = ready.take_turns(ways, 5, lambda: False)
    print(f"\n## {subject.name} batch {batch}: {time.monotonic() - started:.0f} s")
    for way in ways:
        label, spent = way.way, statistics.median(turns[way.way])
        error, _ = ready.judge(way.answer(), way.expected)
        said = "same bits" if ready.repeats(way, 3) else "BITS DIFFER"
        total = sum(row.microseconds * len(row.steps) for row in rows[label]) / 1e3
        print(f"{label}: {spent:.4f} ms, error {error:.2e}, {said}, steps {total:.4f} ms; {way.note}")
    for label, found in rows.items():
        print(f"-- {label}")
        for row in found[: options.rows]:
            print(line(row, options.all))


# Size of the map, channels in and out, taps: what most of a residual network's time goes into. Then cuts.
SHAPES = ((56, 64, 256, 1), (56, 64, 64, 3), (28, 128, 512, 1), (14, 256, 256, 3), (14, 256, 1024, 1), (7, 512, 512, 3))
CUTS = (
    *((64, 64, 4, 0), (64, 128, 4, 0), (64, 128, 4, 128), (128, 64, 4, 0), (64, 256, 8, 0), (64, 256, 8, 128)),
    *((128, 128, 4, 0), (128, 128, 8, 0), (128, 128, 8, 128), (256, 64, 8, 0), (128, 256, 8, 0), (256, 128, 8, 0)),
)


def sweep(compilers: "Compilers | None") -> None:
    """More cuts than tuners try, of convolutions of 64 images; ones of one tap add a residual."""
    from penstock.engine.cuda.kernels.epilogue import Epilogue
    from penstock.engine.cuda.kernels.implicit_gemm import conv2d_nhwc_launch
    from penstock.engine.cuda.kernels.tiles import Tile
    from penstock.engine.cuda.kernels.tuning import microseconds

    started, launches = time.monotonic(), {}
    for shape in SHAPES:
        size, channels, filters, taps = shape
        x, w, added = (
            torch.randint(-64, 64, each, dtype=torch.int8, device="cuda")
            for each in ((64, size, size, channels), (filters, taps, taps, channels), (64, size, size, filters))
        )
        rows = torch.full((2, filters), 1e-4, device="cuda")
        for block_m, block_n, warps, registers in CUTS:
            for depth, stages in ((64, 2), (64, 4), (128, 2), (128, 4)):
                deep = channels * taps * taps
                if (
                    block_n > filters
                    or depth > channels
                    or stages > max(2, deep // depth)
                    or (stages == 2 and deep > 512)
                ):
                    continue
                cut = (block_m, block_n, depth, warps, stages, 1, 8, registers)
                launches[shape, cut] = conv2d_nhwc_launch(
                    x, w, out=torch.empty_like(added), config=Tile(*cut),
                    bias=rows[0], scale=rows[1], residual=added if taps == 1 else None,
                    epilogue=Epilogue("relu", residual_scale=0.1, out_scale=0.1), padding=(taps // 2, taps // 2),
                )  # fmt: skip
    assert compilers is not None
    futures = {compilers.submit(launch): key for key, launch in launches.items()}
    built = {futures[each] for each in wait(futures, 22.0).done}
    for each in futures:
        each.cancel()
    print(f"\n## sweep: {len(built)} of {len(launches)} compiled in {time.monotonic() - started:.0f} s")
    for shape in SHAPES:
        times = {}
        for (of, cut), launch in launches.items():
            if of == shape and (of, cut) in built:
                try:
                    times[cut] = microseconds(launch.run, calls=10, replays=3)
                except Exception as error:  # too much shared memory
                    times[cut] = float("inf")
                    print(shape, cut, str(error)[:80])
        best = sorted(times.items(), key=lambda item: item[1])[:14]
        print(shape, "  ".join(f"{'x'.join(map(str, cut))} {spent:.1f}" for cut, spent in best))
    print(f"sweep took {time.monotonic() - started:.0f} s", flush=True)


def line(row: Tuned, most: int) -> str:
    step, graph = row.site.step, row.site.graph
    shapes = " ".join(
        "x".join(map(str, graph.shape(each))) for each in step.inputs if each.role in ("x", "weight", "q")
    )
    types = "/".join(
        dict.fromkeys((graph.stored(step.inputs[0].value).datatype, graph.values[step.outputs[0]].datatype))
    )
    best = sorted(row.times.items(), key=lambda item: item[1])[:most]
    extra = "+res" if step.operand("residual") else ""
    lost = f" LOST {len(row.failed)}: {next(iter(row.failed.values()))[:80]}" if row.failed else ""
    said = "  ".join(f"{choice} {spent:.1f}" for choice, spent in best)
    spent = row.microseconds * len(row.steps)
    return (
        f"{spent:7.1f} = {len(row.steps)} x {row.microseconds:6.2f}  {step.kind}{extra} {types} {shapes}: {said}{lost}"
    )


if __name__ == "__main__":
    main()
