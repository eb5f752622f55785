"""What two cores share: a network, or a copy of memory, run over and over in a process that keeps to one core.

    python -m benches.stories.replica_probe --core 0 --seconds 2 --engine FILE

says that it is ready, waits for a line, and prints what it did in that time. `replicas` runs one alone and then one on
each core; what each loses is lost to hardware that they share (memory, cache, a core of two threads), since no two of
them share a lock, a core's time or a page that is written.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np

from benches.stories.replica_servers import child, module

_COPIED: Final = 64 << 20  # bytes: more than a cache holds


def rates(cores: Sequence[int], seconds: float, engine: Path | None) -> list[float]:
    """Calls of each in a second of its CPU time, all at once on a core each: of the network, or copies of 64 MiB."""
    flags = ["--engine", str(engine)] if engine else []
    with ExitStack() as stack:
        probes = [
            stack.enter_context(
                child(module("benches.stories.replica_probe", f"--core={core}", f"--seconds={seconds}", *flags), {})
            )
            for core in cores
        ]
        for probe in probes:
            _said(probe)  # ready
        for probe in probes:
            assert probe.stdin is not None
            probe.stdin.write("begin\n")
            probe.stdin.flush()
        return [float(json.loads(_said(probe))["calls_per_s"]) for probe in probes]


def _said(probe: subprocess.Popen[str]) -> str:
    assert probe.stdout is not None
    line = probe.stdout.readline()
    if not line:
        raise RuntimeError(f"a probe ended with status {probe.wait()}; see above")
    return line


def copied_gb(calls_per_s: float) -> float:
    """GB a second that a copy reads and writes."""
    return calls_per_s * 2 * _COPIED / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.stories.replica_probe")
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--engine", type=Path)
    asked = parser.parse_args()
    os.sched_setaffinity(0, {asked.core})
    call = _network(asked.engine) if asked.engine else _copy()
    for _ in range(3):
        call()
    print("{}", flush=True)
    sys.stdin.readline()
    # By CPU time: what other programs take of the core in the meantime is no loss to shared hardware.
    begun, spent, calls = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begun < asked.seconds:
        call()
        calls += 1
    print(json.dumps({"calls_per_s": calls / (time.process_time() - spent)}), flush=True)


def _network(path: Path) -> Callable[[], object]:
    import penstock as ps

    engine = ps.load(path, threads=1, instances=1)
    (taken,) = engine.inputs
    x = np.random.default_rng(0).random((1, *taken.shape[1:]), np.float32)
    return lambda: engine(x=x)


def _copy() -> Callable[[], object]:
    source, target = np.ones(_COPIED, np.uint8), np.ones(_COPIED, np.uint8)
    return lambda: np.copyto(target, source)


if __name__ == "__main__":
    main()
