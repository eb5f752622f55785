"""Engines side by side on an NVIDIA GPU: what the executor makes of each model against every library, one table.

    python benches/engine_gpu.py prepare --graphs .gpu
    python benches/engine_gpu.py --graphs .gpu --seconds 520 --tune-seconds 15

`prepare` runs where ONNX and torch are and lowers the models; measuring needs torch, numpy, safetensors and the
package's `engine` folder, no ONNX and no native module. It promises figures of one process, in which ours and every
rival take turns, and that what is not accurate never counts. A model that was measured is not measured again with the
same settings and kernels (`--from` names the documents of earlier runs), and what does not fit into `--seconds` is
named as absent. Writes Markdown and JSON to --out, and to $OUT if that is set. The table's head says how to read it.
"""

import argparse
import gc
import json
import math
import os
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "python")]

from benches.gpu import report  # noqa: E402
from benches.gpu.results import Point, bar_kept, speed_up, verdict  # noqa: E402
from benches.gpu.store import Store, digest  # noqa: E402
from benches.gpu.subjects import LISTED, SUBJECTS, Subject  # noqa: E402
from penstock.engine import cores  # noqa: E402

_LEAST_SECONDS: Final = 15.0
"""Left, for another point to be begun."""

_NEEDED_ROUNDS: Final = 5
"""Below, a median hides nothing."""

_VERSIONS: Final = ("torch", "triton", "timm", "onnxruntime", "onnxruntime-gpu")
_KERNELS: Final = REPOSITORY / "python" / "penstock" / "engine" / "cuda"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", default="measure", choices=["measure", "prepare"])
    parser.add_argument("--graphs", type=Path, default=REPOSITORY / ".gpu", metavar="DIR", help="lowered graphs")
    parser.add_argument("--models", nargs="+", default=list(LISTED), choices=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=[], metavar="N", help="of those a model has")
    making = parser.add_argument_group("prepare")
    making.add_argument("--lab", type=Path, default=REPOSITORY / ".peers" / "models", help="exported ONNX files")
    making.add_argument("--onnx", action="store_true", help="write NAME.onnx too, for ONNX Runtime")
    measuring = parser.add_argument_group("measure")
    measuring.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    measuring.add_argument("--rounds", type=int, default=7)
    measuring.add_argument("--seconds", type=float, default=520.0, help="after which nothing new is begun")
    measuring.add_argument("--tune-seconds", type=float, default=15.0, help="of each model and batch")
    measuring.add_argument("--way-seconds", type=float, default=90.0, help="limit of making one way")
    measuring.add_argument("--jobs", type=int, default=cores.available(), help="processes that compile kernels")
    measuring.add_argument("--seed", type=int, default=7, help="of the inputs that are judged")
    measuring.add_argument("--search", action="store_true", help="torch.compile's max-autotune takes part: minutes")
    measuring.add_argument("--ways", nargs="+", default=[], metavar="START", help="beginnings of names; all if none")
    measuring.add_argument("--fresh", action="store_true", help="measure again what was measured")
    measuring.add_argument("--from", dest="earlier", nargs="+", type=Path, default=[], metavar="FILE")
    measuring.add_argument("--out", type=Path, default=REPOSITORY / "build" / "benches" / "engine_gpu", metavar="DIR")
    measuring.add_argument(
        "--check", action="store_true", help="exit 1 when a row of ours is inaccurate, slower than a peer or missing"
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.rounds < 1 or options.seconds <= 0:
        print("engine_gpu: rounds begin at 1 and the seconds are more than none", file=sys.stderr)
        return 2
    wanted = [
        (SUBJECTS[name], batch)
        for name in options.models
        for batch in SUBJECTS[name].batches
        if not options.batches or batch in options.batches
    ]
    return prepare(wanted, options) if options.command == "prepare" else measure(wanted, options)


def prepare(wanted: list[tuple[Subject, int]], options: argparse.Namespace) -> int:
    from benches.gpu import prepare as making

    failed = 0
    for name in dict.fromkeys(subject.name for subject, _ in wanted):
        subject, batches = SUBJECTS[name], [batch for each, batch in wanted if each.name == name]
        try:
            lines = making.prepare(subject, options.graphs, options.lab, batches, onnx=options.onnx)
            print(*lines, sep="\n", flush=True)
        except making.AbsentError as error:
            failed += 1
            print(f"{subject.name}: {error}", file=sys.stderr)
    return 1 if failed else 0


def measure(wanted: list[tuple[Subject, int]], options: argparse.Namespace) -> int:
    import torch

    from benches.gpu import ours, points

    if options.device == "cuda" and not torch.cuda.is_available():
        print("engine_gpu: torch sees no GPU; --device cpu tries the script without one", file=sys.stderr)
        return 2
    until = time.monotonic() + options.seconds
    # FP32 is FP32: what is judged by must not be TF32. Rivals search cuDNN's algorithms.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    settings = points.Settings(
        options.graphs, options.device, options.rounds, options.tune_seconds, options.way_seconds, options.seed,
        options.search, digest(_KERNELS), tuple(options.ways),
    )  # fmt: skip
    store = Store(options.out, options.earlier)
    found: list[Point] = []
    absent: list[tuple[str, str]] = []
    wrong = False
    with ours.compilers(options.device, options.jobs) as compilers:
        for subject, batch in wanted:
            name = f"{subject.name} at batch {batch}"
            if not (options.graphs / f"{subject.name}.b{batch}.json").is_file():
                absent.append((name, "its lowered graph is not there: `prepare` makes it"))
                continue
            point = None if options.fresh else store.measured(subject.name, batch, settings.stamp(subject, batch))
            if point is None and until - time.monotonic() < _LEAST_SECONDS:
                absent.append((name, f"no time was left of {options.seconds:.0f} s"))
                continue
            if point is None:
                try:
                    at_one = store.points.get((subject.name, 1))
                    point = points.measure(subject, batch, settings, at_one, compilers, until)
                    store.keep(point)
                except Exception as error:
                    wrong = wrong or isinstance(error, points.WorkError)
                    traceback.print_exc()
                    absent.append((name, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
                    continue
                finally:
                    gc.collect()
                    torch.cuda.empty_cache()
            found.append(point)
            print(line_of(point), flush=True)
            write(run_of(found, absent, options, torch), options.out)
    run = run_of(found, absent, options, torch)
    write(run, options.out)
    print(report.markdown(run))
    print(f"engine_gpu: {report.counts(run.points)}", file=sys.stderr)
    if options.rounds < _NEEDED_ROUNDS:
        print(f"engine_gpu: {options.rounds} rounds tell whether it runs, not what the figures are", file=sys.stderr)
    failures = report.failures(run)
    if options.check:
        print(*(f"engine_gpu: {each}" for each in failures), sep="\n", file=sys.stderr)
    return 1 if wrong or (options.check and failures) else 0


def run_of(found: list[Point], absent: list[tuple[str, str]], options: argparse.Namespace, torch: Any) -> report.Run:
    versions = [(name, known) for name in _VERSIONS if (known := _version(name))]
    machine = "CPU"
    if options.device == "cuda":
        machine = torch.cuda.get_device_name()
        versions += [("CUDA", str(torch.version.cuda)), ("cuDNN", str(torch.backends.cudnn.version()))]
    return report.Run(machine, tuple(versions), options.rounds, tuple(found), tuple(absent))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def write(run: report.Run, out: Path) -> None:
    """After every point: a run that is ended keeps what it had."""
    for folder in (out, *([Path(os.environ["OUT"])] if os.environ.get("OUT") else [])):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "engine_gpu.json").write_text(json.dumps(report.document(run), indent=1, allow_nan=False) + "\n")
        (folder / "engine_gpu.md").write_text(report.markdown(run))


def line_of(point: Point) -> str:
    mine, peer = point.ours, point.best_peer
    kept = bar_kept(point, report.bar_of(point))
    bar = {True: "kept", False: "MISSED", None: "-"}[kept]
    spent, error = (mine.milliseconds, mine.error) if mine else (math.nan, math.nan)
    return (
        f"{point.model:20} {point.batch:4}  ours {spent:8.4f} ms  "
        f"{speed_up(mine, peer):5.2f} x {peer.way if peer else 'no peer'}  error {error:.1e}  "
        f"floor {point.floor:.4f}  bar {bar}  {verdict(point)}  ({point.seconds:.0f} s)"
    )


if __name__ == "__main__":
    sys.exit(main())
