"""What a server adds to an engine on a GPU: pictures by shared memory and gRPC beside the engine alone.

    python benches/serve_gpu.py prepare --graphs .gpu/graphs
    python benches/serve_gpu.py --graphs .gpu/graphs --tune-seconds 10

The engine takes bytes of pictures and normalises them itself (`penstock build --preprocess`). It is called over and
over by as many threads as the server has instances, then served to clients that ask again once they are answered,
after each of them was answered a few times; what is compared is rows per second, transfers included. Measuring needs
the GPU, torch and the built package; `prepare`, on a machine with torch and onnx, lowers the model for it.
"""

import argparse
import gc
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

from benches.gpu.subjects import SUBJECTS, Subject, Tensor  # noqa: E402
from benches.serve_clients import Ports, Row, Way, client, pictures  # noqa: E402
from penstock.engine import cores  # noqa: E402

_PROCESSES: Final = max(6, 5 * cores.available() // 8)
"""Of clients: one interpreter sends some ten thousand small requests a second."""
_PREPROCESS: Final = "x:uint8,nhwc,mean=123.675/116.28/103.53,std=58.395/57.12/57.375"
_MEAN: Final = (123.675, 116.28, 103.53)
_MEAN_NAME: Final = "x_mean"
_DEVIATION: Final = 57.4
_BYTES: Final = "_uint8"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", nargs="?", default="measure", choices=["measure", "prepare"])
    parser.add_argument("--graphs", nargs="+", type=Path, default=[REPOSITORY / ".gpu"], metavar="DIR")
    parser.add_argument("--model", default="resnet50", choices=["resnet50", "resnet34", "tiny"])
    parser.add_argument("--floats", action="store_true", help="FP32 inputs, four times the bytes")
    parser.add_argument("--tune-seconds", type=float, default=10.0, help="of the largest bucket; others a third")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--instances", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries the script")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 64])
    return parser.parse_args()


def subject_of(options: argparse.Namespace) -> Subject:
    """Named like its graphs; those of bytes take them as cameras give them, channels last."""
    found = SUBJECTS[options.model]
    channels, height, width = found.inputs[0].shape
    taken = Tensor("x", (height, width, channels))
    return found if options.floats else replace(found, name=options.model + _BYTES, inputs=(taken,))


def prepare(options: argparse.Namespace) -> int:
    """The lowered graphs; weights are made where they are measured."""
    from safetensors.numpy import save_file

    from benches.gpu import prepare as making
    from penstock.engine.lowered import to_json
    from penstock.graph import optimize
    from penstock.graph.boundary import preprocess
    from penstock.graph.lowering import SUPPORTED, lower

    subject, folder = subject_of(options), options.graphs[0]
    for batch in options.batches:
        model = making.exported(SUBJECTS[options.model], batch)
        if not options.floats:
            model = preprocess(model, _PREPROCESS)
        shapes = {"x": (batch, *subject.inputs[0].shape)}
        graph, weights = lower(optimize(model, shapes=shapes, known=SUPPORTED).model)
        (folder / f"{subject.name}.b{batch}.json").write_text(to_json(graph))
        kept = {name: array for name, array in weights.items() if array.dtype.kind != "f" or array.size == 1}
        save_file(kept, folder / f"{subject.name}.b{batch}.safetensors")
        print(f"{subject.name}.b{batch}: {len(graph.steps)} steps", flush=True)
    return 0


# ---- the engine ----


def engine(options: argparse.Namespace, subject: Subject, folder: Path) -> Any:
    """An engine of the buckets, sealed nowhere: programs compiled here, and their times."""
    import torch

    from benches.gpu import weights
    from benches.gpu.assembled import assembled
    from penstock.engine.cuda import form
    from penstock.engine.lowered import from_json

    row = subject.inputs[0].shape
    entries = []
    for batch in options.batches:
        directory = next(each for each in options.graphs if (each / f"{subject.name}.b{batch}.json").is_file())
        graph = from_json((directory / f"{subject.name}.b{batch}.json").read_text())
        there = weights.carried(directory, subject, batch)
        full = weights.complete(graph, there, "cpu")
        if not options.floats:
            _of_bytes(graph, full)
        entries.append(({"x": (batch, *row)}, graph, {name: full[name].float().numpy() for name in graph.weights}))
    path = folder / "model.safetensors"
    form.write(path, entries)
    device = torch.device("cuda:0" if options.device == "cuda" else "cpu")
    found = assembled(path, options.model, row, options.batches, device, options.tune_seconds)
    _accurate(path, found.programs, options, device, row)
    return found.engine


def _of_bytes(graph: Any, full: dict[str, Any]) -> None:
    """Weights made from a seed would let bytes grow past FP16: what normalises them has its real size."""
    import torch

    stem = next(step for step in graph.steps if step.kind == "conv")
    (weight,) = (operand.value for operand in stem.inputs if operand.role == "weight")
    full[weight] = full[weight] / _DEVIATION
    if _MEAN_NAME in full:
        full[_MEAN_NAME] = torch.tensor(_MEAN).reshape(full[_MEAN_NAME].shape)


def _accurate(path: Path, programs: Mapping[int, Any], options: argparse.Namespace, device: Any, row: Row) -> None:
    from penstock.engine.cuda.runtime import CudaRuntime
    from penstock.engine.plan import Tactic

    rows = min(options.batches)
    shapes = {"x": (rows, *row)}
    plain = Tactic("cuda", "fp32", "lowered", "static", options=(("steps", "plain"),))
    right = CudaRuntime.compile(path, plain, shapes=shapes, instances=1, threads=None, device=device)
    x = pictures(rows, row, right.inputs[0].dtype)
    (name,) = (each.name for each in right.outputs)
    expected = right(x=x)[name].astype(np.float64)
    for at in programs:
        count = programs[at].inputs[0].shape[0]
        found = programs[at](x=np.repeat(x[:1], count, axis=0))[name][:1]
        error = np.linalg.norm(found - expected[:1]) / np.linalg.norm(expected[:1])
        print(f"bucket {count:3}: error against FP32 {error:.1e}", file=sys.stderr, flush=True)
        assert error < 2e-2, error
    right.close()


# ---- measuring ----


@dataclass(frozen=True)
class Window:
    """What happened in a measurement."""

    rows_per_second: float
    latencies: Sequence[float]
    line: str


def served(server: Any, way: Way, seconds: float) -> Window:
    """Clients in processes of their own, measured once each of them was answered often enough."""
    about = os.statvfs("/dev/shm")
    if way.kind == "shm":
        way = replace(way, clients=min(way.clients, about.f_bavail * about.f_frsize * 9 // 10 // way.bytes))
    size = way.clients * way.bytes if way.kind == "shm" else 1
    memory = shared_memory.SharedMemory(create=True, size=size)
    url, key = f"http://127.0.0.1:{server.http_port}/v2", f"r{time.monotonic_ns()}"
    try:
        if way.kind == "shm":
            assert memory.buf is not None
            one = pictures(way.rows, way.row, way.numpy).view(np.uint8).ravel()
            for number in range(way.clients):
                np.frombuffer(memory.buf, np.uint8)[number * way.bytes : (number + 1) * way.bytes] = one
            document = json.dumps({"key": f"/{memory.name}", "offset": 0, "byte_size": size}).encode()
            urllib.request.urlopen(urllib.request.Request(f"{url}/systemsharedmemory/region/{key}/register", document))
        return _window(server, way, key, seconds, url)
    finally:
        memory.close()
        memory.unlink()


def _window(server: Any, way: Way, key: str, seconds: float, url: str) -> Window:
    context = multiprocessing.get_context("spawn")
    until, results = context.Event(), context.Queue()
    processes = min(_PROCESSES, way.clients)
    shares = [way.clients // processes + (number < way.clients % processes) for number in range(processes)]
    workers = []
    ports = Ports(server.http_port, server.grpc_port)
    for number, share in enumerate(shares):
        given = (ports, way, key, sum(shares[:number]), share, until, results)
        workers.append(context.Process(target=client, args=given, daemon=True))
        workers[-1].start()
    begin, deadline = statistics(url, way.model), time.monotonic() + 20
    while statistics(url, way.model)["requests"] - begin["requests"] < 4 * way.clients:
        assert time.monotonic() < deadline, "clients are not answered"
        time.sleep(0.02)
    before, cpu, since = statistics(url, way.model), time.process_time(), time.perf_counter()
    time.sleep(seconds)
    after, cpu, now = statistics(url, way.model), time.process_time() - cpu, time.perf_counter()
    until.set()
    found = [each for _ in workers for each in results.get(timeout=20)]
    for worker in workers:
        worker.join()
    spent = sorted(latency for at, latency in found if since <= at <= now)
    rate = len(spent) * way.rows / (now - since)
    batches = max(1, after["batches"] - before["batches"])
    per = {name: (after[name] - before[name]) / batches / 1e6 for name in ("input", "infer", "output")}
    rows = (after["rows"] - before["rows"]) / batches
    line = (
        f"{rate:8.0f} rows/s  p50 {1e3 * quantile(spent, 0.5):7.2f}  p99 {1e3 * quantile(spent, 0.99):7.2f} ms  "
        f"batch {rows:5.1f}  gather {per['input']:6.3f}  infer {per['infer']:6.3f}  split {per['output']:6.3f} ms  "
        f"cpu {1e6 * cpu / max(1, rows * batches):5.0f} us/row"
    )
    return Window(rate, spent, line)


def statistics(url: str, model: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/models/{model}/stats") as reply:
        (each,) = json.loads(reply.read())["model_stats"]
    sums: Sequence[Any] = each["batch_stats"]
    return {
        "batches": each["execution_count"],
        "rows": each["inference_count"],
        "requests": each["inference_stats"]["success"]["count"],
        "input": sum(row["compute_input"]["ns"] for row in sums),
        "infer": sum(row["compute_infer"]["ns"] for row in sums),
        "output": sum(row["compute_output"]["ns"] for row in sums),
    }


def alone(engine: Any, row: Row, dtype: Any, rows: int, streams: int, seconds: float) -> tuple[float, str]:
    """The engine called over and over with the same arrays, by threads with an instance each: `penstock time`."""
    x = {"x": pictures(rows, row, dtype)}
    counts, stop, ready = [0] * streams, threading.Event(), threading.Barrier(streams + 1)
    begun = time.perf_counter()
    instances = [engine.instance() for _ in range(streams)]
    for instance in instances:
        instance.prepare()
    prepared = time.perf_counter() - begun

    def call(number: int) -> None:
        for _ in range(5):
            instances[number].execute(x)
        ready.wait()
        while not stop.is_set():
            instances[number].execute(x)
            counts[number] += 1

    threads = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(streams)]
    for thread in threads:
        thread.start()
    ready.wait()
    begun, before = time.perf_counter(), sum(counts)
    time.sleep(seconds)
    done, spent = sum(counts) - before, time.perf_counter() - begun
    stop.set()
    for thread in threads:
        thread.join()
    rate = done * rows / spent
    return rate, (
        f"{rate:8.0f} rows/s  a call {1e3 * spent * streams / max(1, done):7.2f} ms  "
        f"(contexts of {streams} instances made in {prepared:.2f} s)"
    )


def phases(engine: Any, row: Row, dtype: Any, rows: int) -> str:
    x = {"x": pictures(rows, row, dtype)}
    (step,) = engine.route(x).steps
    parts = engine.compiled(step.program).phases(x, 30)
    medians = [quantile(sorted(each), 0.5) for each in (parts.copy_in, parts.compute, parts.copy_out)]
    return f"GPU, batch {rows}: in {medians[0]:.3f}, compute {medians[1]:.3f}, out {medians[2]:.3f} ms"


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def machine(size: int) -> str:
    """What the host pays for a batch's bytes: copying, pages it never had, shared memory, a socket."""
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)

    def fastest(work: Any) -> float:
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
        return min(times)

    copied = fastest(lambda: np.copyto(target, source))
    fresh = fastest(lambda: np.copyto(np.empty(size, np.uint8), source))
    memory = shared_memory.SharedMemory(create=True, size=size)
    assert memory.buf is not None
    memory.buf[:] = bytes(size)
    with Path(f"/dev/shm/{memory.name}").open("rb", buffering=0) as file:
        read = fastest(lambda: os.preadv(file.fileno(), [target], 0))
    memory.close()
    memory.unlink()
    there, here = socket.socketpair()

    def sent() -> None:
        thread = threading.Thread(target=there.sendall, args=(source,))
        thread.start()
        left = memoryview(target)
        while left:
            left = left[here.recv_into(left) :]
        thread.join()

    socketed = fastest(sent)
    begun = time.perf_counter()
    gc.collect()
    collected = time.perf_counter() - begun
    return (
        f"{len(os.sched_getaffinity(0))} cores, Linux {os.uname().release}; {size / 1e6:.1f} MB copied in "
        f"{1e3 * copied:.2f}, to fresh pages {1e3 * fresh:.2f}, from shared memory {1e3 * read:.2f}, "
        f"through a socket {1e3 * socketed:.2f} ms; a collection {1e3 * collected:.0f} ms"
    )


def main() -> int:
    options = arguments()
    if options.do == "prepare":
        return prepare(options)
    subject = subject_of(options)
    with tempfile.TemporaryDirectory() as folder:
        found = engine(options, subject, Path(folder))
        row, most = subject.inputs[0].shape, max(options.batches)
        datatype = "FP32" if options.floats else "UINT8"
        one = Way("shm", row, datatype, most, 1, 4 * most * math.prod(found.outputs[0].shape[1:]))
        print(machine(one.bytes), flush=True)
        if options.device == "cuda":
            print(phases(found, row, one.numpy, most), flush=True)
        for instances in options.instances:
            compare(found, one, instances, _ways(most, instances), options.seconds)
    return 0


def compare(found: Any, one: Way, instances: int, ways: Sequence[tuple[Any, int, int]], seconds: float) -> None:
    """The engine alone and served, with so many instances; `one` request of the largest batch."""
    import penstock as ps

    best, said = alone(found, one.row, one.numpy, one.rows, instances, seconds)
    print(f"engine alone,   batch {one.rows:3} x{instances}             {said}", flush=True)
    server = ps.Server(http_port=0, grpc_port=0, metrics_port=None, allow_client_shm=True)
    server.add(found, name="m", instances=instances)
    begun = time.perf_counter()
    with server:
        print(f"ready to serve in {time.perf_counter() - begun:.2f} s", flush=True)
        for kind, rows, clients in ways:
            way = replace(one, kind=kind, rows=rows, clients=clients, answer_bytes=one.answer_bytes // one.rows * rows)
            title = f"{kind:4} clients,   batch {rows:3} x{instances} {clients:4} clients"
            try:
                window = served(server, way, seconds)
                print(f"{title} {window.line}  {100 * window.rows_per_second / best:4.0f} %", flush=True)
            except Exception as error:
                print(f"{title}: {type(error).__name__}: {error}", flush=True)


def _ways(most: int, instances: int) -> list[tuple[Any, int, int]]:
    """Enough clients that batches wait for the GPU."""
    queued = 3 * instances
    return [
        ("shm", most, queued), ("grpc", most, queued), ("shm", 8, queued * most // 8), ("grpc", 8, queued * most // 8),
        ("shm", 1, 128), ("http", most, queued),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
