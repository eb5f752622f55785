"""Servers of one service as child processes, one or several copies, and what they take of the machine.

Promises: a server ends when this process does; CPU time, context switches and memory are the kernel's own accounts of
the servers' processes alone, the client's not included. Every server is a module that prints {"http_port": ...} once it
answers and ends with its standard input. Called by `replicas`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benches.harness.processes import TICKS_PER_SECOND, parse_stat
from examples import children
from examples.children import CHECKOUT


@dataclass(frozen=True, slots=True)
class Copy:
    port: int
    process: int


@dataclass(frozen=True, slots=True)
class Taken:
    """Of all copies together, since they began."""

    cpu_seconds: float
    voluntary: int
    """Context switches of threads that waited for something."""

    involuntary: int
    """Of threads that could have gone on: somebody else wanted the core."""

    def since(self, before: "Taken") -> "Taken":
        return Taken(
            self.cpu_seconds - before.cpu_seconds,
            self.voluntary - before.voluntary,
            self.involuntary - before.involuntary,
        )


@contextmanager
def serving(command: Sequence[str], copies: int, env: Mapping[str, str] | None = None) -> Iterator[list[Copy]]:
    """So many processes of it, which start side by side. Raises RuntimeError for one that ends before it answers."""
    with ExitStack() as stack:
        started = [stack.enter_context(child(command, env or {})) for _ in range(copies)]
        yield [Copy(_port(each), each.pid) for each in started]


def child(command: Sequence[str], env: Mapping[str, str]) -> AbstractContextManager[subprocess.Popen[str]]:
    """With this checkout's package, whichever the interpreter has installed."""
    paths = os.pathsep.join([str(CHECKOUT / "python"), str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    return children.child(command, {**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep), **env})


def _port(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a server ended with status {process.wait()} before it answered; see above")
    return int(json.loads(line)["http_port"])


# ---- what they take ----


def taken(copies: Sequence[Copy]) -> Taken:
    spent = sum(parse_stat(Path(f"/proc/{each.process}/stat").read_text()).ticks for each in copies)
    switches = [_switches(each.process) for each in copies]
    return Taken(spent / TICKS_PER_SECOND, sum(each[0] for each in switches), sum(each[1] for each in switches))


def _switches(process: int) -> tuple[int, int]:
    """Of all threads: a process's own status counts its first thread alone."""
    voluntary = involuntary = 0
    for task in Path(f"/proc/{process}/task").iterdir():
        try:
            found = parse_switches((task / "status").read_text())
        except OSError:
            continue  # ended between the listing and the reading
        voluntary, involuntary = voluntary + found[0], involuntary + found[1]
    return voluntary, involuntary


def parse_switches(text: str) -> tuple[int, int]:
    """Voluntary and involuntary ones, from /proc/PID/task/TID/status."""
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return int(facts["voluntary_ctxt_switches"]), int(facts["nonvoluntary_ctxt_switches"])


def memory_mb(copies: Sequence[Copy]) -> float:
    """Proportional set size in millions of bytes: a page that n processes share is an nth part of each."""
    return sum(parse_pss_kb(Path(f"/proc/{each.process}/smaps_rollup").read_text()) for each in copies) * 1024 / 1e6


def parse_pss_kb(text: str) -> int:
    (found,) = (int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return found


@dataclass(frozen=True, slots=True)
class GpuUse:
    busy: float
    """Share of the time in which a kernel ran, as the driver says it."""

    memory_mb: float


def gpu_use() -> GpuUse | None:
    """Of the first GPU now; None where there is none."""
    command = ["nvidia-smi", "-i", "0", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        busy, memory = (float(each) for each in said.split(","))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return GpuUse(busy / 100, memory * 2**20 / 1e6)


def module(name: str, *flags: str, python: str = sys.executable) -> list[str]:
    return [python, "-m", name, *flags]
