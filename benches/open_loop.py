"""Open loops: the automatic batching beside every fixed delay under Poisson arrivals, and a server that stalls.

    python benches/open_loop.py --rounds 8 --seconds 4

Batching: models whose full batches take 5 ms, at 80 % of what they can answer. All policies meet the same arrivals in
turns within each round. The table has medians over turns of the 50th and the 99th percentile of latency from when a
request was due: one hiccup of the machine decides the p99 of all turns together, and that of one turn only. The
automatic policy's p99 is compared with that of the best fixed delay, turn by turn, since their arrivals are the same.
Which delay is the best is told by the other half of the turns: the least of six equal ones is below them by luck. So
the ratio is to what choosing a delay by measurement gives, not the best where they differ by less than the noise.

Stall: a model that stops for 1 s every 10 s, Poisson arrivals at 87 % of what it answers between its stops. Latency
from when a request was due, and from when a connection was free to send it, which is what a generator says that waits
for answers.

Exits 1 where the automatic policy is worse than the best delay beyond chance, or a p99 hides the stall.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.lab import REPOSITORY
from penstock.bench import requests, schedule, subject
from penstock.bench.load import ANSWERED, HTTP, UNSENT, Load, Plan, Records
from serve_costs import AUTO, COSTS, MOST, STALL_EVERY_SECONDS, STALL_SECONDS, named, policies

LOAD = 0.8
STALL_LOAD = 0.87
FULL_SECONDS = 5e-3
WARM_SECONDS = 1.0  # for the server to learn what batches cost
RESAMPLES = 10_000
CAPACITY_SECONDS = 2.0
CONNECTIONS = 256
STALL_CONNECTIONS = 16  # few, as a generator has that waits for answers

Milliseconds = NDArray[np.float64]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=rounds_of_two_halves, default=8, help="a multiple of 4, from 8 on")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each policy in each round")
    parser.add_argument("--costs", nargs="*", choices=tuple(COSTS), default=tuple(COSTS))
    parser.add_argument("--stall-seconds", type=float, default=30.0, help="of the stalling server; 0: not measured")
    parser.add_argument("--out", type=Path, help="where the figures are written as JSON")
    chosen = parser.parse_args()
    with serving() as port:
        rows = [row for cost in chosen.costs for row in swept(port, cost, chosen.rounds, chosen.seconds)]
        stall = stalled(port, chosen.stall_seconds) if chosen.stall_seconds else None
    print(
        "| cost of a batch | policy | p50 ms | p99 ms | p99 over the best delay's | 95 % of resamples | best, by half |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        ratio = f"{row['ratio']:.3f} | {row['low']:.3f} to {row['high']:.3f} | " if "ratio" in row else "| |"
        ratio += ", ".join(row.get("best", ()))
        print(f"| {row['cost']} | {row['policy']} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} | {ratio} |")
    if stall is not None:
        often = f"{STALL_SECONDS:g} s every {STALL_EVERY_SECONDS:g} s"
        print(f"\nA stall of {often}, {stall['requests_per_s']:.0f} requests/s:")
        print("| latency | p50 ms | p99 ms | max ms |\n|---|---|---|---|")
        for name, found in stall["latency_ms"].items():
            print(f"| {name} | {found['p50']:.1f} | {found['p99']:.1f} | {found['max']:.1f} |")
    if chosen.out is not None:
        chosen.out.write_text(json.dumps({"batching": rows, "stall": stall}, indent=2))
    worse = any(row.get("low", 0.0) > 1.0 for row in rows)
    hidden = stall is not None and stall["latency_ms"]["from due"]["p99"] < 1000 * STALL_SECONDS
    return int(worse or hidden)


def rounds_of_two_halves(text: str) -> int:
    """Halves of the same size, forwards and backwards as often; of four turns chance is not known."""
    if (rounds := int(text)) < 8 or rounds % 4:
        raise argparse.ArgumentTypeError(f"{rounds} rounds, expected 8, 12, 16 ..")
    return rounds


@contextmanager
def serving():
    """The port of `serve_costs` in a process of its own."""
    command = [sys.executable, str(REPOSITORY / "benches" / "serve_costs.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield json.loads(started.stdout.readline())["http_port"]
        finally:
            started.stdin.close()


def swept(port: int, cost: str, rounds: int, seconds: float) -> list[dict]:
    """Every policy's row; the automatic one's with its ratio to the best fixed delay."""
    rate = LOAD * MOST / FULL_SECONDS
    samples: dict[str, list[Records]] = {policy: [] for policy in policies()}
    for turn in range(rounds):
        arrivals = schedule.by_rate(rate, schedule.POISSON, seconds, seed=turn)
        for policy in samples if turn % 2 == 0 else reversed(samples):
            samples[policy].append(sent(port, named(cost, policy), arrivals, seconds, CONNECTIONS))
    found = {policy: {each: percentiles(turns, each) for each in (50, 99)} for policy, turns in samples.items()}
    rows = [
        {"cost": cost, "policy": policy, "p50_ms": float(np.median(each[50])), "p99_ms": float(np.median(each[99])),
         "p99_ms_by_turn": each[99].tolist()}
        for policy, each in found.items()
    ]  # fmt: skip
    delays = {policy: each[99] for policy, each in found.items() if policy != AUTO}
    ratios, best = beside_the_best(found[AUTO][99], delays)
    low, high = interval(ratios)
    rows[0] |= {"ratio": float(np.median(ratios)), "low": low, "high": high, "best": best}
    return rows


def asking(port: int, model: str) -> Plan:
    """What is sent to a model, and neither when nor how many at once."""
    address = f"127.0.0.1:{port}"
    found = subject.Server(HTTP, address).subject(model, "")
    return Plan(HTTP, address, subject.infer_path(found, HTTP), requests.requests(found, requests.Wanted(), HTTP))


def sent(port: int, model: str, arrivals: schedule.Offsets, seconds: float, connections: int) -> Records:
    """What came of the requests that were due after the warm-up. SystemExit when one was not answered."""
    with Load(replace(asking(port, model), schedule_ns=arrivals, most_connections=connections)) as load:
        time.sleep(WARM_SECONDS + seconds)
        load.stop()
        records, messages = load.records, load.messages
    if not np.isin(records["outcome"], (ANSWERED, UNSENT)).all():
        raise SystemExit(f"open_loop: {model} did not answer all: {messages}")
    # What was due and not even sent has waited until the end at least.
    unsent = records["outcome"] == UNSENT
    records["sent"][unsent] = records["received"][unsent] = records["received"].max()
    records = np.sort(records, order="scheduled")
    return records[records["scheduled"] >= records["scheduled"][0] + int(1e9 * WARM_SECONDS)]


def percentiles(turns: Sequence[Records], percentile: float) -> Milliseconds:
    """Of each turn, from when requests were due."""
    return np.array([np.percentile((each["received"] - each["scheduled"]) / 1e6, percentile) for each in turns])


def beside_the_best(ours: Milliseconds, delays: dict[str, Milliseconds]) -> tuple[Milliseconds, list[str]]:
    """Each turn's ratio to the delay that is the best one of the other half's turns, and these two delays."""
    # Two by two: policies go forwards in even turns and backwards in odd ones.
    second = np.arange(ours.size) // 2 % 2 == 1
    best = [min(delays, key=lambda each: float(np.median(delays[each][half]))) for half in (second, ~second)]
    return ours / np.where(second, delays[best[1]], delays[best[0]]), best


def interval(ratios: Milliseconds) -> tuple[float, float]:
    """Ends of the middle 95 % of the median of resampled turns."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (RESAMPLES, ratios.size)), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def capacity(port: int, model: str) -> float:
    """Requests a second in a closed loop."""
    with Load(replace(asking(port, model), concurrency=4)) as load:
        time.sleep(CAPACITY_SECONDS)
        load.stop()
        return load.count / CAPACITY_SECONDS


def stalled(port: int, seconds: float) -> dict:
    """Latencies by both clocks."""
    rate = STALL_LOAD * max(capacity(port, "stalls"), capacity(port, "stalls"))  # one of them may meet a stop
    arrivals = schedule.by_rate(rate, schedule.POISSON, seconds, seed=0)
    records = sent(port, "stalls", arrivals, seconds, STALL_CONNECTIONS)
    clocks = {"from due": records["scheduled"], "from sent": records["sent"]}
    return {
        "requests_per_s": rate,
        "requests": int(records.size),
        "latency_ms": {
            name: {
                "p50": float(np.percentile(each, 50)),
                "p99": float(np.percentile(each, 99)),
                "max": float(each.max()),
            }
            for name, each in ((name, (records["received"] - clock) / 1e6) for name, clock in clocks.items())
        },
    }


if __name__ == "__main__":
    sys.exit(main())
