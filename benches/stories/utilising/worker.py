"""A process with one model in it, which computes when it is told to: its memory is the model's and nobody else's.

    with Worker() as worker:
        worker.load(path); worker.time(inputs, seconds=1)

Promises: one computes while the others wait for their turn; a worker ends with whoever started it; what fails in it is
raised here, with its last words. As a process it reads one JSON object a line and answers one.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from benches.stories.utilising.memory import Memory, of_process

REPOSITORY: Final = Path(__file__).parents[3]
Arrays = Mapping[str, NDArray[Any]]


class Worker:
    """Used with `with`. Raises RuntimeError when the process can't do what it is told."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="penstock-worker-")
        command = [sys.executable, "-W", "ignore", "-m", "benches.stories.utilising.worker"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        self._folder.cleanup()

    def load(self, path: Path, runtime: str | None = None, alone: Mapping[str, tuple[int, ...]] | None = None) -> float:
        """Seconds that it took. `alone`: of an engine, its program compiled anew for these shapes and no others."""
        return float(self._told(do="load", path=str(path), runtime=runtime, alone=alone)["seconds"])

    def time(self, inputs: Arrays, seconds: float, iterations: int = 3) -> float:
        """Median milliseconds of a call, over so many seconds and calls at least."""
        return float(
            self._told(do="time", inputs=self._kept(inputs), seconds=seconds, iterations=iterations)["milliseconds"]
        )

    def answer(self, inputs: Arrays) -> Arrays:
        """What one call answers."""
        to = Path(self._folder.name) / "answer.npz"
        self._told(do="answer", inputs=self._kept(inputs), to=str(to))
        with np.load(to, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}

    def memory(self) -> Memory:
        return of_process(self._process.pid)

    def _kept(self, inputs: Arrays) -> str:
        path = Path(self._folder.name) / "inputs.npz"
        np.savez(path, **inputs)  # type: ignore[arg-type]
        return str(path)

    def _told(self, **asked: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        said = self._process.stdout.readline()
        if not said:
            raise RuntimeError(f"a worker ended with status {self._process.wait()} at {asked['do']!r}; see above")
        found: dict[str, Any] = json.loads(said)
        if "error" in found:
            raise RuntimeError(f"{asked['do']}: {found['error']}")
        return found


# ---- the process ----


class _Here:
    """The model that was loaded."""

    def __init__(self) -> None:
        self._model: Any = None

    def load(self, path: str, runtime: str | None, alone: Mapping[str, list[int]] | None) -> dict[str, Any]:
        import time

        import penstock as ps

        began = time.perf_counter()
        if alone is None:
            self._model = ps.load(path, runtime=runtime)
        else:
            self._model = _compiled_alone(Path(path), {name: tuple(shape) for name, shape in alone.items()})
        return {"seconds": time.perf_counter() - began}

    def time(self, inputs: str, seconds: float, iterations: int) -> dict[str, Any]:
        from penstock.build.timing import Load, measure

        report = measure(self._model, _read(inputs), Load(1, 0.0, seconds, iterations), ())
        return {"milliseconds": report.latency.median}

    def answer(self, inputs: str, to: str) -> dict[str, Any]:
        np.savez(to, **self._model(**_read(inputs)))
        return {}


def _compiled_alone(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """The library and precision that an engine chose for these shapes, compiled for them alone."""
    from dataclasses import replace

    from penstock.engine import open_engine, retuning, runtimes, sealed

    engine = open_engine(path)
    route = engine.route({name: np.empty(shape, np.float32) for name, shape in shapes.items()})
    program = engine.manifest.programs[route.steps[0].program]
    engine.close()
    with tempfile.TemporaryDirectory(prefix="penstock-alone-") as name:
        retuning.unpack(sealed.read(path), Path(name))
        graph = Path(name) / Path(retuning.graph_member(program.tactic.form)).name
        return runtimes.compile(graph, replace(program.tactic, shapes="static"), shapes=dict(shapes))


def _read(path: str) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files}


def main() -> None:
    here = _Here()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            said = getattr(here, {"load": "load", "time": "time", "answer": "answer"}[asked.pop("do")])(**asked)
        except Exception as error:  # whoever asked is told, and decides
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
