"""Many clients at once on one served engine over HTTP, and every answer looked at.

    python benches/engine_concurrent.py tower.engine --answers tower.npz --clients 1,5,50,500

Each client keeps one connection and sends one row, of a pool whose answers are known: from another library
(`tower.py` writes such a file), or else from the engine itself, asked before for one row after the other. An answer is
right when its direction is that of the known one, and no other row's answer is closer. Prints a table: requests, wrong
and missing answers, throughput, latency. Clients are threads of a few processes; on a machine of few cores latencies
with many of them are theirs as well as the server's.
"""

import argparse
import http.client
import json
import multiprocessing
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from serving import serving

POOL: Final = 32
PROCESSES: Final = 8
TIMEOUT: Final = 60.0
"""Seconds after which an answer counts as missing."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Served:
    port: int
    model: str
    cosine: float
    """Of an answer with the one that is known: no less."""


@dataclass(frozen=True)
class Known:
    """Rows, and the answers to them as unit vectors."""

    rows: Array
    units: Array

    @classmethod
    def read(cls, path: Path) -> "Known":
        with np.load(path) as found:
            return cls(found["x"], _unit(found["y"]))

    def likeness(self, number: int, answer: Array) -> float:
        """Cosine with the known answer; -1 where another row's is closer."""
        answer = answer.astype(np.float64).ravel()
        length = float(np.linalg.norm(answer))
        if len(answer) != self.units.shape[1] or not np.isfinite(length) or not length:
            return -1.0
        found = self.units @ (answer / length)
        return float(found[number]) if int(np.argmax(found)) == number else -1.0


@dataclass
class Tally:
    milliseconds: list[float] = field(default_factory=list)
    wrong: int = 0
    missing: list[str] = field(default_factory=list)
    least: float = 1.0
    """Cosine of the answer that is farthest off."""

    def add(self, other: "Tally") -> None:
        self.milliseconds += other.milliseconds
        self.wrong += other.wrong
        self.missing += other.missing
        self.least = min(self.least, other.least)


def process(served: Served, path: Path, clients: Sequence[int], start: Any, seconds: float, results: Any) -> None:
    """Some of the clients, by number; all of them connect before any of them asks."""
    known, tallies = Known.read(path), [Tally() for _ in clients]
    connections = [http.client.HTTPConnection("127.0.0.1", served.port, timeout=TIMEOUT) for _ in clients]
    for connection in connections:
        connection.connect()
    start.wait()
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=client, args=(served, known, connection, tally, until, number))
        for number, connection, tally in zip(clients, connections, tallies, strict=True)
    ]
    for thread in threads:
        thread.start()
    whole = Tally()
    for thread, tally in zip(threads, tallies, strict=True):
        thread.join()
        whole.add(tally)
    results.put(whole)


def client(
    served: Served, known: Known, connection: http.client.HTTPConnection, tally: Tally, until: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    try:
        while time.monotonic() < until:
            number = int(random.integers(len(known.rows)))
            began = time.perf_counter()
            answer = ask(connection, served.model, known.rows[number])
            tally.milliseconds.append(1e3 * (time.perf_counter() - began))
            likeness = known.likeness(number, answer)
            tally.least = min(tally.least, likeness)
            tally.wrong += likeness < served.cosine
    except Exception as error:  # an answer that never came, whatever the reason
        tally.missing.append(repr(error)[:200])
    finally:
        connection.close()


def ask(connection: http.client.HTTPConnection, model: str, row: Array) -> Array:
    given: dict[str, Any] = {"name": _INPUT, "datatype": _DATATYPES[row.dtype.name], "shape": [1, *row.shape]}
    given["parameters"] = {"binary_data_size": row.nbytes}
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    connection.request("POST", f"/v2/models/{model}/infer", head + row.tobytes(), headers)
    reply = connection.getresponse()
    content = reply.read()
    if reply.status != 200:
        raise ConnectionError(f"{reply.status}: {content[:150]!r}")
    size = int(reply.headers["Inference-Header-Content-Length"])
    first = json.loads(content[:size])["outputs"][0]
    length = first["parameters"]["binary_data_size"]
    return np.frombuffer(content[size : size + length], _NUMPY[first["datatype"]])


_INPUT: Final = "x"
_DATATYPES: Final = {"float32": "FP32", "uint8": "UINT8"}
_NUMPY: Final = {"FP32": np.float32, "FP16": np.float16}


def _unit(answers: Array) -> Array:
    wide = answers.reshape(len(answers), -1).astype(np.float64)
    found: Array = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return found


def own_answers(engine: Path, path: Path, scale: float) -> None:
    """What the engine answers to one row after the other."""
    import penstock as ps

    found = ps.load(engine)
    (spec,) = found.inputs
    random = np.random.default_rng(11)
    shape = (POOL, *spec.shape[1:])
    x = random.standard_normal(shape) * scale if spec.dtype.kind == "f" else random.integers(0, 256, shape)
    x = x.astype(spec.dtype)
    y = [next(iter(found(**{spec.name: row[None]}).values())) for row in x]
    found.close()
    np.savez(path, x=x, y=np.concatenate(y))


def asked(served: Served, path: Path, count: int, seconds: float) -> tuple[Tally, float]:
    """What so many clients got, and the seconds that it took."""
    context = multiprocessing.get_context("spawn")
    processes = min(PROCESSES, count)
    start, results = context.Barrier(processes + 1), context.Queue()
    several = [
        context.Process(
            target=process, args=(served, path, range(number, count, processes), start, seconds, results), daemon=True
        )
        for number in range(processes)
    ]
    for each in several:
        each.start()
    start.wait(TIMEOUT)
    began, whole = time.perf_counter(), Tally()
    for _ in several:
        whole.add(results.get(timeout=seconds + 2 * TIMEOUT))
    took = time.perf_counter() - began
    for each in several:
        each.join()
    return whole, took


def batches(served: Served) -> tuple[int, int]:
    """Batches and rows so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/v2/models/{served.model}/stats") as reply:
        (found,) = json.loads(reply.read())["model_stats"]
    return found["execution_count"], found["inference_count"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("engine", type=Path, help="with one input x, and rows as its first output")
    parser.add_argument("--answers", type=Path, help=".npz of rows x and the answers y to them, by somebody else")
    parser.add_argument("--clients", default="1,5,50,500")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each number of clients")
    parser.add_argument("--cosine", type=float, default=0.999)
    parser.add_argument("--scale", type=float, default=1.0, help="of the inputs, where no answers are given")
    wanted = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder, serving(wanted.engine, "http") as port:
        path = wanted.answers or Path(folder) / "own.npz"
        if wanted.answers is None:
            own_answers(wanted.engine, path, wanted.scale)
        served = Served(port, wanted.engine.stem, wanted.cosine)
        asked(served, path, 1, 0.5)  # the first batches pay for what is prepared once
        print("| clients | answers | wrong | missing | least cosine | rows/s | p50 ms | p99 ms | rows of a batch |")
        print("|---|---|---|---|---|---|---|---|---|")
        for count in (int(each) for each in wanted.clients.split(",")):
            before = batches(served)
            tally, took = asked(served, path, count, wanted.seconds)
            after = batches(served)
            times = tally.milliseconds
            p50, p99 = np.percentile(times, [50, 99]) if times else (0.0, 0.0)
            rows = (after[1] - before[1]) / max(1, after[0] - before[0])
            print(
                f"| {count} | {len(times)} | {tally.wrong} | {len(tally.missing)} | {tally.least:.6f} "
                f"| {len(times) / took:.0f} | {p50:.2f} | {p99:.2f} | {rows:.1f} |",
                *tally.missing[:1],
                flush=True,
            )
            failed += tally.wrong + len(tally.missing) + (not times)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
