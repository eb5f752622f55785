"""The machine and the versions that the figures belong to.

It promises facts read from the machine, or "unknown"; no host names. Called by `dataplane.py` for the report's head.
"""

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.lab import REPOSITORY, Lab

FLAGS_OF_INTEREST = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16")


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    flags: tuple[str, ...]
    missing_flags: tuple[str, ...]
    kernel: str
    load_average: tuple[float, float, float]
    versions: tuple[tuple[str, str], ...]


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Model name and flags of the first core."""
    facts: dict[str, str] = {}
    for line in text.split("\n\n", 1)[0].splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    return facts.get("model name", "unknown"), frozenset(facts.get("flags", "").split())


def read_machine(lab: Lab) -> Machine:
    cpu, flags = parse_cpuinfo(Path("/proc/cpuinfo").read_text())
    venvs = lab.folder / "venvs"
    versions = {
        "penstock": _package(REPOSITORY / ".venv", "penstock"),
        "numpy (penstock)": _package(REPOSITORY / ".venv", "numpy"),
        "mosec": _package(venvs / "mosec", "mosec"),
        "numpy (mosec)": _package(venvs / "mosec", "numpy"),
        "nvidia-pytriton": _package(venvs / "triton", "nvidia_pytriton"),
        "numpy (triton)": _package(venvs / "triton", "numpy"),
        "wrk": _first_line(["wrk", "-v"]),
        "h2load": _first_line(["h2load", "--version"]),
        "rustc": _first_line(["rustc", "--version"]),
        "python (harness)": platform.python_version(),
    }
    return Machine(
        cpu=cpu,
        cores=os.cpu_count() or 0,
        flags=tuple(flag for flag in FLAGS_OF_INTEREST if flag in flags),
        missing_flags=tuple(flag for flag in FLAGS_OF_INTEREST if flag not in flags),
        kernel=platform.release(),
        load_average=os.getloadavg(),
        versions=tuple(versions.items()),
    )


def _package(environment: Path, name: str) -> str:
    """A package's version by the name of its metadata folder: the environment's Python need not run for it."""
    found = sorted(environment.glob(f"lib/python3*/site-packages/{name}-*.dist-info"))
    return found[0].name.removeprefix(f"{name}-").removesuffix(".dist-info") if found else "absent"


def _first_line(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "absent"
    # wrk tells its version on an unhappy exit.
    lines = (done.stdout or done.stderr).strip().splitlines()
    if not lines:
        return "unknown"
    return lines[0].split(" [")[0].removeprefix(command[0]).strip()
