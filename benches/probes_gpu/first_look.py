"""First look at lowered models on a GPU: the steps under one CUDA graph against torch.compile of the same.

    python benches/probes_gpu/first_look.py lower MODEL.onnx FOLDER --shape x={b}x3x224x224 --batches 1,8,64
    python benches/probes_gpu/first_look.py measure FOLDER [--models resnet50 --batches 1,64] [--random-weights]

`lower` needs the package with onnx and onnx-ir and writes MODEL.bN.json with FP16 weights beside it (those that no
smaller batch has already); `--no-weights` leaves them out, for models that are too large to carry. `measure` needs
torch, numpy, safetensors and the package's `engine` folder, nothing of ONNX and no native module. Times are medians
of single replays by CUDA events; the error is norm-relative against the same steps in FP32 without TF32 on the same
device. With `--device cpu` everything but CUDA graphs runs, to try the script itself.
"""

import argparse
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "python"))

from penstock.engine.lowered import LoweredGraph, from_json, to_json

Arrays = Mapping[str, NDArray[Any]]

REPLAYS: Final = 60
WARM: Final = 10
TOP: Final = 10


# ---- lower: where ONNX is ----


def lower(arguments: argparse.Namespace) -> None:
    from safetensors.numpy import save_file

    from penstock.graph import load, optimize
    from penstock.graph.lowering import lower as lowered

    model, folder = load(arguments.model), Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = arguments.name or Path(arguments.model).stem
    known: dict[str, bytes] = {}
    for batch in _numbers(arguments.batches):
        shapes = {
            each.partition("=")[0]: tuple(
                int(size) for size in each.partition("=")[2].replace("{b}", str(batch)).split("x")
            )
            for each in arguments.shape
        }
        graph, weights = lowered(optimize(model, shapes=shapes).model)
        stem = folder / f"{name}.b{batch}"
        stem.with_name(f"{stem.name}.json").write_text(to_json(graph))
        new = {}
        for key, array in weights.items():
            half = array.astype(np.float16) if array.dtype == np.float32 and _fits_half(array) else array
            half = np.ascontiguousarray(half)
            if known.get(key) != half.tobytes():
                known[key] = half.tobytes()
                new[key] = half
        if not arguments.no_weights:
            save_file(new, stem.with_name(f"{stem.name}.safetensors"))
        total = sum(array.nbytes for array in new.values())
        print(f"{stem.name}: {len(graph.steps)} steps, {total / 2**20:.1f} MiB of weights", flush=True)


def _fits_half(array: NDArray[Any]) -> bool:
    return bool(np.abs(array).max(initial=0) < 65504)


# ---- measure: where the GPU is ----


def made_weights(graph: LoweredGraph, seed: int = 1) -> Arrays:
    """Numbers of a trained network's size: products keep the variance, norms begin at one."""
    random = np.random.default_rng(seed)
    roles = {operand.value: (step.kind, operand.role) for step in graph.steps for operand in step.inputs}
    found: dict[str, NDArray[Any]] = {}
    for name, weight in graph.weights.items():
        kind, role = roles.get(name, ("", ""))
        if not weight.datatype.startswith(("FP", "BF")):
            found[name] = np.zeros(weight.shape, {"BOOL": np.bool_}.get(weight.datatype, np.int64))
        elif kind == "layer_norm":
            found[name] = np.full(weight.shape, 1.0 if role == "weight" else 0.0, np.float16)
        elif role in ("weight", "recurrence"):
            fan = int(np.prod(weight.shape[1:])) if kind in ("conv", "gemm") else weight.shape[-1]
            found[name] = random.normal(0, max(fan, 1) ** -0.5, weight.shape).astype(np.float16)
        else:
            found[name] = random.normal(0, 0.02, weight.shape).astype(np.float16)
    return found


def measure(arguments: argparse.Namespace) -> None:
    import torch

    folder = Path(arguments.folder)
    wanted, batches = set(filter(None, arguments.models.split(","))), _numbers(arguments.batches)
    files = sorted(folder.glob("*.b*.json"), key=lambda path: (_model(path), _batch(path)))
    print(f"torch {torch.__version__}, {_device_name(arguments.device)}")
    print(f"{'model':24} {'batch':>5} {'way':38} {'ms':>9} {'error':>9}  note")
    weights: dict[str, NDArray[Any]] = {}
    model = ""
    for path in files:
        if _model(path) != model:
            model, weights = _model(path), {}
        if path.with_suffix(".safetensors").exists():
            from safetensors.numpy import load_file

            weights.update(load_file(path.with_suffix(".safetensors")))
        if (wanted and model not in wanted) or (batches and _batch(path) not in batches):
            continue
        graph = from_json(path.read_text())
        numbers = made_weights(graph) if arguments.random_weights else weights
        try:
            Look(model, _batch(path), graph, numbers, arguments).take()
        except Exception:
            traceback.print_exc()


class Look:
    """All ways of one model at one batch."""

    def __init__(
        self, model: str, batch: int, graph: LoweredGraph, weights: Arrays, arguments: argparse.Namespace
    ) -> None:
        import torch

        from penstock.engine.cuda.executor import Executor
        from penstock.engine.cuda.sites import DTYPES

        self.torch, self.model, self.batch, self.arguments = torch, model, batch, arguments
        self.graph, self.weights, self.device = graph, weights, arguments.device
        generator = torch.Generator().manual_seed(7)
        self.inputs = {}
        for each in graph.inputs:
            dtype = DTYPES[each.datatype]
            tensor = torch.randn(each.shape, generator=generator)
            if not dtype.is_floating_point:
                tensor = torch.ones(each.shape) if "mask" in each.name else tensor.abs().mul(1000).floor()
            self.inputs[each.name] = tensor.to(dtype).to(self.device)
        reference = Executor(graph, weights, self.device, "fp32")
        self.expected = {name: each.double().cpu() for name, each in reference.run(self.inputs).items()}
        del reference

    def take(self) -> None:
        self._way("eager, cudnn", lambda: self._eager(()))
        if self.device.startswith("cuda"):
            self._way("CUDA graph, cudnn", lambda: self._graph(()))
            self._way("CUDA graph, cudnn_fused", lambda: self._graph(("cudnn_fused", "torch_narrow")))
            self._way("CUDA graph, cudnn_fused + addmm", lambda: self._graph(_MOST))
        for mode in filter(None, self.arguments.compile.split(",")):
            self._way(f"torch.compile {mode}, CUDA graph", lambda mode=mode: self._compiled(mode))
        if self.arguments.steps:
            self._steps()

    def _executor(self, preferred: Sequence[str]) -> Any:
        from penstock.engine.cuda.executor import Executor

        return Executor(self.graph, self.weights, self.device, self.arguments.precision, preferred)

    def _way(self, name: str, function: Callable[[], tuple[float, Any, str]]) -> None:
        try:
            milliseconds, outputs, note = function()
            print(
                f"{self.model:24} {self.batch:5} {name:38} {milliseconds:9.4f} {self._error(outputs):9.1e}  {note}",
                flush=True,
            )
        except Exception as error:
            line = " ".join(str(error).split())[:200]
            print(
                f"{self.model:24} {self.batch:5} {name:38} {'failed':>9} {'':9}  {type(error).__name__}: {line}",
                flush=True,
            )
            if self.arguments.verbose:
                traceback.print_exc()

    def _error(self, outputs: Mapping[str, Any]) -> float:
        error = sum(float((outputs[name].double().cpu() - each).square().sum()) for name, each in self.expected.items())
        size = sum(float(each.square().sum()) for each in self.expected.values())
        return float((error / size) ** 0.5)

    def _eager(self, preferred: Sequence[str]) -> tuple[float, Any, str]:
        executor = self._executor(preferred)
        outputs = executor.run(self.inputs)
        return self._median(lambda: executor.run(self.inputs)), outputs, ""

    def _graph(self, preferred: Sequence[str]) -> tuple[float, Any, str]:
        executor = self._executor(preferred)
        return self._captured(executor, None, self._used(executor))

    def _compiled(self, mode: str) -> tuple[float, Any, str]:
        torch = self.torch
        started = time.perf_counter()
        executor = self._executor(())
        given = [self.inputs[each.name] for each in self.graph.inputs]
        torch._dynamo.reset()
        with torch.no_grad(), executor.arithmetic():
            compiled = torch.compile(executor.module(), mode=mode if mode != "default" else None, dynamic=False)
            outputs = compiled(*given)
        note = f"compiled in {time.perf_counter() - started:.0f} s"
        if not self.device.startswith("cuda"):
            names = [each.name for each in self.graph.outputs]
            return self._median(lambda: compiled(*given)), dict(zip(names, outputs, strict=True)), note
        return self._captured(executor, lambda tensors: compiled(*tensors), note)

    def _captured(self, executor: Any, compute: Any, note: str) -> tuple[float, Any, str]:
        torch = self.torch
        captured = executor.capture(compute)
        for name, tensor in self.inputs.items():
            captured.inputs[name].copy_(tensor)
        torch.cuda.synchronize()
        captured.replay()
        captured.stream.synchronize()
        outputs = {name: each.clone() for name, each in captured.outputs.items()}
        with torch.cuda.stream(captured.stream):
            return self._median(captured.replay), outputs, note

    def _median(self, function: Callable[[], Any]) -> float:
        torch = self.torch
        if not self.device.startswith("cuda"):
            times = []
            for _ in range(3):
                started = time.perf_counter()
                function()
                times.append((time.perf_counter() - started) * 1e3)
            return statistics.median(times)
        for _ in range(WARM):
            function()
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(REPLAYS)]
        for start, end in pairs:
            start.record()
            function()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in pairs)

    def _used(self, executor: Any) -> str:
        counts: dict[str, int] = {}
        for bound in executor.program:
            counts[bound.implementation] = counts.get(bound.implementation, 0) + 1
        return ", ".join(f"{count} {name}" for name, count in counts.items())

    def _steps(self) -> None:
        """Time on the device of each step's kernels, run eagerly under torch's profiler."""
        torch = self.torch
        from torch.profiler import ProfilerActivity, profile, record_function

        executor = self._executor(_MOST)
        executor.program = tuple(_marked(bound, f"step {n:03} {bound.kind}", record_function)
                                 for n, bound in enumerate(executor.program))  # fmt: skip
        with executor.arithmetic(True):
            executor.run(self.inputs)
        cuda = self.device.startswith("cuda")
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        rounds = 5
        with profile(activities=activities) as profiler:
            for _ in range(rounds):
                executor.run(self.inputs)
            if cuda:
                torch.cuda.synchronize()
        rows: dict[str, float] = {}
        for event in profiler.key_averages():
            if event.key.startswith("step ") and "CPU" in str(event.device_type):  # the range, with its kernels
                spent = event.device_time_total if cuda else event.cpu_time_total
                rows[event.key] = max(rows.get(event.key, 0.0), spent / rounds)
        kinds: dict[str, float] = {}
        for name, spent in rows.items():
            kinds[name.split()[2]] = kinds.get(name.split()[2], 0.0) + spent
        total = sum(rows.values()) or 1.0
        listed = sorted(kinds.items(), key=lambda pair: -pair[1])
        print(f"    {total:.0f} µs in kernels: " + ", ".join(f"{kind} {spent / total:.0%}" for kind, spent in listed))
        for name, spent in sorted(rows.items(), key=lambda pair: -pair[1])[:TOP]:
            step = executor.graph.steps[int(name.split()[1])]
            shapes = " ".join("x".join(map(str, executor.graph.shape(each))) for each in step.inputs[:2])
            more = step.attributes.get("activation", "")
            print(f"    {spent:8.1f} µs {spent / total:5.1%}  {name} {more} {shapes}  {step.name[-40:]}")


_MOST: Final = ("cudnn_fused", "cublas_residual", "torch_narrow")


def _marked(bound: Any, name: str, record: Callable[[str], Any]) -> Any:
    from dataclasses import replace

    def run(operands: Sequence[Any]) -> Any:
        with record(name):
            return bound.run(operands)

    return replace(bound, run=run)


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(",") if each)


def _model(path: Path) -> str:
    return path.name.rpartition(".b")[0]


def _batch(path: Path) -> int:
    return int(path.name.removesuffix(".json").rpartition(".b")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("lower", help="write lowered graphs")
    make.add_argument("model")
    make.add_argument("folder")
    make.add_argument("--shape", action="append", required=True, help="x={b}x3x224x224, once for each input")
    make.add_argument("--batches", default="1")
    make.add_argument("--name", default="")
    make.add_argument("--no-weights", action="store_true")
    make.set_defaults(run=lower)
    look = commands.add_parser("measure", help="time what lower wrote")
    look.add_argument("folder")
    look.add_argument("--models", default="")
    look.add_argument("--batches", default="")
    look.add_argument("--precision", default="fp16")
    look.add_argument("--device", default="cuda")
    look.add_argument("--compile", default="default,max-autotune-no-cudagraphs", help="modes, or nothing")
    look.add_argument("--random-weights", action="store_true")
    look.add_argument("--steps", action="store_true", help="time of each step's kernels, the ten longest")
    look.add_argument("--verbose", action="store_true")
    look.set_defaults(run=measure)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
