"""Engines side by side on this CPU: what `penstock build` makes against each library in each precision, alone.

One command makes or finds the models, quantizes them with the libraries' own tools, builds engines with `penstock
build` from the same calibration data, checks everybody's answers on held-out inputs, times all in turns, and writes
Markdown and JSON. It promises figures of one run, paired within rounds, and that what is not accurate enough never
counts. A model that was measured is not measured again with the same settings: a run that was stopped goes on where it
was. NOTES.md says how to read the result.

    python benches/engine_cpu.py --models resnet50 ocr_rec --rounds 7 --budget 300
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))  # the makers and inputs are modules of the checkout, as `--calibration` names them

from benches.engines import quantizing, report  # noqa: E402
from benches.engines.child import LostError  # noqa: E402
from benches.engines.contenders import Files, contenders, reference  # noqa: E402
from benches.engines.contest import Row, contest  # noqa: E402
from benches.engines.judging import Gate  # noqa: E402
from benches.engines.subjects import SUBJECTS, Subject  # noqa: E402
from benches.inputs import held_out  # noqa: E402
from harness.machine import FLAGS_OF_INTEREST, parse_cpuinfo  # noqa: E402

# What the builder may take beyond its budget before it counts as hanging: sealing and a last judgement come after it.
_BUILD_GRACE_SECONDS = 600.0
_NEEDED_ROUNDS = 5
"""Below, a median hides nothing."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget", type=float, default=300.0, metavar="SECONDS", help="of each build")
    parser.add_argument(
        "--cosine",
        type=float,
        default=0.999,
        help="the gate of builds and of single candidates, where no metric is",
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    apart = parser.add_mutually_exclusive_group()
    apart.add_argument("--only-build", action="store_true", help="build engines into --lab, and measure nothing")
    apart.add_argument("--built", action="store_true", help="measure engines that are in --lab, and build none")
    parser.add_argument("--without-nncf", action="store_true", help="install and use no environment for NNCF")
    parser.add_argument(
        "--check", action="store_true", help="exit 1 when ours is slower than a single candidate, or inaccurate"
    )
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "benches" / "engine_cpu", metavar="DIR")
    parser.add_argument(
        "--lab", type=Path, default=Path(os.environ.get("PENSTOCK_LAB", REPOSITORY / ".peers")), metavar="DIR"
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.rounds < 1 or options.budget <= 0:
        print("engine_cpu: rounds begin at 1 and the budget is more than none", file=sys.stderr)
        return 2
    # Told to end, it ends by an exception, so that the processes under measurement are ended too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    cpu, flags = parse_cpuinfo(Path("/proc/cpuinfo").read_text())
    settings = {
        "rounds": options.rounds, "budget": options.budget, "cosine": options.cosine, "cpu": cpu,
        "cores": os.cpu_count(), "nncf": not options.without_nncf,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    results: list[report.Result] = []
    absent: list[tuple[str, str]] = []
    for name in options.models:
        subject = SUBJECTS[name]
        path = subject.path(options.lab / "models")
        if path is None:
            absent.append((name, "its ONNX file is not here"))
            continue
        kept = options.out / f"{name}.json"
        stamp = {"settings": settings, "model_bytes": path.stat().st_size}
        if kept.is_file() and not options.fresh and (old := json.loads(kept.read_text()))["stamp"] == stamp:
            results.append(report.result_from_json(old["result"]))
            continue
        if options.only_build:
            if failure := build(subject, path, options)[1]:
                absent.append((name, failure))
            continue
        try:
            result = measure(subject, path, options)
        except LostError as error:
            absent.append((name, f"its reference could not be run: {error}"))
            continue
        kept.write_text(json.dumps({"stamp": stamp, "result": report.result_to_json(result)}, indent=1) + "\n")
        results.append(result)
    if options.only_build:
        print("".join(f"{name}: {why}\n" for name, why in absent), end="", file=sys.stderr)
        return 1 if absent else 0
    run = report.Run(
        machine=cpu,
        flags=tuple(flag for flag in FLAGS_OF_INTEREST if flag in flags),
        cores=os.cpu_count() or 0,
        versions=tuple((name, version(name)) for name in ("penstock", "onnxruntime", "openvino", "numpy")),
        rounds=options.rounds,
        budget_seconds=options.budget,
        results=tuple(results),
        absent=tuple(absent),
    )
    text = report.markdown(run)
    (options.out / "engine_cpu.md").write_text(text)
    (options.out / "engine_cpu.json").write_text(json.dumps(report.document(run), indent=1) + "\n")
    print(text)
    if options.rounds < _NEEDED_ROUNDS:
        print(f"engine_cpu: {options.rounds} rounds tell whether it runs, not what the figures are", file=sys.stderr)
    checks = list(report.checks(run))
    print(f"engine_cpu: {report.verdict_counts(checks)}", file=sys.stderr)
    return 1 if options.check and any(check.verdict in ("SLOWER", "INACCURATE") for check in checks) else 0


def measure(subject: Subject, path: Path, options: argparse.Namespace) -> report.Result:
    print(f"{subject.name}: {path.name}", file=sys.stderr, flush=True)
    started = time.monotonic()
    engine, failure = found(subject, options) if options.built else build(subject, path, options)
    seconds = time.monotonic() - started
    gate = Gate(options.cosine, subject.metric, subject.drop)
    models = options.lab / "models"
    files = Files(
        source=path,
        int8_onnxruntime=quantizing.by_onnxruntime(subject.name, path, models),
        int8_nncf=None if options.without_nncf else quantizing.by_nncf(subject.name, path, models, options.lab),
        engine=engine,
    )
    inputs = held_out(subject.name, subject.samples)
    rows: list[Row] = []
    for batch in subject.batches:
        print(f"{subject.name}, batch {batch}", file=sys.stderr, flush=True)
        rows += contest(list(contenders(files)), reference(files), inputs, gate, batch, options.rounds)
    return report.Result(subject.name, subject.shape, tuple(rows), seconds, gate.text, failure)


def found(subject: Subject, options: argparse.Namespace) -> tuple[Path | None, str]:
    """What an earlier `build` left, or why there is nothing."""
    out = engine_of(subject, options)
    return (out, "") if out.is_file() else (None, f"no {out.name} was built")


def engine_of(subject: Subject, options: argparse.Namespace) -> Path:
    return Path(options.lab / "engines" / f"{subject.name}.engine")


def build(subject: Subject, path: Path, options: argparse.Namespace) -> tuple[Path | None, str]:
    """The engine, or what `penstock build` said. By the command line and in its own process, as users build."""
    out, gate = engine_of(subject, options), Gate(options.cosine, subject.metric, subject.drop)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    smallest, largest = (
        "x".join(map(str, (batch, *subject.shape))) for batch in (subject.batches[0], subject.batches[-1])
    )
    command = [
        str(Path(sys.executable).with_name("penstock")), "build", str(path.resolve()), "-o", str(out.resolve()),
        "--shapes", ";".join(f"{each}:{smallest},{largest},{largest}" for each in subject.inputs),
        "--buckets", ",".join(map(str, subject.batches)),
        "--calibration", f"benches.inputs:{subject.name}", "--accuracy", gate.text,
        "--budget", f"{options.budget:g}s",
    ]  # fmt: skip
    print(f"{subject.name}: building", file=sys.stderr, flush=True)
    limit = options.budget + _BUILD_GRACE_SECONDS
    try:
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=limit, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    (options.out / f"{subject.name}.build.txt").write_text(ended.stdout + ended.stderr)
    if ended.returncode == 0 and out.is_file():
        return out, ""
    said = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
    return None, f"exit {ended.returncode}: {said[-1][:300]}" if said else f"exit {ended.returncode}"


if __name__ == "__main__":
    sys.exit(main())
