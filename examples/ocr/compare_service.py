"""Pages a second with so many under way: `read_page` behind a server, and RapidOCR in a process of its own, in turns.

    python -m examples.ocr.compare_service --engines build/ocr/engines --concurrency 16

Both read the same encoded pages, decode them themselves and have both cores. RapidOCR is a library and no server: pages
wait in a queue for one worker with all cores, or for two with half of them each and networks of their own; latency
counts from when a page was handed in, as the server's does.
"""

import argparse
import base64
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from examples.children import CHECKOUT
from examples.ocr.documents import rendered_documents
from examples.ocr.model import engines_in
from examples.ocr.servers import child
from penstock.bench import requests, subject
from penstock.bench.load import ANSWERED, HTTP, Load, Plan
from penstock.engine import cores
from penstock.errors import NotFound

OURS = ("plain networks", "engines")
PEERS = {
    f"RapidOCR, {runtime}, {workers}": (runtime, workers)
    for runtime in ("openvino", "onnxruntime")
    for workers in (1, 2)
}


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one reader in one turn."""

    pages_per_second: float
    p50_ms: float
    p99_ms: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engines", type=Path, help="a folder of engines named after the networks")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--pages", type=int, default=12, help="different ones")
    parser.add_argument("--first", type=int, default=120, help="document that they begin with")
    parser.add_argument("--seconds", type=float, default=15.0, help="of a turn that count")
    # Libraries prepare kernels for shapes that they meet first: ours answers a fifth less in its first 20 seconds.
    parser.add_argument("--warm-seconds", type=float, default=20.0, help="of a turn before those")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--readers", nargs="+", choices=[*OURS, *PEERS], help="these alone (default: all)")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if "engines" in (chosen.readers or ()) and not chosen.engines:
        parser.error("the reader 'engines' needs --engines DIR")
    try:
        engines = engines_in(chosen.engines)
    except NotFound as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as name:
        pages = Path(name) / "pages.json"
        pages.write_text(
            json.dumps({"data": [{"image": {"b64": each}} for each in encoded(chosen.pages, chosen.first)]})
        )
        found = compared(pages, engines, chosen)
    if chosen.json:
        print(json.dumps({each: [asdict(rate) for rate in rates] for each, rates in found.items()}, indent=2))
        return
    print("| reader | pages/s | p50 ms | p99 ms |\n|---|---|---|---|")
    for each, rates in found.items():
        columns = [statistics.median(values) for values in zip(*(asdict(rate).values() for rate in rates), strict=True)]
        print(f"| {each} | {columns[0]:.2f} | {columns[1]:.0f} | {columns[2]:.0f} |")


def encoded(count: int, first: int) -> list[str]:
    """PNGs in base64."""
    documents = rendered_documents(count, first=first)
    return [base64.b64encode(cv2.imencode(".png", one.pixels)[1].tobytes()).decode() for one in documents]


def compared(pages: Path, engines: Mapping[str, Path], chosen: argparse.Namespace) -> dict[str, list[Rate]]:
    """By reader, a Rate for each round; told on standard error as they come."""
    asked = chosen.readers or [each for each in (*OURS, *PEERS) if each != "engines" or chosen.engines]
    found: dict[str, list[Rate]] = {each: [] for each in asked}
    for _ in range(chosen.rounds):
        for each, turns in found.items():
            if each in PEERS:
                turn = peer(pages, *PEERS[each], chosen)
            else:
                used = engines.items() if each == "engines" else ()
                flags = [flag for name, path in used for flag in (f"--{name}", str(path))]
                with child(each, "examples.ocr.page.service", flags) as server:
                    turn = loaded(server.http, pages, chosen)
            turns.append(turn)
            print(f"{each}: {turn.pages_per_second:.2f} pages/s, p99 {turn.p99_ms:.0f} ms", file=sys.stderr, flush=True)
    return {f"penstock, {each}" if each in OURS else each: turns for each, turns in found.items()}


def loaded(address: str, pages: Path, chosen: argparse.Namespace) -> Rate:
    model = subject.Server(HTTP, address).subject("read_page", "")
    sent = requests.requests(model, requests.Wanted(str(pages), json_outputs=True), HTTP)
    plan = Plan(
        HTTP, address, subject.infer_path(model, HTTP), sent, concurrency=chosen.concurrency, answer_within_seconds=300
    )
    with Load(plan) as load:
        time.sleep(chosen.warm_seconds)
        while len(load.records) < chosen.concurrency:
            time.sleep(0.05)
        begin = time.monotonic_ns()
        time.sleep(chosen.seconds)
        end = time.monotonic_ns()
        load.stop()
        records, messages = load.records, load.messages
    if (records["outcome"] != ANSWERED).any():
        raise SystemExit(f"pages were not read: {messages}")
    counted = records[(records["received"] >= begin) & (records["received"] < end)]
    return rate((counted["received"] - counted["scheduled"]) / 1e6, (end - begin) / 1e9)


def rate(milliseconds: Any, seconds: float) -> Rate:
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return Rate(len(milliseconds) / seconds, float(p50), float(p99))


def peer(pages: Path, runtime: str, workers: int, chosen: argparse.Namespace) -> Rate:
    """In a process of its own."""
    asked = {"runtime": runtime, "workers": workers} | {
        each: getattr(chosen, each) for each in ("concurrency", "seconds", "warm_seconds")
    }
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        "from examples.ocr.compare_service import read_as_peer; read_as_peer()",
    ]
    done = subprocess.run(
        [*command, str(pages), json.dumps(asked)], capture_output=True, text=True, cwd=CHECKOUT, check=False
    )
    if done.returncode:
        raise SystemExit(f"RapidOCR on {runtime} ended with status {done.returncode}: {done.stderr[-500:]}")
    return Rate(**json.loads(done.stdout.splitlines()[-1]))


def read_as_peer() -> None:
    """What `peer` starts: prints a Rate."""
    from examples.ocr.readers import RapidReader

    pages = [base64.b64decode(each["image"]["b64"]) for each in json.loads(Path(sys.argv[1]).read_text())["data"]]
    asked = json.loads(sys.argv[2])
    own, ready = threading.local(), threading.Barrier(asked["workers"])
    threads = cores.per_instance(asked["workers"], None) if asked["workers"] > 1 else None

    def begin() -> None:
        ready.wait()  # so that each worker takes one of these
        own.read = RapidReader(asked["runtime"], threads)

    def read(handed_in: float, number: int) -> tuple[float, float]:
        picture = cv2.imdecode(np.frombuffer(pages[number % len(pages)], np.uint8), cv2.IMREAD_COLOR)
        own.read(np.asarray(picture, np.uint8))
        return handed_in, time.perf_counter()

    times: list[tuple[float, float]] = []
    with ThreadPoolExecutor(asked["workers"]) as pool:
        # All of them have their networks before the clock starts, as a server has when it is ready.
        for started in [pool.submit(begin) for _ in range(asked["workers"])]:
            started.result()
        number, until = 0, float("inf")
        warm = time.perf_counter() + asked["warm_seconds"]
        under_way: list[Future[tuple[float, float]]] = []
        while time.perf_counter() < until or under_way:
            while time.perf_counter() < until and len(under_way) < asked["concurrency"]:
                under_way.append(pool.submit(read, time.perf_counter(), number))
                number += 1
            times.append(under_way.pop(0).result())
            if until == float("inf") and len(times) >= asked["concurrency"] and time.perf_counter() >= warm:
                begun = time.perf_counter()
                until = begun + asked["seconds"]
    counted = [(handed, ended) for handed, ended in times if begun <= ended < until]
    print(json.dumps(asdict(rate([1000 * (ended - handed) for handed, ended in counted], asked["seconds"]))))


if __name__ == "__main__":
    main()
