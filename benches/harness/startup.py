"""How long Penstock takes to import and to be ready with a model.

It promises fresh processes, warm file caches (runs before the counted ones), medians, and a reason where there is no
figure. Called by `dataplane.py`.
"""

import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.lab import REPOSITORY, Lab, LabError

PYTHON = REPOSITORY / ".venv" / "bin" / "python"
PENSTOCK = REPOSITORY / ".venv" / "bin" / "penstock"

WARM_RUNS = 2
IMPORT_RUNS = 10
READY_RUNS = 5
READY_SECONDS = 60
MISSING = ".venv is missing or has no penstock; run `make setup`"

IMPORT_CODE = "import time; t = time.perf_counter(); import penstock; print(time.perf_counter() - t)"
READY_LINE = "penstock: ready"


@dataclass(frozen=True)
class Duration:
    """Milliseconds of every counted run; or why there are none."""

    name: str
    milliseconds: tuple[float, ...] = ()
    reason: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.milliseconds) if self.milliseconds else None


class FailedRunError(Exception):
    """A run gave no time."""


def import_time() -> Duration:
    if not PYTHON.exists():
        return Duration("import penstock", reason=MISSING)
    return _median_of("import penstock", IMPORT_RUNS, _import_once)


def time_to_ready(lab: Lab) -> Duration:
    name = "penstock serve model.onnx, to ready"
    if not PENSTOCK.exists():
        return Duration(name, reason=MISSING)
    try:
        model = lab.onnx()
    except LabError as error:
        return Duration(name, reason=str(error))
    return _median_of(f"{name} ({model.name})", READY_RUNS, lambda: _ready_once(lab, model))


def _median_of(name: str, runs: int, once: Callable[[], float]) -> Duration:
    try:
        times = [once() * 1e3 for _ in range(WARM_RUNS + runs)]
    except (FailedRunError, OSError) as error:
        return Duration(name, reason=str(error))
    return Duration(name, tuple(times[WARM_RUNS:]))


def _import_once() -> float:
    done = subprocess.run(
        [str(PYTHON), "-c", IMPORT_CODE], capture_output=True, text=True, timeout=READY_SECONDS, check=False
    )
    if done.returncode != 0:
        raise FailedRunError(f"import penstock: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return float(done.stdout)


def _ready_once(lab: Lab, model: Path) -> float:
    """From starting the process to its own line, read as it is written; the timer ends a server that never says it."""
    command = [str(PENSTOCK), "serve", str(model)]
    for listener in ("http", "grpc", "metrics"):
        command += [f"--{listener}-port", "0"]
    said: list[str] = []
    begin = time.perf_counter()
    with subprocess.Popen(
        command, cwd=lab.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        timer = threading.Timer(READY_SECONDS, process.kill)
        timer.start()
        try:
            assert process.stderr is not None
            for line in process.stderr:
                took = time.perf_counter() - begin
                said.append(line.strip())
                if line.strip() == READY_LINE:
                    return took
        finally:
            timer.cancel()
            process.terminate()
            # Drained, so that a last word to a full pipe can't keep it from ending.
            process.communicate(timeout=READY_SECONDS)
    raise FailedRunError(f"penstock serve: never said `{READY_LINE}`: {' | '.join(said[-3:])[:300]}")
