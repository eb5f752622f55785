"""An engine served at saturation beside the same engine timed alone: what of its throughput the server costs.

One command builds an engine (or takes one), then takes turns: `penstock time` at the largest batch, and `penstock
serve` asked over gRPC by clients that send their next request when the last is answered, one row each. Everything
shares the cores of this machine, the clients included: they send bytes that were encoded once and look at nothing of
the answers, and still take some 0.2 ms of a core for each. With a model of less than ten milliseconds a row the clients
are what is measured. Prints Markdown, or one JSON document with --json.

    python benches/engine_served.py model.onnx --shape 3x48x192
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from serving import COMMAND, serving

METHOD = "/inference.GRPCInferenceService/ModelInfer"
WARM_UP_SECONDS = 2.0
BAR = 0.95
"""Of the throughput alone, what is to be left when it is served."""


@dataclass(frozen=True)
class Round:
    """Rows per second, taken one after the other."""

    alone: float
    served: float
    failed: int
    rows_of_a_batch: float
    """On average, as the server formed them."""

    @property
    def ratio(self) -> float:
        return self.served / self.alone


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("model", type=Path, help="an ONNX file with one FP32 input x, or an engine of it")
    parser.add_argument("--shape", required=True, help="of one row, as in 3x224x224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--budget", default="60s", help="of the build")
    parser.add_argument("--input", default="x", help="name of the input")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def build(wanted: argparse.Namespace, folder: Path) -> Path:
    """The engine for batches of 1 to the largest, to be fastest at the largest."""
    if wanted.model.suffix == ".engine":
        return Path(wanted.model)
    engine = folder / "served.engine"
    low, high = (f"{rows}x{wanted.shape}" for rows in (1, wanted.batch))
    shapes = f"--shapes={wanted.input}:{low},{high},{high}"
    subprocess.run([*COMMAND, "build", str(wanted.model), f"-o{engine}", shapes, f"--budget={wanted.budget}"],
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    return engine


def alone(engine: Path, wanted: argparse.Namespace) -> float:
    shapes = f"--shapes={wanted.input}:{wanted.batch}x{wanted.shape}"
    times = (f"--duration={wanted.seconds}", f"--warmUp={WARM_UP_SECONDS * 1e3:.0f}")
    command = [*COMMAND, "time", str(engine), shapes, *times, "--json"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(ran.stdout)["throughput_rows_per_s"])


def served(engine: Path, wanted: argparse.Namespace) -> tuple[float, int, float]:
    """Rows per second, requests that failed, and rows of an average batch."""
    shape = [1, *map(int, wanted.shape.split("x"))]
    request = service_pb2.ModelInferRequest(model_name=engine.stem)
    request.inputs.add(name=wanted.input, datatype="FP32", shape=shape)
    request.raw_input_contents.append(np.random.default_rng(0).standard_normal(shape).astype(np.float32).tobytes())
    body = request.SerializeToString()
    with serving(engine) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD)
        counted, over = threading.Event(), threading.Event()
        answered, failed = [0] * wanted.clients, [0] * wanted.clients

        def ask(number: int) -> None:
            while not over.is_set():
                try:
                    call(body)
                    answered[number] += counted.is_set()
                except grpc.RpcError:
                    failed[number] += 1

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(wanted.clients)]
        for thread in threads:
            thread.start()
        time.sleep(WARM_UP_SECONDS)
        counted.set()
        start = time.perf_counter()
        time.sleep(wanted.seconds)
        total, elapsed = sum(answered), time.perf_counter() - start
        over.set()
        for thread in threads:
            thread.join()
        statistics_of = channel.unary_unary("/inference.GRPCInferenceService/ModelStatistics")
        found = service_pb2.ModelStatisticsResponse.FromString(
            statistics_of(service_pb2.ModelStatisticsRequest(name=engine.stem).SerializeToString())
        ).model_stats[0]
    return total / elapsed, sum(failed), found.inference_count / max(1, found.execution_count)


def one_round(engine: Path, wanted: argparse.Namespace, number: int) -> Round:
    """Who goes first alternates."""
    if number % 2:
        rows, failed, mean = served(engine, wanted)
        return Round(alone(engine, wanted), rows, failed, mean)
    first = alone(engine, wanted)
    return Round(first, *served(engine, wanted))


def processor() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{found[1] if found else 'unknown'}, {len(os.sched_getaffinity(0))} cores"


def main() -> None:
    wanted = arguments()
    with tempfile.TemporaryDirectory() as folder:
        engine = build(wanted, Path(folder))
        rounds = [one_round(engine, wanted, number) for number in range(wanted.rounds)]
    ratio = statistics.median(each.ratio for each in rounds)
    if wanted.json:
        document = {"model": wanted.model.name, "shape": wanted.shape, "batch": wanted.batch, "clients": wanted.clients,
                    "processor": processor(), "rounds": [asdict(each) for each in rounds], "ratio": ratio, "bar": BAR,
                    "met": ratio >= BAR}  # fmt: skip
        print(json.dumps(document, indent=2))
        return
    print(
        f"{wanted.model.name}, rows of {wanted.shape}, batch {wanted.batch}, {wanted.clients} clients, {processor()}\n"
    )
    print("| round | alone, rows/s | served, rows/s | served / alone | rows of a batch | failed |")
    print("|---|---|---|---|---|---|")
    for number, each in enumerate(rounds, 1):
        print(f"| {number} | {each.alone:.1f} | {each.served:.1f} | {each.ratio:.3f} | {each.rows_of_a_batch:.1f} "
              f"| {each.failed} |")  # fmt: skip
    print(f"\nmedian {ratio:.3f} of the throughput alone; the bar is {BAR}: {'met' if ratio >= BAR else 'missed'}")


if __name__ == "__main__":
    main()
