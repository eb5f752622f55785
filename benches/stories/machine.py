"""The machine that a story was measured on, as it says itself: no host names, "unknown" where it says nothing."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

_FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
_PACKAGES: Final = ("penstock", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "plotly")


def machine() -> Mapping[str, object]:
    """JSON-able: processor, cores that this process may use, flags that matter, memory, GPUs, load, versions."""
    cpu, flags = cpu_and_flags()
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "flags": [each for each in _FLAGS if each in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": list(gpus()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": [round(each, 2) for each in os.getloadavg()],
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def described(facts: Mapping[str, object]) -> str:
    """One line."""
    listed = facts["gpus"]
    parts = [f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB"]
    parts += [str(each) for each in listed] if isinstance(listed, list) else []
    return "; ".join(parts)


def has_amx() -> bool:
    """Whether the processor multiplies tiles of bytes or of BF16, which changes what an engine can win."""
    return "amx_tile" in cpu_and_flags()[1]


def cpu_and_flags() -> tuple[str, frozenset[str]]:
    """Of the first core."""
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return "unknown", frozenset()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    return facts.get("model name", "unknown"), frozenset(facts.get("flags", "").split())


def gpus() -> tuple[str, ...]:
    """Their names; none where nvidia-smi does not answer."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(filter(None, map(str.strip, said.splitlines())))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
