"""How many cores this process may really use: affinity and container limits counted, not what the machine has.

Runtimes divide these among their instances. Called when a model is loaded, never per request.
"""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available() -> int:
    """Usable cores, at least 1: the affinity mask, cut by the CPU quota of every cgroup above this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(_CGROUP, _own_groups())
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def per_instance(instances: int, threads: int | None) -> int:
    """Threads for each of `instances` that run at once: as told, or an equal share of the cores, at least 1."""
    return threads if threads is not None else max(1, available() // instances)


def cgroup_quota(root: Path, groups: list[str]) -> float | None:
    """Cores the cgroups allow, or None: the tightest of all levels, for version 2 (`cpu.max`) and version 1."""
    found: list[float] = []
    for line in groups:
        _, controllers, group = line.split(":", 2)
        bases = [root] if not controllers else [root / "cpu", root / "cpu,cpuacct"]
        if controllers and "cpu" not in controllers.split(","):
            continue
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for base in bases:
            # Inside a container the mount may start at the group itself, so each level from the root down is tried.
            for depth in range(len(parts) + 1):
                quota = _read(base.joinpath(*parts[:depth]))
                if quota is not None:
                    found.append(quota)
    return min(found, default=None)


def _read(directory: Path) -> float | None:
    try:
        limit, period = (directory / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        return quota / int((directory / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _own_groups() -> list[str]:
    try:
        return Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
