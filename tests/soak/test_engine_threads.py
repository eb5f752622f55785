"""32 threads on one engine with inputs and shapes of their own: every answer is that of its own input.

PENSTOCK_SOAK_SECONDS sets how long; ten seconds by default, 60 in the full run. Programs of both libraries, static and
dynamic, buckets that are hit, padded and split: what threads could share by mistake is all there.
"""

import os
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from penstock.engine import Engine, open_engine
from penstock.engine.plan import Tactic
from tests.engine.engines import OPENVINO, ORT, STATIC, Plan, profile, seal

SECONDS = float(os.environ.get("PENSTOCK_SOAK_SECONDS", "10"))
THREADS = 32
CHANNELS, HEIGHT = 8, 12
WIDTHS = (16, 24, 33, 48)
LARGEST = 8
TOLERANCE = 1e-4

Array = npt.NDArray[np.float32]


def filters() -> tuple[Array, Array]:
    rng = np.random.default_rng(5)
    return rng.standard_normal((CHANNELS, 3, 3, 3)).astype(np.float32), rng.standard_normal(CHANNELS).astype(np.float32)


def write_model(path: Path) -> Path:
    weight, bias = filters()
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 17]>
        m (float[n, 3, {HEIGHT}, w] x) => (float[n, {CHANNELS}, w] y) {{
            c = Conv<pads = [1, 1, 1, 1]>(x, weight, bias)
            r = Relu(c)
            y = ReduceSum<keepdims = 0>(r, axis)
        }}""")
    arrays = {"weight": weight, "bias": bias, "axis": np.array([2])}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, path)
    return path


def expected(x: Array) -> Array:
    """In float64, from the definition."""
    weight, bias = (each.astype(np.float64) for each in filters())
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    found = np.einsum("nchwij,kcij->nkhw", windows, weight) + bias[:, None, None]
    return np.maximum(found, 0).sum(axis=2).astype(np.float32)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    def at(rows: int, width: int) -> dict[str, tuple[int, ...]]:
        return {"x": (rows, 3, HEIGHT, width)}

    programs: list[tuple[Tactic, dict[str, tuple[int, ...]]]] = [
        (ORT, {}), (OPENVINO, {}), (STATIC, at(1, 16)), (STATIC, at(4, 24)), (STATIC, at(8, 48)),
    ]  # fmt: skip
    buckets = [
        (at(1, 16), 2, 10.0), (at(4, 24), 3, 20.0), (at(8, 48), 4, 40.0), (at(1, 33), 0, 12.0), (at(8, 33), 1, 30.0),
    ]  # fmt: skip
    limits = profile("x", at(1, 16)["x"], at(4, 24)["x"], at(LARGEST, 48)["x"])
    return open_engine(seal(Plan(write_model(tmp_path / "m.onnx"), limits, programs, buckets), tmp_path / "m.engine"))


def test_every_answer_is_that_of_its_own_input(engine: Engine) -> None:
    calls: Counter[tuple[int, int]] = Counter()
    wrong: list[str] = []
    lock = threading.Lock()
    start = threading.Barrier(THREADS)
    deadline = time.monotonic() + SECONDS

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        # What is right is worked out before the clock runs: the threads are to be in the engine, not in NumPy.
        asked = []
        for _ in range(12):
            # More rows than the largest bucket, too: such a call is split.
            rows, width = int(rng.integers(1, 2 * LARGEST)), int(rng.choice(WIDTHS))
            x = rng.standard_normal((rows, 3, HEIGHT, width)).astype(np.float32)
            asked.append((x, expected(x)))
        mine: Counter[tuple[int, int]] = Counter()
        start.wait()
        while time.monotonic() < deadline and not wrong:
            x, y = asked[int(rng.integers(len(asked)))]
            found = engine(x=x)["y"]
            mine[len(x), x.shape[3]] += 1
            if found.shape != y.shape or not np.allclose(found, y, rtol=TOLERANCE, atol=TOLERANCE * float(y.max())):
                wrong.append(f"thread {seed}: an answer to {x.shape} differs by {np.abs(found - y).max():.3g}")
        with lock:
            calls.update(mine)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]
    assert len(calls) > len(WIDTHS) * LARGEST / 2
    assert calls.total() > THREADS * SECONDS
