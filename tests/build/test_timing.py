"""What `penstock time` measures: as much as was asked for, of all streams, and failures are raised."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock import engine
from penstock.build import timing
from penstock.build.timing import Load
from penstock.engine import Runtime
from penstock.errors import ExecutionError, InvalidArgument
from tests import onnx_models
from tests.cli.processes import write_counter

X = {"x": np.ones((2, 4), np.float32)}


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Runtime]:
    loaded = engine.load(onnx_models.scale(tmp_path / "scale.onnx", 2), instances=2)
    yield loaded
    loaded.close()


@pytest.mark.parametrize("streams", [1, 2])
def test_every_stream_makes_its_calls(model: Runtime, streams: int) -> None:
    report = timing.measure(model, X, Load(streams, warm_up_ms=0, duration_seconds=0, iterations=25))
    assert report.calls == 25 * streams
    assert report.calls_per_second == pytest.approx(report.calls / report.wall_seconds)
    assert 0 < report.latency.minimum <= report.latency.median <= report.latency.maximum


def test_a_duration_is_kept(model: Runtime) -> None:
    report = timing.measure(model, X, Load(warm_up_ms=0, duration_seconds=0.2, iterations=1))
    assert report.wall_seconds >= 0.2
    assert report.calls > 1


def test_percentiles_are_times_that_were_seen() -> None:
    """Of 1 to 100 ms, by nearest rank."""
    times = timing._times([each / 1000 for each in range(100, 0, -1)], (50, 90, 99, 100))
    assert dict(times.percentiles) == pytest.approx({50: 50, 90: 90, 99: 99, 100: 100})
    assert (times.minimum, times.maximum, times.mean, times.median) == pytest.approx((1, 100, 50.5, 50.5))


def test_bare_models_have_no_queue(model: Runtime) -> None:
    assert timing.measure(model, X, Load(warm_up_ms=0, duration_seconds=0)).enqueue is None


def test_inputs_that_do_not_fit_are_refused_before_anything_runs(model: Runtime) -> None:
    with pytest.raises(InvalidArgument, match="'x' has shape"):
        timing.measure(model, {"x": np.ones((2, 5), np.float32)}, Load())


@pytest.mark.parametrize("load", [Load(streams=0), Load(iterations=0), Load(duration_seconds=-1), Load(warm_up_ms=-1)])
def test_a_load_of_nothing_is_refused(model: Runtime, load: Load) -> None:
    with pytest.raises(InvalidArgument, match="at least 1 stream"):
        timing.measure(model, X, load)


class _FailsInOneStream:
    """A model of which the second instance fails: the others must not wait for it for ever."""

    name = "test"

    def __init__(self, model: Runtime) -> None:
        self._model = model
        self._made = 0
        self._lock = threading.Lock()
        self.inputs, self.outputs = model.inputs, model.outputs

    def instance(self) -> Any:
        with self._lock:
            self._made += 1
            if self._made == 2:
                raise ExecutionError("the second one fails")
        return self._model.instance()

    def __call__(self, **arrays: Any) -> Any:
        return self._model(**arrays)

    def close(self) -> None:
        """The model is closed by who made it."""


def test_a_stream_that_fails_ends_all_with_its_error(model: Runtime) -> None:
    with pytest.raises(ExecutionError, match="the second one fails"):
        timing.measure(_FailsInOneStream(model), X, Load(streams=2, warm_up_ms=0, duration_seconds=0))


def test_a_profile_is_what_the_library_executes(tmp_path: Path) -> None:
    path = onnx_models.double(tmp_path / "double.onnx")
    model = engine.load(path)
    (region,) = timing.profile(path, model, {"x": np.ones((4, 16), np.float32)})
    assert (region.kind, region.precision) == ("add", "fp32")
    assert region.microseconds >= 0
    model.close()


def test_what_is_timed_is_the_call(tmp_path: Path) -> None:
    """A loop of 20,000 turns takes longer than one of 20."""
    model = engine.load(write_counter(tmp_path / "counter.onnx"))
    few, many = (
        timing.measure(
            model, {"turns": np.array([turns], np.int64)}, Load(warm_up_ms=0, duration_seconds=0, iterations=5)
        ).latency.median
        for turns in (20, 20_000)
    )
    assert many > 10 * few
    model.close()
