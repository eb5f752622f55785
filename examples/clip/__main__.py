"""The whole example: makes the tower, serves it, asks with real pictures at once, looks at every answer.

    .venv/bin/python -m examples.clip [--concurrency 1,5,50,500]

Prints a table; exits 1 when an answer was wrong, missing or an error.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np

from examples.clip import asking
from examples.clip.hosting import hosted
from examples.clip.judging import LIMIT, Reference, Tally, judged
from examples.clip.making import BUDGET_SECONDS, FOLDER, made, pictures
from examples.clip.pictures import encoded_pictures
from examples.clip.service import PIPELINE

_TURNS: Final = 3  # requests of each client at a level, and never fewer than:
_FEWEST: Final = 40


class Shown:
    """Says on standard error what a build is at. Satisfies `penstock.build.progress.Progress`."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def stage(self, name: str, detail: str) -> None:
        print(f"clip: build {time.perf_counter() - self._began:5.1f} s  {name} {detail}", file=sys.stderr, flush=True)

    def racing(self, event: Any) -> None:
        """The stages are enough."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.clip", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--concurrency", default="1,5,50", help="requests in flight, one level after the other")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--requests", type=int, help="of each level; three for each client unless given")
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="seconds of the build")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the engine is kept")
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of each instance")
    parser.add_argument("--json", action="store_true", help="one document on standard output in place of the table")
    return parser.parse_args()


def main() -> int:
    wanted = arguments()
    levels = [int(each) for each in wanted.concurrency.split(",")]
    tower = made(wanted.folder, budget_seconds=wanted.budget, progress=Shown())
    reference = Reference(tower.embed(pictures(wanted.pictures)))
    facts = {
        "tower": tower.origin,
        "engine": f"{'built' if tower.built else 'found'}: {tower.programs()}",
        "reference": f"{tower.reference}; of {wanted.pictures} pictures no two are closer than {reference.closest:.3f}",
    }
    if not wanted.json:
        print(*(f"{name}: {said}" for name, said in facts.items()), "", sep="\n", flush=True)
        print(head(), flush=True)
    rows: list[dict[str, Any]] = []
    tensors = [asking.encoded_picture(each) for each in encoded_pictures(wanted.pictures)]
    good = True
    with hosted(tower.engine, instances=wanted.instances, threads=wanted.threads) as server:
        for wire in get_args(asking.Wire):
            target = asking.Target(wire, server.address(wire), PIPELINE)
            asking.asked(target, tensors, asking.Turns(len(tensors), requests=8), 4)  # meets every bucket once
            for level in levels:
                requests = wanted.requests or max(_FEWEST, _TURNS * level)
                run = asking.asked(target, tensors, asking.Turns(len(tensors), requests=requests), level)
                tally = judged(reference, run.answers, run.asked, run.seconds)
                good = good and tally.good
                rows.append({"wire": wire, "in_flight": level, **asdict(tally)})
                if not wanted.json:
                    print(row(wire, level, tally), flush=True)
                for reason in tally.reasons[:3]:
                    print(f"clip: {wire}, {level} in flight: {reason}", file=sys.stderr)
    if wanted.json:
        print(json.dumps({**facts, "limit": LIMIT, "good": good, "levels": rows}))
    else:
        print(f"\n{'every answer is right' if good else 'NOT every answer is right'} (cosine >= {LIMIT})", flush=True)
    return 0 if good else 1


def head() -> str:
    columns = ("wire", "in flight", "answers", "wrong", "missing", "failed", "least cosine", "per second", "p50 ms")
    return f"| {' | '.join((*columns, 'p99 ms'))} |\n|{'---|' * (len(columns) + 1)}"


def row(wire: str, level: int, tally: Tally) -> str:
    answered = tally.right + tally.wrong
    figures = (answered, tally.wrong, tally.missing, tally.failed, f"{tally.least:.5f}", f"{tally.throughput:.1f}")
    times = tuple("-" if np.isnan(each) else f"{each:.1f}" for each in (tally.percentile(50), tally.percentile(99)))
    return f"| {' | '.join(map(str, (wire, level, *figures, *times)))} |"


if __name__ == "__main__":
    sys.exit(main())
