"""The guide to serving is true: its flags and defaults, its metrics, and its client's answer."""

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import typer.main

import penstock as ps
from penstock.cli import app

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


def test_the_client_prints_what_the_guide_prints(server: ps.Server) -> None:
    found = re.search(r"```python\n(import [^`]*tritonclient[^`]*?)```\n+```\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None
    code, printed = found.groups()
    assert code.count("localhost:8001") == 1
    code = code.replace("localhost:8001", f"127.0.0.1:{server.grpc_port}")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == printed
