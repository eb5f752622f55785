"""Usable cores: affinity, quotas of both cgroup versions, and their division among instances."""

import os
from pathlib import Path

import pytest

from penstock.engine import cores


def test_cores_are_at_least_one_and_at_most_the_affinity_mask() -> None:
    assert 1 <= cores.available() <= len(os.sched_getaffinity(0))


def test_a_narrower_affinity_mask_is_followed() -> None:
    mask = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mask)})
        assert cores.available() == 1
    finally:
        os.sched_setaffinity(0, mask)


@pytest.mark.parametrize(
    ("files", "groups", "expected"),
    [
        ({"a/cpu.max": "150000 100000\n"}, ["0::/a"], 1.5),
        ({"a/cpu.max": "max 100000\n", "a/b/cpu.max": "400000 100000\n"}, ["0::/a/b"], 4.0),
        ({"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "400000 100000\n"}, ["0::/a/b"], 2.0),
        ({"cpu.max": "50000 100000\n"}, ["0::/"], 0.5),
        ({"a/cpu.max": "max 100000\n"}, ["0::/a"], None),
        ({"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, ["3:cpu,cpuacct:/a"], 3.0),
        ({"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, ["3:cpu:/a"], None),
        ({"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"}, ["3:memory:/a"], None),
        ({"cpu.max": "nonsense\n"}, ["0::/"], None),
        ({}, [], None),
    ],
)
def test_the_tightest_quota_counts(
    files: dict[str, str], groups: list[str], expected: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.cgroup_quota(tmp_path, groups) == expected


def test_instances_share_the_cores_unless_told_otherwise() -> None:
    assert cores.per_instance(1, None) == cores.available()
    assert cores.per_instance(10_000, None) == 1
    assert cores.per_instance(2, 7) == 7
