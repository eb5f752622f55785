"""Many clients at once on one served engine over HTTP, and every answer looked at.

    python benches/engine_concurrent.py tower.engine --clients 5,50,500

Each client keeps one connection and sends one row, of a pool whose answers were taken before from the engine itself,
one after the other; what comes back may differ by the rounding of another batch size, and by no more. Prints a table:
requests, wrong and missing answers, throughput, latency. The clients are threads of this process and share its one
interpreter: latencies with many of them are theirs as well as the server's.
"""

import argparse
import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

import penstock as ps
from serving import serving

POOL: Final = 32
TOLERANCE: Final = 2e-3
"""Distance of an answer from the one taken alone, relative to its norm: FP16 at another batch size."""


@dataclass(frozen=True)
class Question:
    body: bytes
    head: int
    answer: NDArray[Any]


@dataclass
class Client:
    milliseconds: list[float] = field(default_factory=list)
    wrong: int = 0
    missing: list[str] = field(default_factory=list)

    def work(self, port: int, model: str, questions: list[Question], until: float, seed: int) -> None:
        random = np.random.default_rng(seed)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            while time.monotonic() < until:
                question = questions[int(random.integers(len(questions)))]
                began = time.perf_counter()
                found = _ask(connection, model, question)
                self.milliseconds.append(1e3 * (time.perf_counter() - began))
                norm = float(np.linalg.norm(question.answer))
                near = (
                    found.shape == question.answer.shape and np.linalg.norm(found - question.answer) <= TOLERANCE * norm
                )
                self.wrong += not near
        except Exception as error:  # an answer that never came, whatever the reason
            self.missing.append(repr(error)[:200])
        finally:
            connection.close()


def _ask(connection: http.client.HTTPConnection, model: str, question: Question) -> NDArray[Any]:
    headers = {"Inference-Header-Content-Length": str(question.head), "Content-Type": "application/octet-stream"}
    connection.request("POST", f"/v2/models/{model}/infer", question.body, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise ConnectionError(f"{answer.status}: {content[:150]!r}")
    size = int(answer.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(content[:size])["outputs"]
    return np.frombuffer(content[size:], np.float32).reshape(output["shape"])


def questions(engine: Any, scale: float) -> Iterator[Question]:
    (spec,) = engine.inputs
    random = np.random.default_rng(11)
    shape = [1, *spec.shape[1:]]
    for _ in range(POOL):
        row = random.standard_normal(shape) * scale
        array = row.astype(spec.dtype) if spec.dtype.kind == "f" else random.integers(0, 256, shape).astype(spec.dtype)
        (name, answer), *_ = engine(**{spec.name: array}).items()
        wanted = {"name": name, "parameters": {"binary_data": True}}
        given: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": shape}
        given["parameters"] = {"binary_data_size": array.nbytes}
        head = json.dumps({"inputs": [given], "outputs": [wanted]}).encode()
        yield Question(head + array.tobytes(), len(head), np.asarray(answer, np.float32))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("engine", type=Path, help="with one input, and rows of FP32 as its first output")
    parser.add_argument("--clients", default="5,50")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--scale", type=float, default=1.0, help="of the inputs")
    wanted = parser.parse_args()
    engine = ps.load(wanted.engine)
    pool = list(questions(engine, wanted.scale))
    engine.close()
    print("| clients | answers | wrong | missing | rows/s | p50 ms | p99 ms |\n|---|---|---|---|---|---|---|")
    failed = 0
    with serving(wanted.engine, "http") as port:
        for count in (int(each) for each in wanted.clients.split(",")):
            clients = [Client() for _ in range(count)]
            until = time.monotonic() + wanted.seconds
            threads = [
                threading.Thread(target=client.work, args=(port, wanted.engine.stem, pool, until, seed))
                for seed, client in enumerate(clients)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            times = [each for client in clients for each in client.milliseconds]
            wrong, missing = sum(each.wrong for each in clients), [said for each in clients for said in each.missing]
            p50, p99 = np.percentile(times, [50, 99]) if times else (0.0, 0.0)
            rate = len(times) / wanted.seconds
            row = f"| {count} | {len(times)} | {wrong} | {len(missing)} | {rate:.0f} | {p50:.2f} | {p99:.2f} |"
            print(row, *missing[:1], flush=True)
            failed += wrong + len(missing) + (not times)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
