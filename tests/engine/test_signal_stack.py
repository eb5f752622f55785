"""A signal finds its stack after OpenVINO was loaded twice in one process, and either copy went first."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import onnx_models

PROGRAM = """
import ctypes, faulthandler, gc, os, signal, sys
import openvino
import penstock as ps
from penstock.engine.runtimes import openvino as ours
from penstock.engine.runtimes.signal_stack import _current

path, faults, order = sys.argv[1:]
if faults == "traced":
    faulthandler.enable()  # with a stack of its own
libc = ctypes.CDLL(None)
before = _current(libc)
if order == "theirs first":
    theirs = openvino.Core().compile_model(path, "CPU")
    during = _current(libc).memory
    model = ps.load(path, runtime="openvino", threads=1)
    assert _current(libc).memory == during
else:
    model = ps.load(path, runtime="openvino", threads=1)
    assert _current(libc).memory == before.memory
    theirs = openvino.Core().compile_model(path, "CPU")
del theirs
gc.collect()
model.close()
ours._CORE.clear()  # as at the end of the interpreter
del model
gc.collect()
signal.signal(signal.SIGTERM, lambda *_: print("taken"))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("faults", ["traced", "untraced"])
@pytest.mark.parametrize("order", ["theirs first", "ours first"])
def test_a_signal_is_taken_after_the_library_was_unloaded(tmp_path: Path, order: str, faults: str) -> None:
    model = onnx_models.double(tmp_path / "m.onnx")
    command = [sys.executable, "-c", PROGRAM, str(model), faults, order]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (0, "taken\n"), ended.stderr
