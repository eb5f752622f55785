"""First look at lowered models on a GPU: the steps under one CUDA graph against torch.compile of the same.

    python benches/probes_gpu/first_look.py lower MODEL.onnx FOLDER --shape x={b}x3x224x224 --batches 1,8,64
    python benches/probes_gpu/first_look.py measure FOLDER [--models resnet50 --batches 1,64] [--random-weights]

`lower` needs the package with onnx and onnx-ir and writes MODEL.bN.json with FP16 weights beside it (those that no
smaller batch has already); `--no-weights` leaves them out, for models that are too large to carry. `measure` needs
torch, numpy, safetensors and the package's `engine` folder, nothing of ONNX and no native module. Times are medians
of single replays by CUDA events; the error is norm-relative against the same steps in FP32 without TF32 on the same
device. `tuned` is the CUDA graph with the fastest implementation of each step, ours in Triton among them; `early` lets
our kernels be launched before the one ahead has ended. With `--device cpu` everything but CUDA graphs runs, to try the
script itself. With $OUT set, all of it goes to $OUT/first_look.json too, and the choices beside it.
"""

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "python"))

from penstock.engine import cores
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
    seen = [(operand.value, step.kind, operand.role) for step in graph.steps for operand in step.inputs]
    roles = {value: (kind, role) for value, kind, role in seen if role != "column_sums"}
    found: dict[str, NDArray[Any]] = {}
    for name, weight in graph.weights.items():
        kind, role = roles.get(name, ("", ""))
        if not weight.datatype.startswith(("FP", "BF")):
            found[name] = np.zeros(weight.shape, {"BOOL": np.bool_}.get(weight.datatype, np.int64))
        elif (kind == "layer_norm" and role in ("weight", "bias")) or role in ("residual_scale", "residual_shift"):
            found[name] = np.full(weight.shape, float(role in ("weight", "residual_scale")), np.float16)
        elif role in ("weight", "recurrence"):
            fan = (
                int(np.prod(weight.shape[1:]))
                if kind in ("conv", "conv_pool", "picture_pool", "gemm", "gemm_norm")
                else weight.shape[-1]
            )
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
    records: list[Record] = []
    with _compilers(arguments) as compilers:
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
                Look(model, _batch(path), graph, numbers, arguments, compilers, records).take()
            except Exception:
                traceback.print_exc()


@contextmanager
def _compilers(arguments: argparse.Namespace) -> Iterator[Any]:
    """Processes that compile, where there is a GPU and Triton; else None."""
    if not arguments.device.startswith("cuda") or not find_spec("triton") or not arguments.tune_seconds:
        yield None
        return
    import torch

    # torch.compile moves the cache unless it is said where it is, and then the processes fill another one.
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton/cache"))
    from penstock.engine.cuda.precompile import Compilers

    major, minor = torch.cuda.get_device_capability()
    with Compilers(arguments.jobs, 10 * major + minor) as compilers:
        compilers.start()
        yield compilers


@dataclass(frozen=True)
class StepTime:
    """What the tuner found for one kind of step."""

    kind: str
    name: str
    count: int
    shapes: str
    activation: str
    chosen: str
    microseconds: float
    all: dict[str, float]
    failed: dict[str, str]

    def __str__(self) -> str:
        rivals = {choice: us for choice, us in self.all.items() if " " not in choice and choice != self.chosen}
        others = "  ".join(f"{choice} {us:.1f}" for choice, us in rivals.items())
        return (
            f"{self.count:3} x {self.microseconds:8.2f} µs  {self.kind} {self.activation} {self.shapes}  "
            f"{self.chosen}  ({others})"
        )


@dataclass(frozen=True)
class Record:
    """One line of the table; no time: it failed, and the note says how."""

    model: str
    batch: int
    way: str
    ms: float | None
    error: float | None
    note: str
    steps: list[StepTime]


def _step_time(row: Any) -> StepTime:
    step, graph = row.site.step, row.site.graph
    shapes = " ".join("x".join(map(str, graph.shape(each))) for each in step.inputs[:2])
    return StepTime(
        step.kind,
        step.name,
        len(row.steps),
        shapes,
        str(step.attributes.get("activation", "")),
        str(row.best),
        row.microseconds,
        {str(choice): us for choice, us in row.times.items()},
        {str(choice): why for choice, why in row.failed.items()},
    )


class Look:
    """All ways of one model at one batch."""

    def __init__(
        self,
        model: str,
        batch: int,
        graph: LoweredGraph,
        weights: Arrays,
        arguments: argparse.Namespace,
        compilers: Any,
        records: list["Record"],
    ) -> None:
        import torch

        from penstock.engine.cuda.executor import Executor
        from penstock.engine.cuda.sites import DTYPES

        self.torch, self.model, self.batch, self.arguments = torch, model, batch, arguments
        self.graph, self.weights, self.device = graph, weights, arguments.device
        self.compilers, self.records = compilers, records
        self.choices: Any = None
        self.found: list[StepTime] = []
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
        if self.arguments.tune_seconds:
            self._way("tuned", self._tuned)
            if self.device.startswith("cuda") and self.choices:
                self._way("tuned, early", self._early)
        for mode in filter(None, self.arguments.compile.split(",")):
            self._way(f"torch.compile {mode}, CUDA graph", lambda mode=mode: self._compiled(mode))
        if self.arguments.steps:
            self._steps()

    def _executor(self, preferred: Sequence[str], choices: Any = None, *, early_launch: bool = False) -> Any:
        from penstock.engine.cuda.executor import Executor

        given = (self.graph, self.weights, self.device, self.arguments.precision)
        return Executor(*given, preferred, choices, early_launch=early_launch)

    def _record(self, record: "Record") -> None:
        self.records.append(record)
        if out := os.environ.get("OUT"):
            import torch

            about = {"torch": torch.__version__, "device": _device_name(self.device)}
            rows = [asdict(each) for each in self.records]
            (Path(out) / "first_look.json").write_text(json.dumps(about | {"rows": rows}, indent=1))

    def _way(self, name: str, function: Callable[[], tuple[float, Any, str]]) -> None:
        self.found = []
        try:
            milliseconds, outputs, note = function()
            error = self._error(outputs)
            print(f"{self.model:24} {self.batch:5} {name:38} {milliseconds:9.4f} {error:9.1e}  {note}", flush=True)
            self._record(Record(self.model, self.batch, name, milliseconds, error, note, self.found))
        except Exception as failure:
            line = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
            self._record(Record(self.model, self.batch, name, None, None, line, []))
            print(
                f"{self.model:24} {self.batch:5} {name:38} {'failed':>9} {'':9}  {line}",
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

    def _tuned(self) -> tuple[float, Any, str]:
        from penstock.engine.cuda.choices import to_json
        from penstock.engine.cuda.tuner import tune

        limits = {"seconds": self.arguments.tune_seconds, "limit": self.arguments.limit}
        result = tune(self._executor(()), self.inputs, compilers=self.compilers, **limits)
        self.choices = result.choices
        if out := os.environ.get("OUT"):
            (Path(out) / f"{self.model}.b{self.batch}.choices.json").write_text(to_json(result.choices))
        self.found = [_step_time(row) for row in result.rows]
        lost = sum(len(row.failed) for row in result.rows)
        total = sum(each.microseconds * each.count for each in self.found)
        for each in self.found[:TOP]:
            print(f"    {each.microseconds * each.count / total:6.1%}  {each}", flush=True)
        for row in result.rows:
            for choice, why in list(row.failed.items())[:1]:
                print(f"    lost: {row.site.step.kind} {choice}: {' '.join(why.split())[:160]}", flush=True)
        executor = self._executor((), self.choices)
        note = (
            f"tuned in {result.seconds:.0f} s, {lost} lost, {result.untimed} untimed, steps' sum {total / 1e3:.4f} ms"
        )
        note = f"{note}; {self._used(executor)}"
        if not self.device.startswith("cuda"):
            return self._median(lambda: executor.run(self.inputs)), executor.run(self.inputs), note
        return self._captured(executor, None, note)

    def _early(self) -> tuple[float, Any, str]:
        executor = self._executor((), self.choices, early_launch=True)
        if self.compilers is not None:
            from penstock.engine.cuda.triton_steps import launches

            names = [bound.implementation for bound in executor.program]
            self.compilers.build(launches(executor.sites, names), 60.0)
        early = sum(site.early and site.behind for site in executor.sites)
        return self._captured(executor, None, f"{early} of {len(executor.sites)} steps launched early")

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
        captured = executor.capture(compute, search=compute is not None)  # a rival gets cuDNN's best
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
    look.add_argument("--compile", default="default", help="modes, or nothing")
    look.add_argument("--tune-seconds", type=float, default=60.0, help="for each model and batch; 0: no tuning")
    look.add_argument("--limit", type=int, default=8, help="configurations of one kernel that are timed")
    look.add_argument("--jobs", type=int, default=cores.available(), help="processes that compile")
    look.add_argument("--random-weights", action="store_true")
    look.add_argument("--steps", action="store_true", help="time of each step's kernels, the ten longest")
    look.add_argument("--verbose", action="store_true")
    look.set_defaults(run=measure)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
