"""The guide to serving is true: its flags and defaults, its metrics, and its client's answer."""

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import typer.main

import penstock as ps
from penstock.cli import app
from tests.serve.calls import infer, serving

GUIDE = (Path(__file__).resolve().parents[2] / "docs/serving.md").read_text(encoding="utf-8")


@ps.model(name="double", inputs={"x": ps.F32[4]}, outputs={"y": ps.F32[4]})
def double(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return x * 2


@pytest.fixture
def server() -> Iterator[ps.Server]:
    server = ps.Server(http_port=None, grpc_port=0, metrics_port=0)
    server.add(double)
    with server:
        yield server


def test_the_table_of_flags_is_that_of_the_command_line() -> None:
    flags = {
        tuple(option.opts): "" if option.default is None or option.default is False else str(option.default)
        for option in typer.main.get_group(app).commands["serve"].params
        if option.opts[0].startswith("--")
    }
    rows = re.findall(r"^\| (`--[^|]*) \| ([^|]*?) ?\|", GUIDE, re.MULTILINE)
    assert {tuple(re.findall(r"`(--[\w-]+)`", names)): default for names, default in rows} == flags


def test_the_table_of_metrics_is_that_of_the_page(server: ps.Server) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as page:
        served = set(re.findall(r"^# TYPE (\w+) ", page.read().decode(), re.MULTILINE))
    assert set(re.findall(r"`((?:nv|penstock)_\w+)`", GUIDE)) == served


def test_the_pipeline_of_the_guide_reads_pictures() -> None:
    """Its code as it stands, up to the server, with a detector and a recogniser of this test."""
    found = re.search(r"```python\n([^`]*@ps\.pipeline[^`]*?)server = ", GUIDE)
    assert found is not None

    @ps.model(name="detector")
    def detector(image: ps.U8[-1, -1, 3]) -> ps.I64[-1, 4]:
        return np.tile(np.array([[0, 0, 2, 2], [1, 1, 4, 3]]), (len(image), 1, 1))

    @ps.model(name="recogniser")
    def recogniser(crop: ps.U8[-1, -1, 3]) -> ps.Bytes:
        return np.array([f"{each.shape[0]}x{each.shape[1]}".encode() for each in crop], dtype=object)

    place: dict[str, Any] = {}
    exec(compile(found[1], "docs/serving.md", "exec"), place)
    image = np.zeros((4, 4, 3), np.uint8)
    with serving(detector, recogniser, place["read"]) as server:
        assert infer(server, "read", image=image).arrays["output"].tolist() == [b"2x2", b"3x2"]


def test_the_client_prints_what_the_guide_prints(server: ps.Server) -> None:
    found = re.search(r"```python\n(import [^`]*tritonclient[^`]*?)```\n+```\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None
    code, printed = found.groups()
    assert code.count("localhost:8001") == 1
    code = code.replace("localhost:8001", f"127.0.0.1:{server.grpc_port}")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == printed
