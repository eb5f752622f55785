"""Engines on the GPU, from `ps.build` to a process without a compiler."""

import itertools
import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import penstock as ps
from penstock import graph
from penstock.engine.plan import bytes_together
from penstock.errors import InvalidArgument, ResourceExhausted
from tests.quantize import networks

pytestmark = pytest.mark.gpu

BATCHES = (1, 4, 16)
MIB = 1 << 20
PIECES = 48 * MIB  # in which torch takes memory for a context

# Loads an engine where nothing can compile, and says what it answered and how long that took.
FRESH = """
import json, sys, time
import torch
torch.zeros(1, device="cuda")
torch.cuda.synchronize()
begun = time.perf_counter()
import numpy as np
import penstock as ps
engine = ps.load(sys.argv[1])
answer = engine(x=np.load(sys.argv[2]))["fc"]
seconds = time.perf_counter() - begun
np.save(sys.argv[3], answer)
print(json.dumps({"seconds": seconds, "compiler": "torch._dynamo" in sys.modules}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("gpu")
    graph.save(networks.residual(), found / "m.onnx")
    return found


@pytest.fixture(scope="module")
def engine(folder: Path) -> ps.Engine:
    return ps.build(
        folder / "m.onnx", device="cuda:0", shapes="x:1x3x64x64,16x3x64x64,16x3x64x64", buckets=BATCHES,
        budget_seconds=90, output=folder / "m.engine",
    )  # fmt: skip


def expected(folder: Path, x: np.ndarray) -> np.ndarray:
    return np.asarray(ps.load(folder / "m.onnx")(x=x)["fc"])


def pictures(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 3, 64, 64)).astype(np.float32)


def error(found: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - right) / np.linalg.norm(right))


def test_every_bucket_is_a_program_on_the_gpu_with_regions_that_were_timed(engine: ps.Engine) -> None:
    manifest = engine.manifest
    assert manifest.fingerprint.device.startswith("cuda:")
    assert [bucket.shapes["x"][0] for bucket in manifest.buckets] == [16, 1, 4]
    for bucket in manifest.buckets:
        assert manifest.programs[bucket.program].tactic.runtime == "cuda"
    assert manifest.precision == "fp16"
    assert all(region.microseconds > 0 and region.nodes for region in manifest.regions)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 16, 17, 40])
def test_any_number_of_rows_is_answered(rows: int, engine: ps.Engine, folder: Path) -> None:
    x = pictures(rows, rows)
    assert error(engine(x=x)["fc"], expected(folder, x)) < 1e-2


def test_an_engine_is_loaded_where_nothing_can_compile(engine: ps.Engine, folder: Path) -> None:
    x = pictures(4, 3)
    np.save(folder / "x.npy", x)
    cache = folder / "cache"
    cache.mkdir()
    paths = [str(folder / name) for name in ("m.engine", "x.npy", "y.npy")]
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache), "CC": "/nonexistent", "PATH": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *paths], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not list(cache.iterdir())
    np.testing.assert_array_equal(np.load(folder / "y.npy"), engine(x=x)["fc"])
    said = json.loads(done.stdout)
    assert said["seconds"] < 5
    assert not said["compiler"]  # importing it takes longer than all the rest


def test_two_contexts_have_two_batches_in_flight(engine: ps.Engine) -> None:
    x = pictures(16)
    right = engine(x=x)["fc"]
    with engine.context() as first, engine.context() as second:
        futures = [each.enqueue(x=x) for _ in range(50) for each in (first, second)]
        for future in futures:
            np.testing.assert_array_equal(future.result()["fc"], right)


def test_an_urgent_context_gives_the_same_answers(engine: ps.Engine) -> None:
    x = pictures(16)
    with engine.context(priority=-5) as urgent:
        np.testing.assert_array_equal(urgent.enqueue(x=x).result()["fc"], engine(x=x)["fc"])


def test_a_timeline_has_every_part_of_every_call_in_its_order(engine: ps.Engine) -> None:
    program = engine.manifest.buckets[-1].program
    shapes = engine.manifest.buckets[-1].shapes
    x = np.zeros(shapes["x"], np.float32)
    spans = engine.compiled(program).timeline({"x": x}, contexts=2, calls=4)
    for context in range(2):
        for call in range(4):
            of_one = [each for each in spans if (each.context, each.call) == (context, call)]
            assert [each.part for each in of_one] == ["host copy in", "copy in", "compute", "copy out", "host copy out"]
            assert all(each.begin <= each.end for each in of_one)
            device = of_one[1:4]
            assert all(before.end <= after.begin for before, after in itertools.pairwise(device))
            assert device[0].begin >= of_one[0].begin


def test_without_memory_the_error_is_clear_and_the_engine_goes_on(engine: ps.Engine) -> None:
    import torch

    x = pictures(16)
    right = engine(x=x)["fc"]
    torch.cuda.empty_cache()
    hoard: list[Any] = []
    size = 1 << 34
    while size > 1 << 12:
        try:
            hoard.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.cuda.OutOfMemoryError:
            size //= 2
    instance = engine.instance()
    with pytest.raises(ResourceExhausted, match="no memory left"):
        instance.execute({"x": x})
    hoard.clear()
    torch.cuda.empty_cache()
    np.testing.assert_array_equal(instance.execute({"x": x})["fc"], right)


def test_what_a_program_says_it_takes_is_what_it_takes(engine: ps.Engine) -> None:
    """Weights once and a context of every bucket, by torch's own count; perhaps none is kept in another order."""
    import torch

    programs = engine.manifest.programs
    assert len({each.shared_bytes for each in programs}) == 1
    assert all(each.bytes >= each.shared_bytes + each.context_bytes > each.shared_bytes > 0 for each in programs)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    instance = engine.instance()
    largest = max(programs, key=lambda each: each.context_bytes)
    instance.execute({"x": pictures(largest.shapes["x"][0])})
    assert 0 < torch.cuda.memory_allocated() - before <= largest.context_bytes


def refused_for(message: str) -> int:
    """Bytes that a refusal says the programs take."""
    found = re.search(r"takes? ([\d.]+) (MiB|bytes)", message)
    assert found is not None, message
    return int(float(found[1]) * (MIB if found[2] == "MiB" else 1))


def test_a_workspace_that_is_too_small_is_refused_and_one_that_fits_is_kept_to(engine: ps.Engine, folder: Path) -> None:
    build = partial(
        ps.build, folder / "m.onnx", device="cuda:0", shapes="x:1x3x64x64,16x3x64x64,16x3x64x64", buckets=BATCHES,
        budget_seconds=20, timing_cache=folder / "cache.json",
    )  # fmt: skip
    with pytest.raises(InvalidArgument, match="--workspace allows") as refusal:
        build(workspace_bytes=bytes_together(engine.manifest.programs) // 3)
    # Another build chooses other algorithms, whose workspaces are others, and each context has pieces of its own.
    enough = 2 * refused_for(str(refusal.value)) + len(BATCHES) * PIECES
    assert bytes_together(build(workspace_bytes=enough).manifest.programs) <= enough


def test_a_second_build_tunes_nothing(folder: Path) -> None:
    def seconds(model: str) -> tuple[float, tuple[str, ...]]:
        begun = time.monotonic()
        made = ps.build(
            folder / model, device="cuda:0", shapes="x:1x3x64x64,4x3x64x64,4x3x64x64", budget_seconds=30,
            timing_cache=folder / "choices.json",
        )  # fmt: skip
        assert time.monotonic() - begun < 1.1 * 30
        return time.monotonic() - begun, made.evidence["notes"]

    seconds("m.onnx")
    _, notes = seconds("m.onnx")
    assert "choices of 2 of 2 buckets came from the timing cache" in notes
