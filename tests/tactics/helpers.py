"""Tactics that misbehave, and the end of a process as an event."""

import os
import select
from pathlib import Path

from penstock.engine.plan import Tactic

ROOT = Path(__file__).parents[2]
FAULTY = "tests.tactics.faulty_worker"

# The worker of the tests is found below the checkout; what was on the path stays on it.
PYTHONPATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

# What a test waits before it calls something a hang: far more than a loaded machine takes.
PATIENCE = 60.0


def fault(name: str, when: str = "compile", calls: int = 0) -> Tactic:
    """A tactic that does this at compilation, or after so many calls."""
    return Tactic(name, "fp32", options=(("calls", str(calls)), ("when", when)))


def sleeps(milliseconds: float, *, shapes: str = "dynamic", form: str = "source") -> Tactic:
    """A tactic whose calls take this long."""
    return Tactic(
        "sleeps", "fp32", form, "static" if shapes == "static" else "dynamic", options=(("ms", str(milliseconds)),)
    )


def ended(process: int, seconds: float = PATIENCE) -> bool:
    """Whether a process, not necessarily a child, ends within this time."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(handle)
