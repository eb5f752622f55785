"""What a server adds to an engine on a GPU: pictures over HTTP and shared memory beside the engine alone.

    python benches/serve_gpu.py --graphs .gpu --tune-seconds 10

Needs the GPU, torch and the built package; lowered graphs are those of `engine_gpu.py prepare`. Clients are processes
of their own that send ready-made requests over plain sockets. Each way runs twice in turns: batches laid out in the
memory that the engine's instances lend, and (`copied`) gathered elsewhere and copied there, as without it.
"""

import argparse
import json
import math
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any, Final

REPOSITORY: Final = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "python")]

import numpy as np  # noqa: E402

from benches.gpu.subjects import SUBJECTS  # noqa: E402

Row = tuple[int, ...]
_PROCESSES: Final = 4
_ANSWER_BYTES: Final = 1 << 16


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", nargs="+", type=Path, default=[REPOSITORY / ".gpu"], metavar="DIR")
    parser.add_argument("--model", default="resnet50", choices=["resnet50", "resnet34", "tiny"])
    parser.add_argument("--tune-seconds", type=float, default=10.0, help="of the largest bucket; others a third")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--instances", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries the script")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 64])
    return parser.parse_args()


# ---- the engine ----


def engine(options: argparse.Namespace, folder: Path) -> Any:
    """An engine of the buckets, sealed nowhere: programs compiled here, and their times."""
    import torch

    from benches.gpu import weights
    from penstock.engine import fingerprint
    from penstock.engine.cuda import form
    from penstock.engine.cuda.runtime import CudaRuntime
    from penstock.engine.cuda.tuning import Tuning
    from penstock.engine.engine import Engine
    from penstock.engine.lowered import from_json
    from penstock.engine.plan import Bucket, Manifest, Profile, Program, Tactic
    from penstock.engine.sealed import Sealed
    from penstock.tensors import TensorSpec

    subject = SUBJECTS[options.model]
    row = subject.inputs[0].shape
    entries = []
    for batch in options.batches:
        directory = next(each for each in options.graphs if (each / f"{options.model}.b{batch}.json").is_file())
        graph = from_json((directory / f"{options.model}.b{batch}.json").read_text())
        there = weights.carried(directory, subject, batch)
        full = weights.complete(graph, there, "cpu")
        entries.append(({"x": (batch, *row)}, graph, {name: full[name].float().numpy() for name in graph.weights}))
    path = folder / "model.safetensors"
    form.write(path, entries)
    device = torch.device("cuda:0" if options.device == "cuda" else "cpu")
    tactic = Tactic("cuda", "fp16" if options.device == "cuda" else "fp32", "lowered", "static",
                    options=(("steps", "tuned" if options.tune_seconds else "plain"),))  # fmt: skip
    programs, buckets = {}, []
    for at, batch in enumerate(sorted(options.batches, reverse=True)):
        seconds = options.tune_seconds / (1 if batch == max(options.batches) else 3)
        _again(path, seconds, Tuning)
        shapes = {"x": (batch, *row)}
        programs[at] = CudaRuntime.compile(path, tactic, shapes=shapes, instances=1, threads=None, device=device)
        spent = _milliseconds(programs[at], batch, row)
        buckets.append((shapes, at, 1e3 * spent))
        print(f"bucket {batch:3}: {spent:7.3f} ms a call", file=sys.stderr, flush=True)
    _accurate(path, programs, options, device, row)
    inputs, outputs = programs[0].inputs, programs[0].outputs
    top = {"x": (max(options.batches), *row)}
    manifest = Manifest(
        name=options.model,
        inputs=tuple(TensorSpec(each.name, each.datatype, (-1, *each.shape[1:])) for each in inputs),
        outputs=tuple(TensorSpec(each.name, each.datatype, (-1, *each.shape[1:])) for each in outputs),
        profiles=(Profile({"x": (1, *row)}, top, top),),
        programs=tuple(
            Program(tactic, "", dict(shapes), 0, tuple(each.name for each in outputs)) for shapes, _, _ in buckets
        ),
        buckets=tuple(Bucket(dict(shapes), at, spent) for shapes, at, spent in buckets),
        regions=(), fingerprint=fingerprint.here(), precision=tactic.precision, source_hash="",
    )  # fmt: skip
    unread: Any = None  # it was never a file
    return Engine(Sealed(options.model, manifest, {}, "", unread), programs, 4)


def _again(path: Path, seconds: float, tuning: Any) -> None:
    """The time of the next bucket; what was chosen so far stays."""
    beside = path.with_name(path.stem + ".tuning.json")
    if not beside.is_file():
        tuning.prepare(path, seconds)
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"seconds": seconds}))


def _milliseconds(program: Any, rows: int, row: Row, calls: int = 20) -> float:
    x = pictures(rows, row)
    instance = program.instance()
    instance.execute({"x": x})
    begun = time.perf_counter()
    for _ in range(calls):
        instance.execute({"x": x})
    return 1e3 * (time.perf_counter() - begun) / calls


def _accurate(path: Path, programs: Mapping[int, Any], options: argparse.Namespace, device: Any, row: Row) -> None:
    from penstock.engine.cuda.runtime import CudaRuntime
    from penstock.engine.plan import Tactic

    rows = min(options.batches)
    shapes = {"x": (rows, *row)}
    plain = Tactic("cuda", "fp32", "lowered", "static", options=(("steps", "plain"),))
    right = CudaRuntime.compile(path, plain, shapes=shapes, instances=1, threads=None, device=device)
    x = pictures(rows, row)
    (name,) = (each.name for each in right.outputs)
    expected = right(x=x)[name].astype(np.float64)
    for at in programs:
        count = programs[at].inputs[0].shape[0]
        found = programs[at](x=np.repeat(x[:1], count, axis=0))[name][:1]
        error = np.linalg.norm(found - expected[:1]) / np.linalg.norm(expected[:1])
        print(f"bucket {count:3}: error against FP32 {error:.1e}", file=sys.stderr, flush=True)
        assert error < 2e-2, error
    right.close()


def pictures(rows: int, row: Row) -> Any:
    return np.random.default_rng(rows).standard_normal((rows, *row), np.float32)


class Copied:
    """The engine without its memory on offer."""

    name = "copied"

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def instance(self) -> Any:
        inner = self._engine.instance()

        class Instance:
            execute = staticmethod(inner.execute)
            close = staticmethod(inner.close)

        return Instance()

    def __call__(self, **arrays: Any) -> Any:
        return self._engine(**arrays)

    def close(self) -> None:
        """The engine stays its maker's."""


# ---- clients ----


@dataclass(frozen=True)
class Way:
    """How clients ask."""

    title: str
    row: Row
    rows: int
    clients: int
    shared: bool = False

    @property
    def bytes(self) -> int:
        """Of one request's tensor."""
        return 4 * math.prod(self.row) * self.rows


def client(port: int, way: Way, key: str, first: int, count: int, seconds: float, start: Any, results: Any) -> None:
    """A process with some of the clients: threads that ask again once they are answered."""
    counts = [0] * count
    spent: list[list[float]] = [[] for _ in range(count)]
    body = memoryview(bytearray(pictures(way.rows, way.row).tobytes())) if not way.shared else memoryview(b"")
    stop = threading.Event()

    def ask(number: int) -> None:
        if way.shared:
            offset = (first + number) * way.bytes
            parameters: Any = {
                "shared_memory_region": key, "shared_memory_byte_size": way.bytes,
                "shared_memory_offset": offset,
            }  # fmt: skip
        else:
            parameters = {"binary_data_size": way.bytes}
        tensor = {"name": "x", "shape": [way.rows, *way.row], "datatype": "FP32", "parameters": parameters}
        text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        head = (
            f"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(text) + len(body)}\r\n"
            f"Inference-Header-Content-Length: {len(text)}\r\n\r\n"
        ).encode() + text
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not stop.is_set():
                begun = time.perf_counter()
                connection.sendall(head)
                if body:
                    connection.sendall(body)
                answer(connection)
                counts[number] += 1
                spent[number].append(time.perf_counter() - begun)

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(count)]
    start.wait()
    for thread in threads:
        thread.start()
    time.sleep(seconds / 4)  # warm
    before, since = sum(counts), time.perf_counter()
    marks = [len(each) for each in spent]
    time.sleep(seconds)
    after, now = sum(counts), time.perf_counter()
    latencies = sorted(each for own, mark in zip(spent, marks, strict=True) for each in own[mark:])
    stop.set()
    results.put(((after - before) / (now - since), latencies))


def answer(connection: socket.socket) -> None:
    """Reads one reply to its end."""
    data = connection.recv(_ANSWER_BYTES)
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), data[:500]
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    left = int(lengths[0].split(b":")[1]) - len(rest)
    while left > 0:
        left -= len(_some(connection))


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(_ANSWER_BYTES)
    assert data, "the server closed the connection"
    return data


# ---- measuring ----


def served(model: Any, way: Way, instances: int, seconds: float) -> str:
    """One line of the table."""
    import penstock as ps

    server = ps.Server(http_port=0, grpc_port=None, metrics_port=None, allow_client_shm=True)
    server.add(model, name="m", instances=instances)
    if way.shared:
        about = os.statvfs("/dev/shm")
        way = replace(way, clients=min(way.clients, about.f_bavail * about.f_frsize * 9 // 10 // way.bytes))
        if not way.clients:
            return f"{way.title:28}: /dev/shm has no room for one request"
    memory = shared_memory.SharedMemory(create=True, size=way.clients * way.bytes) if way.shared else None
    with server:
        url = f"http://127.0.0.1:{server.http_port}/v2"
        if memory is not None:
            assert memory.buf is not None
            np.frombuffer(memory.buf, np.float32)[:] = np.tile(pictures(way.rows, way.row).ravel(), way.clients)
            document = json.dumps({"key": f"/{memory.name}", "offset": 0, "byte_size": memory.size}).encode()
            urllib.request.urlopen(urllib.request.Request(f"{url}/systemsharedmemory/region/r/register", document))
        context = multiprocessing.get_context("spawn")
        processes = min(_PROCESSES, way.clients)
        start, results = context.Barrier(processes + 1), context.Queue()
        shares = [way.clients // processes + (number < way.clients % processes) for number in range(processes)]
        workers = []
        for number, share in enumerate(shares):
            first = sum(shares[:number])
            given = (server.http_port, way, "r", first, share, seconds, start, results)
            workers.append(context.Process(target=client, args=given, daemon=True))
            workers[-1].start()
        start.wait(timeout=60)
        time.sleep(seconds / 4)
        before, cpu = statistics(url), time.process_time()
        time.sleep(seconds / 2)
        after, cpu = statistics(url), time.process_time() - cpu
        found = [results.get(timeout=60) for _ in workers]
        for worker in workers:
            worker.kill()
            worker.join()
    if memory is not None:
        memory.close()
        memory.unlink()
    rate = sum(each[0] for each in found) * way.rows
    latencies = sorted(each for _, own in found for each in own)
    middle = 1e3 * median(latencies) if latencies else math.nan
    batches = max(1, after["batches"] - before["batches"])
    per = {name: (after[name] - before[name]) / batches / 1e6 for name in ("input", "infer", "output")}
    rows = (after["rows"] - before["rows"]) / batches
    return (
        f"{way.title:28} x{instances} {way.clients:4} clients {rate:9.0f} rows/s  p50 {middle:7.2f} ms  "
        f"batch {rows:5.1f}  gather {per['input']:6.3f}  infer {per['infer']:6.3f}  split {per['output']:6.3f} ms  "
        f"cpu {1e6 * cpu / max(1, rows * batches):6.0f} us/row"
    )


def statistics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/models/m/stats") as reply:
        (each,) = json.loads(reply.read())["model_stats"]
    sums: Sequence[Any] = each["batch_stats"]
    return {
        "batches": each["execution_count"],
        "rows": each["inference_count"],
        "input": sum(row["compute_input"]["ns"] for row in sums),
        "infer": sum(row["compute_infer"]["ns"] for row in sums),
        "output": sum(row["compute_output"]["ns"] for row in sums),
    }


def alone(engine: Any, row: Row, rows: int, streams: int, seconds: float) -> str:
    """The engine called over and over with the same arrays, by threads with an instance each: `penstock time`."""
    x = {"x": pictures(rows, row)}
    counts, stop, ready = [0] * streams, threading.Event(), threading.Barrier(streams + 1)

    def call(number: int) -> None:
        instance = engine.instance()
        for _ in range(3):
            instance.execute(x)
        ready.wait()
        while not stop.is_set():
            instance.execute(x)
            counts[number] += 1

    threads = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(streams)]
    for thread in threads:
        thread.start()
    ready.wait()
    begun = time.perf_counter()
    time.sleep(seconds)
    done, spent = sum(counts), time.perf_counter() - begun
    stop.set()
    for thread in threads:
        thread.join()
    (step,) = engine.route(x).steps
    parts = engine.compiled(step.program).phases(x, 30)
    medians = [median(each) for each in (parts.copy_in, parts.compute, parts.copy_out)]
    return (
        f"engine alone, batch {rows:3}       x{streams}               {done * rows / spent:9.0f} rows/s  "
        f"a call {1e3 * spent * streams / max(1, done):7.2f} ms  GPU in {medians[0]:.3f} compute {medians[1]:.3f} "
        f"out {medians[2]:.3f} ms"
    )


def median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def copying(rows: int, row: Row) -> str:
    """What the host's copy of a whole batch costs, which `copied` makes once more."""
    x = pictures(rows, row)
    target = np.empty_like(x)
    target[:] = x
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        np.copyto(target, x)
        times.append(time.perf_counter() - begun)
    return f"host copy of batch {rows}: {1e3 * sorted(times)[3]:.2f} ms, {x.nbytes / sorted(times)[3] / 1e9:.1f} GB/s"


def main() -> int:
    options = arguments()
    most, row = max(options.batches), SUBJECTS[options.model].inputs[0].shape
    with tempfile.TemporaryDirectory() as folder:
        found = engine(options, Path(folder))
        print(f"{len(os.sched_getaffinity(0))} cores; {copying(most, row)}", flush=True)
        for rows in (most, 1):
            for streams in (1, max(options.instances)):
                if options.device == "cuda":
                    print(alone(found, row, rows, streams, options.seconds / 2), flush=True)
        ways = [
            Way(f"HTTP, batch {most}", row, most, 6),
            Way(f"shared memory, batch {most}", row, most, 6, shared=True),
            Way("HTTP, batch 1", row, 1, 128),
            Way("shared memory, batch 1", row, 1, 128, shared=True),
        ]
        for way in ways:
            for instances in options.instances:
                for model in (Copied(found), found):
                    name = f"{way.title}{', copied' if isinstance(model, Copied) else ''}"
                    each = replace(way, title=name)
                    try:
                        print(served(model, each, instances, options.seconds), flush=True)
                    except Exception as error:
                        print(f"{name}: {type(error).__name__}: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
