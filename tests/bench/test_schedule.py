"""When requests are due: rates that are kept, gaps of the distribution asked for, and files of others' arrivals."""

from pathlib import Path

import numpy as np
import pytest

from penstock.bench import schedule
from penstock.errors import InvalidArgument, NotFound


@pytest.mark.parametrize("distribution", schedule.DISTRIBUTIONS)
@pytest.mark.parametrize("rate", [0.5, 20.0, 3333.3])
def test_as_many_requests_are_due_as_the_rate_says(distribution: str, rate: float) -> None:
    offsets = schedule.by_rate(rate, distribution, 10.0, seed=3)
    assert len(offsets) == round(10 * rate)
    assert offsets[-1] == pytest.approx(1e9 * len(offsets) / rate, rel=1e-6)
    assert np.all(np.diff(offsets.astype(np.int64)) >= 0)


def test_gaps_are_exponential_or_alike() -> None:
    poisson = np.diff(schedule.by_rate(1000.0, schedule.POISSON, 60.0, seed=1).astype(np.float64))
    constant = np.diff(schedule.by_rate(1000.0, schedule.CONSTANT, 60.0, seed=1).astype(np.float64))
    assert poisson.std() / poisson.mean() == pytest.approx(1.0, abs=0.03)
    assert np.mean(poisson > poisson.mean()) == pytest.approx(np.exp(-1), abs=0.01)
    assert constant.std() / constant.mean() < 1e-3


def test_a_seed_is_one_schedule() -> None:
    one, same, other = (schedule.by_rate(100.0, schedule.POISSON, 5.0, seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_intervals_and_moments_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "gaps").write_text("1000\n500\n1500\n")
    (tmp_path / "moments").write_text("100.0\n100.25\n101\n")
    assert schedule.from_file(tmp_path / "gaps").tolist() == [1_000_000, 1_500_000, 3_000_000]
    assert schedule.from_trace(tmp_path / "moments").tolist() == [1, 250_000_000, 1_000_000_000]


@pytest.mark.parametrize("text", ["", "a\n", "-1\n2\n", "0\n0\n", "nan\n", "inf\n"])
def test_files_that_are_no_intervals_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "gaps").write_text(text)
    with pytest.raises(InvalidArgument, match="gaps: expected"):
        schedule.from_file(tmp_path / "gaps")


@pytest.mark.parametrize("text", ["", "1\n", "2\n1\n", "1\nnan\n", "1\n1\n", "x\n"])
def test_files_that_are_no_trace_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(text)
    with pytest.raises(InvalidArgument, match="trace: expected"):
        schedule.from_trace(tmp_path / "trace")


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file of intervals"):
        schedule.from_file(tmp_path / "absent")


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), 1e8])
def test_rates_that_cant_be_meant_are_refused(rate: float) -> None:
    with pytest.raises(InvalidArgument, match="request rate"):
        schedule.by_rate(rate, schedule.POISSON, 1.0, seed=0)


def test_a_distribution_nobody_knows_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="expected poisson or constant"):
        schedule.by_rate(1.0, "gamma", 1.0, seed=0)
