"""`import penstock` is fast, and stays so: frameworks are imported where they are needed, the server with `Server`."""

import os
import statistics
import subprocess
import sys

import pytest

LIMIT_SECONDS = 0.15
# Runners of continuous integration share their cores with others; a framework that slips in costs more than this.
BUSY_MACHINE = 3
TIMED = "import time; start = time.perf_counter(); import penstock; print(time.perf_counter() - start)"
# Nothing that computes, compiles, parses configurations or draws tables.
HEAVY = (
    *("torch", "tensorflow", "jax", "openvino", "onnxruntime", "onnx", "onnx_ir", "ray", "pandas", "scipy", "PIL"),
    *("google.protobuf", "grpc", "pydantic", "typer", "rich", "ml_dtypes", "asyncio", "multiprocessing"),
    *("penstock._core", "penstock.serve", "penstock.engine", "penstock.repository", "penstock.cli"),
)


def python(code: str) -> str:
    """In a fresh interpreter, away from this one's imports and settings."""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return ended.stdout


@pytest.mark.slow
def test_importing_is_fast() -> None:
    """The median of seven processes, after one that warms the caches of files and bytecode."""
    python(TIMED)
    seconds = statistics.median(float(python(TIMED)) for _ in range(7))
    limit = LIMIT_SECONDS * (BUSY_MACHINE if os.environ.get("CI") else 1)
    assert seconds < limit, f"import penstock takes {seconds * 1000:.0f} ms"


def test_importing_imports_nothing_heavy() -> None:
    loaded = python(f"import sys, penstock; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("name", ["Server", "load", "model", "F32", "DynamicBatching", "PenstockError"])
def test_what_is_imported_late_is_there_all_the_same(name: str) -> None:
    assert python(f"import penstock; print(penstock.{name} is penstock.{name})").strip() == "True"
    assert python(f"from penstock import {name}; print({name!r} in dir(__import__('penstock')))").strip() == "True"
