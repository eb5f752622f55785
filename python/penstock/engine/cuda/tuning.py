"""How long to tune a form's buckets for, and what was chosen: a file beside the form.

The builder writes the time, and what it knows from earlier builds; whoever compiles a bucket first tunes it and writes
its choices, and everybody after that takes them over: the race, the seal, another precision of the same width. Called
by the runtime and the builder; torch is imported when something is tuned.
"""

import hashlib
import importlib.util
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from penstock.engine.cuda import choices as chosen
from penstock.engine.cuda import nursery
from penstock.engine.cuda.choices import Choices
from penstock.engine.cuda.form import Form, Prepared
from penstock.engine.lowered import to_json
from penstock.engine.plan import Shapes

if TYPE_CHECKING:
    import torch

    from penstock.engine.cuda.buckets import Model
    from penstock.engine.cuda.executor import Executor
    from penstock.engine.cuda.precompile import Compilers
    from penstock.engine.cuda.ways import Launched

_LOG = logging.getLogger(__name__)

TUNING: Final = ".tuning.json"

_SECONDS: Final = 15.0  # of tuning one bucket where nobody says how long
_LEAST_SECONDS: Final = 1.0  # libraries are timed in this, and nothing is compiled
_CAPTURE_SECONDS: Final = 1.5  # to capture what was chosen, and to time it
_AFTER: Final = 0.15  # of a bucket's time, for choosing what a step alone does not tell: see `early` and `abreast`
_MOST_AFTER: Final = 3.0
_COMPILE_SECONDS: Final = 60.0
_WAIT_SECONDS: Final = 60.0  # for a form that is being written
_TICK_SECONDS: Final = 0.02
_WIDE: Final = ("tf32", "fp32")

_kept: "list[Compilers]" = []
"""Those of a process that will tune, started before it is asked to; none: they live as long as one tuning."""

_ahead: "list[Ahead]" = []
"""What those compile while nothing is tuned."""


class Tuning:
    """What lies beside a form: time to tune for, and choices by bucket and width of the numbers."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.stem + TUNING)
        self.seconds, self.until, self.contexts, self._known = self._read()

    def _read(self) -> tuple[float, float | None, int, dict[str, Any]]:
        try:
            data = json.loads(self._path.read_text())
            until = data["until"]
            left = None if until is None else float(until)
            return float(data["seconds"]), left, int(data["contexts"]), dict(data["choices"])
        except FileNotFoundError:
            return _SECONDS, None, 1, {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("%s can't be read (%s): every bucket is tuned anew", self._path.name, error)
            return _SECONDS, None, 1, {}

    @staticmethod
    def prepare(
        path: Path,
        seconds: float,
        *,
        until: float | None = None,
        known: Mapping[str, Any] | None = None,
        contexts: int = 1,
    ) -> None:
        """For the form at `path`, before anything is compiled.

        seconds  of a bucket, at most.
        until    on the monotonic clock, which the processes of a machine share: buckets that are not tuned yet share
                 what is left until then.
        known    choices of earlier builds, as `known` gives them.
        contexts that will compute at once.
        """
        _written(path.with_name(path.stem + TUNING), _data(seconds, until, contexts, dict(known or {})))

    @property
    def known(self) -> Mapping[str, Any]:
        """Choices as plain data, by `name`."""
        return self._known

    def knows(self, shapes: Shapes, precision: str) -> bool:
        """Whether compiling this bucket takes choices over and tunes nothing."""
        return name(shapes, precision) in self._known

    def choices(self, model: "Model", prepared: Prepared, precision: str, *, search: bool) -> Choices:
        """Known ones, else found by time now and written down; none without `search`."""
        import torch

        from penstock.engine.cuda.abreast import chosen_abreast
        from penstock.engine.cuda.early import LEAST_SECONDS, chosen_early
        from penstock.engine.cuda.executor import Executor
        from penstock.engine.cuda.sites import launches_early
        from penstock.engine.cuda.tuner import random_inputs, tune
        from penstock.engine.cuda.turns import fills

        key = name(prepared.shapes, precision)
        if key in self._known:
            return chosen.from_json(json.dumps(self._known[key]))
        if not search:
            return {}
        for each in _ahead:
            each.pause()
        # Kernels as they will be launched: they are not compiled again.
        weights, early = model.weights(prepared, precision), launches_early(model.device)
        executor = Executor(prepared.graph, weights, model.device, precision, early_launch=early)
        others = [name(each.shapes, precision) for each in model.form.prepared]
        seconds = self._share(sum(each not in self._known for each in others))
        # What won at other shapes is tried first.
        hints = next((chosen.from_json(json.dumps(self._known[each])) for each in others if each in self._known), {})
        after = min(_MOST_AFTER, _AFTER * seconds) if early else 0.0
        with compilers(model.device) as builds:
            tuned = tune(executor, seconds=seconds - after, compilers=builds, hints=hints)
            found = tuned.choices
            if self.contexts > 1 and early and not fills(prepared.graph):
                # In company everything is launched early.
                with torch.no_grad(), executor.arithmetic():
                    found = chosen_abreast(tuned, self.contexts, after)
            elif after >= LEAST_SECONDS:
                executor = Executor(prepared.graph, weights, model.device, precision, choices=found, early_launch=early)
                found, _ = chosen_early(executor, found, random_inputs(executor), after)
        # Another process may have tuned another bucket meanwhile, and may be reading now.
        self._known = {**self._read()[3], key: json.loads(chosen.to_json(found))}
        _written(self._path, _data(self.seconds, self.until, self.contexts, self._known))
        return found

    def _share(self, buckets: int) -> float:
        """Seconds of one of so many buckets that are still to be tuned."""
        if self.until is None:
            return self.seconds
        left = (self.until - time.monotonic()) / max(1, buckets) - _CAPTURE_SECONDS
        return max(_LEAST_SECONDS, min(self.seconds, left))


def _data(seconds: float, until: float | None, contexts: int, choices: Mapping[str, Any]) -> dict[str, Any]:
    return {"seconds": seconds, "until": until, "contexts": contexts, "choices": choices}


def _written(path: Path, data: Mapping[str, Any]) -> None:
    """In one step: others may be reading, or waiting for it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(data))
    beside.replace(path)


def name(shapes: Shapes, precision: str) -> str:
    """Of what is chosen once: a bucket, and the width of the numbers in it."""
    written = sorted((each, list(shape)) for each, shape in shapes.items())
    return json.dumps([written, 32 if precision in _WIDE else 16])


def digest(prepared: Prepared, contexts: int = 1) -> str:
    """Of all that choices depend on but the machine: the steps with their shapes, how many contexts will compute at
    once, and our kernels as they are now.
    """
    found = hashlib.sha256(to_json(prepared.graph).encode())
    found.update(f"{contexts}".encode())
    found.update(_sources().encode())
    return found.hexdigest()


@cache
def _sources() -> str:
    return digest_of_sources(Path(__file__).parent)


def digest_of_sources(*folders: Path) -> str:
    """Of what lies below, Python and CUDA C++: other kernels are another engine."""
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(each for each in folder.rglob("*") if each.suffix in (".py", ".cu", ".cuh")):
            found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


class Ahead:
    """Kernels that tuning will ask for, compiled while other things are timed; those that are not done in time are
    compiled when they are wanted.
    """

    def __init__(
        self, compilers: "Compilers", launches: "Sequence[Launched]", until: float, model: "Model | None" = None
    ) -> None:
        """`until`: on the monotonic clock. `model`: whose weights stay on the device until it is compiled."""
        self._model = model
        self._compilers, self._launches, self._until = compilers, list(launches), until
        self._asked: list[Future[str]] = []

    def go_on(self) -> None:
        self._asked = [self._compilers.submit(each, self._until) for each in self._launches]

    def pause(self) -> None:
        """What has not begun can wait: the compilers are wanted for something else."""
        waits = [each.cancel() for each in self._asked]
        if waits:
            self._launches = [each for each, waited in zip(self._launches, waits, strict=True) if waited]
        self._asked = []


def expect(path: Path) -> None:
    """Kernels of this form will be compiled: who does it may start now. Imports no torch."""
    if not Tuning(path).known and importlib.util.find_spec("triton") is not None:
        nursery.start()


def prepare(path: Path, device: "torch.device", precision: str, model: "Callable[[], Model]") -> None:
    """Start the processes that compile now, and with what tuning the form will ask for; nothing where all is known.

    They live as long as this process.
    """
    if _kept or not is_there(path):
        return
    tuning, found = Tuning(path), model()
    unknown = [each for each in found.form.prepared if not tuning.knows(each.shapes, precision)]
    made = _made(device) if unknown else None
    if made is None:
        return
    made.start()
    _kept.append(made)
    from penstock.engine.cuda.executor import Executor
    from penstock.engine.cuda.sites import launches_early
    from penstock.engine.cuda.tuner import promising

    early = launches_early(device)
    executors = [
        Executor(each.graph, found.weights(each, precision), device, precision, early_launch=early) for each in unknown
    ]
    until = tuning.until if tuning.until is not None else time.monotonic() + tuning.seconds
    _ahead.append(Ahead(made, promising(executors), until, found))
    _ahead[0].go_on()
    warming = threading.Thread(target=_warm, args=(executors[0],), name="penstock-warm")
    warming.start()
    warming.join()


def _warm(executor: "Executor") -> None:
    """One run, for which libraries load what they launch. On a thread of its own: what cuDNN chooses for a thread it
    keeps to, and whoever tunes may want it to search.
    """
    with suppress(Exception):  # tuning raises it again, and is asked
        executor.run(executor.blank_inputs())


def is_there(path: Path, seconds: float = _WAIT_SECONDS) -> bool:
    """Whether the form is written, now or soon: a builder says its name before, and at last how long to tune for."""
    last, until = path.with_name(path.stem + TUNING), time.monotonic() + seconds
    while not last.exists() and time.monotonic() < until:
        time.sleep(_TICK_SECONDS)
    return last.exists()


def go_on(path: Path, form: Form, precision: str) -> None:
    """A bucket is done: until the next one is tuned there is time for its kernels."""
    tuning = Tuning(path)
    if any(not tuning.knows(each.shapes, precision) for each in form.prepared):
        for each in _ahead:
            each.go_on()


def build_early(executor: "Executor") -> None:
    """Compile the kernels of an executor as it will launch them, all at once and not one by one in its first run."""
    from penstock.engine.cuda.implementations import OURS

    names = [bound.implementation for bound in executor.program]
    if executor.device.type != "cuda" or not any(each.startswith(OURS) for each in names):
        return
    from penstock.engine.cuda.triton_steps import launches

    with compilers(executor.device) as builds:
        if builds is not None:
            builds.build(launches(executor.sites, names), _COMPILE_SECONDS)


@contextmanager
def compilers(device: "torch.device") -> "Iterator[Compilers | None]":
    """Processes that compile our kernels while others are timed; None where there is nothing to compile for."""
    if _kept:
        yield _kept[0]
        return
    made = _made(device)
    if made is None:
        yield None
        return
    with made:
        yield made


def _made(device: "torch.device") -> "Compilers | None":
    from penstock.engine.cuda.implementations import add_triton
    from penstock.engine.cuda.sites import capability

    if device.type != "cuda" or not add_triton():
        return None
    from penstock.engine.cuda.precompile import Compilers

    return Compilers(nursery.count(), capability(device))
