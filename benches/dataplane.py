"""Side by side: what a request costs on Penstock, on the bare floor, on Mosec and on Triton; and how well each batches.

One command does all: it installs the peers into a lab folder, starts each server alone, checks a real answer, measures
CPU per request, latency and throughput in alternating rounds, and writes Markdown and JSON. It promises medians of one
run on one machine, invalid rows shown as such, and Penstock checked against its limits (`harness/bars.py`). Started by
`make bench` or by hand; NOTES.md says how to read the result. Needs nothing but Python 3.11, cargo and the registries.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from harness import bars, report
from harness.lab import REPOSITORY, Lab, LabError
from harness.machine import read_machine
from harness.rounds import Plan, Rounds
from harness.servers import resolve
from harness.startup import Duration, import_time, time_to_ready
from harness.workload import Wire, Workload

IMAGE_CONCURRENCY = 16
"""602 KB bodies at one concurrency: enough to fill both cores."""

QUOTABLE_ROUNDS, QUOTABLE_SECONDS = 3, 2
"""Below these a median hides nothing, and ticks of 10 ms show in the CPU figures."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--servers", nargs="+", default=["floor", "penstock", "mosec", "triton"], metavar="NAME[=COMMAND]",
        help="penstock, floor, mosec, triton, or any v2 server as NAME=COMMAND: on ports 8000 and 8001, or where "
        "{http_port} and {grpc_port} in COMMAND say; with {workload} in it also for image and sleep",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="length of a sample")
    parser.add_argument("--retakes", type=int, default=0, help="take a sample again while others use the machine")
    parser.add_argument("--concurrency", default="1,16,64", help="comma-separated")
    parser.add_argument("--only", choices=["dataplane", "batching"], help="one of the two tables")
    parser.add_argument("--quick", action="store_true", help="one round of 1 s samples: does it run, not what is it")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is not kept")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "build" / "benches", metavar="DIR")
    parser.add_argument(
        "--lab", type=Path, default=Path(os.environ.get("PENSTOCK_LAB", REPOSITORY / ".peers")), metavar="DIR"
    )
    return parser.parse_args()


def plans(only: str | None, concurrencies: tuple[int, ...]) -> list[Plan]:
    chosen = []
    if only != "batching":
        chosen.append(Plan(Workload.DOUBLE, tuple((wire, c) for wire in Wire for c in concurrencies)))
        images = tuple((wire, IMAGE_CONCURRENCY) for wire in (Wire.BINARY, Wire.GRPC))
        chosen.append(Plan(Workload.IMAGE, images))
    if only != "dataplane":
        wires = (Wire.BINARY, Wire.GRPC)
        chosen.append(Plan(Workload.SLEEP, tuple((wire, c) for wire in wires for c in concurrencies)))
    return chosen


def main() -> int:
    options = arguments()
    rounds, seconds = (1, 1) if options.quick else (options.rounds, options.seconds)
    concurrencies = tuple(int(word) for word in options.concurrency.split(","))
    if rounds < 1 or seconds < 1 or min(concurrencies) < 1:
        print("dataplane: rounds, seconds and concurrency begin at 1", file=sys.stderr)
        return 2
    # Told to end, it ends by an exception, so that the server under measurement is ended too.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    lab = Lab(options.lab)
    try:
        lab.tools()
        servers, absent = resolve(options.servers, lab)
    except (LabError, ValueError) as error:
        print(f"dataplane: {error}", file=sys.stderr)
        return 2
    chosen = plans(options.only, concurrencies)
    machine = read_machine(lab)
    durations: list[Duration] = []
    if options.only != "batching" and any(word.partition("=")[0] == "penstock" for word in options.servers):
        durations = [import_time(), time_to_ready(lab)]
    table = Rounds(lab, seconds, options.retakes).run(servers, chosen, rounds)
    workloads = frozenset(plan.workload for plan in chosen)
    import_ms = durations[0].median if durations else None
    run = report.Run(
        machine=machine,
        rounds=rounds,
        seconds=seconds,
        quotable=rounds >= QUOTABLE_ROUNDS and seconds >= QUOTABLE_SECONDS,
        table=table,
        absent=absent,
        durations=durations,
        bars=bars.check(table, import_ms, workloads),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    name = "batching" if options.only == "batching" else "dataplane"
    text = report.markdown(run)
    (options.out / f"{name}.md").write_text(text)
    (options.out / f"{name}.json").write_text(json.dumps(report.document(run), indent=1) + "\n")
    print(text)
    kept = all(bar.verdict is bars.Verdict.KEPT for bar in run.bars)
    return 0 if kept or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
