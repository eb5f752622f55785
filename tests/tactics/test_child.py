"""A child process: whatever a library does in it, the builder gets an answer or a reason, and nothing is left."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from penstock.engine.plan import Tactic
from penstock.tactics import CandidateLost, Child, Limits
from tests.tactics.helpers import PATIENCE, PYTHONPATH, ended, fault

X = {"x": np.ones((2, 4), np.float32)}

# What is waited for when a process hangs on purpose: it has started long before.
SHORT = 0.5

REASONS = [
    ("crash", "crashed while {} (segmentation fault)"),
    ("fail", "failed while {}: RuntimeError: no kernel for Frobnicate at"),
    ("leave", "ended by itself while {} (exit code 3): out of licences"),
    ("forge", "answered nonsense while {}: "),
]
HANGS = ("hang", "spin", "stop")


def _start(tactic: Tactic, limits: Limits, path: Path) -> Child:
    """Compiled, and its inputs loaded."""
    child = Child(tactic, limits)
    child.compile(path)
    child.load(0, X)
    return child


@pytest.mark.parametrize(("name", "reason"), REASONS, ids=[name for name, _ in REASONS])
def test_a_failing_compilation_is_a_reason(name: str, reason: str, faulty: Limits, network: Path) -> None:
    child = Child(fault(name), faulty)
    with pytest.raises(CandidateLost) as raised:
        child.compile(network)
    lost = raised.value.lost
    assert lost.tactic == fault(name)
    assert lost.reason.startswith(reason.format("compiling"))
    assert not raised.value.out_of_time
    assert child.closed
    assert ended(child.process_id)


@pytest.mark.parametrize(("name", "reason"), REASONS, ids=[name for name, _ in REASONS])
def test_a_failing_call_is_a_reason(name: str, reason: str, faulty: Limits, network: Path) -> None:
    child = _start(fault(name, "call", calls=3), faulty, network)
    assert len(child.time(0, calls=3, seconds=PATIENCE).nanoseconds) == 3
    with pytest.raises(CandidateLost) as raised:
        child.run(X)
    assert raised.value.lost.reason.startswith(reason.format("running"))
    assert ended(child.process_id)


@pytest.mark.parametrize("name", HANGS)
def test_a_hang_is_stopped_at_the_limit(name: str, faulty: Limits, network: Path) -> None:
    child = _start(fault(name, "call", calls=1), faulty, network)
    child.time(0, calls=1, seconds=0)
    with pytest.raises(CandidateLost, match=r"took more than 0\.5 s running and was stopped") as raised:
        child.time(0, calls=1, seconds=0, limit=SHORT)
    assert raised.value.out_of_time
    assert ended(child.process_id)


@pytest.mark.parametrize("name", HANGS)
def test_a_compilation_that_hangs_is_stopped_at_the_limit(name: str, faulty: Limits, network: Path) -> None:
    child = Child(fault(name), faulty)
    with pytest.raises(CandidateLost, match="compiling and was stopped") as raised:
        child.compile(network, seconds=1.0)
    assert raised.value.out_of_time
    assert ended(child.process_id)


@pytest.mark.parametrize("when", ["compile", "call"])
def test_memory_beyond_the_limit_ends_it(when: str, faulty: Limits, network: Path) -> None:
    limit = 400 * 2**20
    child = Child(fault("devour", when), replace(faulty, memory_bytes=limit))
    if when == "call":
        child.compile(network)
    with pytest.raises(CandidateLost, match=r"took \d+ MiB of memory .* more than the 400 MiB allowed"):
        child.compile(network) if when == "compile" else child.run(X)
    assert ended(child.process_id)


def test_messages_hold_no_paths_of_this_machine(faulty: Limits, network: Path) -> None:
    for tactic in (fault("fail"), Tactic("onnxruntime", "fp32"), Tactic("openvino", "fp32"), Tactic("unheard", "fp32")):
        with pytest.raises(CandidateLost) as raised, Child(tactic, faulty) as child:
            child.compile(network if tactic.runtime == "fail" else network.parent / "not-there.onnx")
        assert str(network.parent) not in raised.value.message
        assert "/opt/build" not in raised.value.message


def test_what_a_library_prints_disturbs_nothing(faulty: Limits, network: Path) -> None:
    with _start(fault("babble", "call"), faulty, network) as child:
        for _ in range(3):
            np.testing.assert_array_equal(child.run(X)["x"], X["x"])


def test_processes_that_a_library_started_end_with_it(
    faulty: Limits, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "process"
    monkeypatch.setenv("PENSTOCK_TEST_FILE", str(note))
    child = _start(fault("breed"), faulty, network)
    child.close()
    assert ended(child.process_id)
    assert ended(int(note.read_text()))


def test_a_closed_child_says_so(faulty: Limits, network: Path) -> None:
    child = _start(Tactic("sleeps", "fp32"), faulty, network)
    child.close()
    child.close()
    assert child.resident_bytes == 0
    with pytest.raises(CandidateLost, match="after its process had ended"):
        child.run(X)


@pytest.mark.parametrize("state", ["sleeps", "spin", "stop"])
def test_a_child_does_not_outlive_its_builder(state: str, network: Path, tmp_path: Path) -> None:
    """Not even one that takes no signals from Python and reads no pipe."""
    script = tmp_path / "builder.py"
    script.write_text(
        "import sys, signal\n"
        "from pathlib import Path\n"
        "from penstock.tactics import Child, Limits\n"
        "from tests.tactics.helpers import FAULTY, fault\n"
        f"child = Child(fault({state!r}, 'call'), Limits(worker=FAULTY))\n"
        f"child.compile(Path({str(network)!r}))\n"
        "child.load(0, {})\n"
        "print(child.process_id, flush=True)\n"
        f"child.time(0, calls=1, seconds=0) if {state!r} != 'sleeps' else signal.pause()\n"
    )
    command = [sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as builder:
        assert builder.stdout is not None
        child = int(builder.stdout.readline())
        assert not ended(child, seconds=0)
        builder.send_signal(signal.SIGKILL)
    assert ended(child)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_idle_child_takes_no_processor_time(runtime: str, network: Path) -> None:
    with Child(Tactic(runtime, "fp32"), Limits()) as child:
        child.compile(network)
        child.load(0, {"x": np.ones((1, 3, 64, 64), np.float32)})
        child.time(0, calls=50, seconds=PATIENCE)
        time.sleep(0.2)  # threads that have just worked look for more for a moment
        before = _processor_seconds(child.process_id)
        time.sleep(1.0)  # the thing that is measured: a second of idleness
        assert _processor_seconds(child.process_id) - before < 0.1


def _processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_large_tensors_go_both_ways(faulty: Limits, network: Path) -> None:
    big = np.random.default_rng(1).integers(0, 2**31, 8_000_000).astype(np.int64)  # 64 MB, a thousand pipes full
    with _start(Tactic("sleeps", "fp32"), faulty, network) as child:
        np.testing.assert_array_equal(child.run({"big": big})["big"], big)


def test_times_are_those_of_the_calls(faulty: Limits, network: Path) -> None:
    with _start(Tactic("sleeps", "fp32", options=(("ms", "5"),)), faulty, network) as child:
        timed = child.time(0, calls=4, seconds=PATIENCE, warm=2)
        assert len(timed.nanoseconds) == 4
        assert min(timed.nanoseconds) >= 5_000_000
        assert len(child.time(0, calls=1000, seconds=0.02).nanoseconds) <= 5
        assert len(child.time(0, calls=10, seconds=0).nanoseconds) == 1


def test_memory_that_compilation_took_is_seen(network: Path, recogniser: Path) -> None:
    sizes = []
    for path in (network, recogniser):
        with Child(Tactic("onnxruntime", "fp32"), Limits()) as child:
            sizes.append(child.compile(path).bytes)
    assert sizes[1] > sizes[0] + recogniser.stat().st_size / 2


def test_models_are_told_apart_by_whether_their_shapes_are_fixed(tmp_path: Path, network: Path) -> None:
    from tests import onnx_models

    fixed = onnx_models.double(tmp_path / "fixed.onnx", shape=(2, 4))
    for path, expected in ((fixed, True), (network, False)):
        with Child(Tactic("openvino", "fp32"), Limits()) as child:
            assert child.compile(path).fixed is expected


def test_a_process_holds_several_programs_and_runs_the_one_that_is_asked(faulty: Limits, network: Path) -> None:
    with Child(Tactic("sleeps", "fp32", options=(("ms", "1"),)), faulty) as child:
        for number in (0, 2):
            child.compile(network, program=number)
        child.load(7, X, 2)
        assert len(child.time(7, calls=2, seconds=1).nanoseconds) == 2
        np.testing.assert_array_equal(child.run(X, 2)["x"], X["x"])
        with pytest.raises(CandidateLost, match="nothing is compiled yet"):
            child.run(X, 1)
