"""The process that one contender lives in: loads a model once, then answers or times it when told.

One JSON object per line, in and out; tensors in .npz files that both sides name. It ends with its parent, whose pipe
closes. Only the library that is asked for is imported. Started by `child`: `python -m benches.engines.worker`.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]
Run = Callable[[Arrays], Sequence[npt.NDArray[Any]]]
_LIBRARY_ERROR = 3  # ONNX Runtime's severity: warnings about shapes in real models would fill the log


def onnxruntime_run(path: str, optimised: bool) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _LIBRARY_ERROR
    # By number: left to itself the library takes all cores of the machine, whichever this process is kept to.
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(None, dict(arrays))


def openvino_run(path: str, shapes: Mapping[str, Sequence[int]], hint: str) -> tuple[Run, str]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({name: list(shape) for name, shape in shapes.items()})
    settings = {"PERFORMANCE_HINT": "LATENCY"} | ({"INFERENCE_PRECISION_HINT": hint} if hint else {})
    compiled = core.compile_model(model, "CPU", settings)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    outputs = list(range(len(compiled.outputs)))

    def run(arrays: Arrays) -> Sequence[npt.NDArray[Any]]:
        found = compiled(dict(arrays))
        return [found[index] for index in outputs]

    return run, f"computes in {used}"


def penstock_run(path: str) -> tuple[Run, str]:
    import penstock

    engine: Any = penstock.load(path)
    chosen = ", ".join(sorted({program.tactic.name for program in engine.manifest.programs}))
    names = [spec.name for spec in engine.outputs]

    def run(arrays: Arrays) -> Sequence[npt.NDArray[Any]]:
        found = engine(**arrays)
        return [found[name] for name in names]

    return run, chosen


class Worker:
    def __init__(self) -> None:
        self._run: Run = lambda _: []
        self._inputs: dict[str, npt.NDArray[Any]] = {}

    def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        if command["do"] == "load":
            return self._load(command)
        if command["do"] == "run":
            outputs = self._run(_read(command["inputs"]))
            named: dict[str, Any] = {f"{index:03d}": array for index, array in enumerate(outputs)}
            np.savez(command["outputs"], **named)
            return {}
        times: list[int] = []
        deadline = time.perf_counter_ns() + int(1e9 * command["seconds"])
        while len(times) < command["least"] or time.perf_counter_ns() < deadline:
            begun = time.perf_counter_ns()
            self._run(self._inputs)
            times.append(time.perf_counter_ns() - begun)
        return {"ns": times}

    def _load(self, command: Mapping[str, Any]) -> dict[str, Any]:
        self._inputs = _read(command["inputs"])
        begun, detail = time.perf_counter(), ""
        if command["library"] == "onnxruntime":
            self._run = onnxruntime_run(command["path"], command["optimised"])
        elif command["library"] == "openvino":
            shapes = {name: array.shape for name, array in self._inputs.items()}
            self._run, detail = openvino_run(command["path"], shapes, command["hint"])
        else:
            self._run, detail = penstock_run(command["path"])
        self._run(self._inputs)  # the first call may set up buffers
        return {"seconds": time.perf_counter() - begun, "detail": detail}


def _read(path: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def main() -> None:
    # Libraries print what they like on standard output: it becomes standard error, and answers get a pipe of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        try:
            found = worker.answer(json.loads(line))
        except Exception as error:  # whatever a library raises is an answer: the contender is lost, not the bench
            found = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
