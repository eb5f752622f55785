"""How long to tune a form's buckets for, and what was chosen: a file beside the form.

The builder writes the time, whoever compiles a bucket first tunes it and writes its choices, and everybody after that
takes them over: the race, the seal, another precision of the same width. Called by the runtime and the builder; torch
is imported when something is tuned.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from penstock.engine.cuda import choices as chosen
from penstock.engine.cuda.choices import Choices
from penstock.engine.cuda.form import Prepared

if TYPE_CHECKING:
    import torch

    from penstock.engine.cuda.buckets import Model

_LOG = logging.getLogger(__name__)

TUNING: Final = ".tuning.json"

_SECONDS: Final = 15.0  # of tuning one bucket where nobody says how long
_MOST_PROCESSES: Final = 16


class Tuning:
    """What lies beside a form: seconds to tune each bucket for, and choices by bucket and width of the numbers."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.stem + TUNING)
        self.seconds, self._known = self._read()

    def _read(self) -> tuple[float, dict[str, Any]]:
        try:
            data = json.loads(self._path.read_text())
            return float(data["seconds"]), dict(data["choices"])
        except FileNotFoundError:
            return _SECONDS, {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("%s can't be read (%s): every bucket is tuned anew", self._path.name, error)
            return _SECONDS, {}

    @staticmethod
    def prepare(path: Path, seconds: float) -> None:
        """For the form at `path`, before anything is compiled."""
        path.with_name(path.stem + TUNING).write_text(json.dumps({"seconds": seconds, "choices": {}}))

    def choices(self, model: "Model", prepared: Prepared, precision: str, *, search: bool) -> Choices:
        """Known ones, else found by time now and written down; none without `search`."""
        from penstock.engine.cuda.executor import PRECISIONS, Executor
        from penstock.engine.cuda.tuner import tune

        shapes = sorted((name, list(shape)) for name, shape in prepared.shapes.items())
        key = json.dumps([shapes, 32 if PRECISIONS[precision] == "FP32" else 16])
        if key in self._known:
            return chosen.from_json(json.dumps(self._known[key]))
        if not search:
            return {}
        executor = Executor(prepared.graph, model.weights(prepared, precision), model.device, precision)
        with compilers(model.device) as builds:
            found = tune(executor, seconds=self.seconds, compilers=builds).choices
        # Another process may have tuned another bucket meanwhile, and may be reading now.
        self._known = {**self._read()[1], key: json.loads(chosen.to_json(found))}
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        beside.write_text(json.dumps({"seconds": self.seconds, "choices": self._known}))
        beside.replace(self._path)
        return found


@contextmanager
def compilers(device: "torch.device") -> Iterator[Any]:
    """Processes that compile our kernels while others are timed; None where there is nothing to compile for."""
    from penstock.engine.cuda.buckets import capability
    from penstock.engine.cuda.implementations import add_triton

    if device.type != "cuda" or not add_triton():
        yield None
        return
    from penstock.engine.cuda.precompile import Compilers

    count = min(_MOST_PROCESSES, max(1, len(os.sched_getaffinity(0)) - 1))
    with Compilers(count, capability(device)) as found:
        yield found
