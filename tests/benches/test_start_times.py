"""The time to ready ends at the server's own line; a server that never says it has no time, but a reason."""

from pathlib import Path

import pytest

from harness import startup
from harness.lab import Lab

READY = "penstock: http on 127.0.0.1:1\npenstock: ready"


def use_program(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    program = folder / "penstock"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    model = folder / "model.onnx"
    model.touch()
    monkeypatch.setattr(startup, "PENSTOCK", program)
    monkeypatch.setattr(Lab, "onnx", lambda _lab: model)


def test_each_counted_run_ends_at_the_ready_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # It would go on for a minute: being ready ends the run, not being done.
    use_program(monkeypatch, tmp_path, f"echo '{READY}' >&2; exec sleep 60")
    measured = startup.time_to_ready(Lab(tmp_path))
    assert measured.reason is None
    assert len(measured.milliseconds) == startup.READY_RUNS
    assert measured.median is not None
    assert 0 < measured.median < 10_000


@pytest.mark.parametrize("script", ["echo 'no such model' >&2; exit 1", "echo 'no such model' >&2"])
def test_a_server_that_ends_before_it_is_ready_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str
) -> None:
    use_program(monkeypatch, tmp_path, script)
    measured = startup.time_to_ready(Lab(tmp_path))
    assert measured.median is None
    assert "no such model" in str(measured.reason)


def test_a_missing_environment_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(startup, "PENSTOCK", tmp_path / "absent")
    assert "make setup" in str(startup.time_to_ready(Lab(tmp_path)).reason)
