"""Threads of one process that call one engine: how many calls a second, and how long the unluckiest waits.

    python benches/engine_callers.py model.engine --threads 1,2,8,50

Each thread calls `engine(...)` with one row of its own, over and over, and looks at the clock before and after. More
threads than cores wait for each other inside the engine: what fairness costs is in calls/s, what it brings in p99, max
and the last column, the calls of the thread that got the fewest by the mean (what was never called has no latency).
Rounds go through all numbers of threads in turn, so that drift is shared.
"""

import argparse
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import penstock as ps
from penstock.engine import Engine


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("engines", type=Path, nargs="+")
    parser.add_argument("--threads", default="1,2,8,50")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args(arguments)
    counts = [int(each) for each in wanted.threads.split(",")]
    print("| engine | threads | calls/s | lowest–highest | p50 ms | p99 ms | max ms | fewest of mean |")
    print("| :-- | --: | --: | :-- | --: | --: | --: | --: |")
    for path in wanted.engines:
        engine = ps.load(path)
        turns: dict[int, list[list[list[float]]]] = {count: [] for count in counts}
        for _ in range(wanted.rounds):
            for count in counts:
                turns[count].append(called(engine, count, wanted.seconds))
        for count, found in turns.items():
            calls = np.array([[len(own) for own in each] for each in found])
            rates = calls.sum(axis=1) / wanted.seconds
            times = 1e3 * np.sort(np.concatenate([np.array(own) for each in found for own in each]))
            p50, p99 = (times[int(share * len(times))] for share in (0.5, 0.99))
            print(
                f"| {path.stem} | {count} | {np.median(rates):.0f} | {min(rates):.0f}–{max(rates):.0f} "
                f"| {p50:.2f} | {p99:.2f} | {times[-1]:.1f} "
                f"| {np.median(calls.min(axis=1) / calls.mean(axis=1)):.2f} |",
                flush=True,
            )
        engine.close()


def called(engine: Engine, threads: int, seconds: float) -> list[list[float]]:
    """Seconds of every call that began in the time, by thread."""
    ready = threading.Barrier(threads)
    found: list[list[float]] = [[] for _ in range(threads)]

    def work(own: list[float], seed: int) -> None:
        random = np.random.default_rng(seed)
        row = {
            spec.name: random.random([max(1, size) for size in spec.shape]).astype(spec.dtype) for spec in engine.inputs
        }
        for _ in range(3):
            engine(**row)
        ready.wait()
        now = time.perf_counter()
        until = now + seconds
        while now < until:
            began = now
            engine(**row)
            now = time.perf_counter()
            own.append(now - began)

    workers = [threading.Thread(target=work, args=(own, seed)) for seed, own in enumerate(found)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    return found


if __name__ == "__main__":
    main()
