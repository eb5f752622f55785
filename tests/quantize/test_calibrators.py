"""Thresholds against answers worked out by hand, and against the definitions followed step by step."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from penstock.errors import InvalidArgument
from penstock.quantize.calibrators import METHODS, Histogram, calibrator, kl, minmax, mse, percentile, resolved


def histogram(values: NDArray[np.float64], bins: int = 2048) -> Histogram:
    magnitude = np.abs(values[values != 0])
    limit = float(magnitude.max())
    counts = np.histogram(magnitude, bins, (0, limit))[0].astype(np.int64)
    return Histogram(counts, limit, int((values == 0).sum()), limit)


def kl_step_by_step(counts: NDArray[np.int64], levels: int) -> list[float]:
    """The divergence for every number of kept bins, P and Q built as the definition says."""
    found = []
    for kept in range(levels, len(counts) + 1):
        p = counts[:kept].astype(float)
        p[-1] += counts[kept:].sum()
        q = np.zeros(kept)
        for level in range(levels):
            first, end = level * kept // levels, (level + 1) * kept // levels
            filled = counts[first:end] > 0
            if filled.any():
                q[first:end][filled] = counts[first:end].sum() / filled.sum()
        if not q.any():
            found.append(math.inf)
            continue
        p, q = p / p.sum(), q / q.sum()
        if p[-1] > 0 and q[-1] == 0:
            q *= 1 - 1e-4
            q[-1] = 1e-4
        there = p > 0
        found.append(float((p[there] * np.log(p[there] / q[there])).sum()))
    return found


def test_kl_finds_the_optimum_worked_out_by_hand() -> None:
    # Two levels, four bins of width 0.5 with counts 4 2 1 1.
    # 2 kept: P = 1/2 1/2,         Q = 2/3 1/3          KL = 1/2 ln(9/8)                = 0.0589
    # 3 kept: P = 1/2 1/4 1/4,     Q = 4/7 3/14 3/14    KL = 1/2 ln(49/48)              = 0.0103
    # 4 kept: P = 1/2 1/4 1/8 1/8, Q = 3/8 3/8 1/8 1/8  KL = 1/2 ln(4/3) + 1/4 ln(2/3)  = 0.0425
    found = kl(Histogram(np.array([4, 2, 1, 1]), 2.0), levels=2)
    assert found.value == 1.5
    assert found.score == pytest.approx(0.5 * math.log(49 / 48), abs=1e-12)
    assert found.candidates == 3


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 20), min_size=9, max_size=60).filter(any), st.integers(2, 8))
def test_kl_by_cumulative_sums_is_kl_step_by_step(counts: list[int], levels: int) -> None:
    given_counts = np.array(counts)
    expected = kl_step_by_step(given_counts, levels)
    found = kl(Histogram(given_counts, float(len(counts)), maximum=float(len(counts))), levels)
    assert found.score == pytest.approx(max(0.0, min(expected)), abs=1e-9)
    # Equal minima differ by rounding only: the one that was chosen must be one of them.
    assert expected[round(found.value) - levels] == pytest.approx(min(expected), abs=1e-9)
    assert found.candidates == len(counts) - levels + 1


def test_kl_clips_outliers_that_minmax_keeps() -> None:
    values = np.concatenate([np.random.default_rng(1).laplace(size=200_000), [60.0, -75.0]])
    seen = histogram(values)
    assert minmax(seen).value == 75.0
    found = kl(seen)
    assert 3 < found.value < 15
    assert found.candidates == 2048 - 128 + 1


def test_kl_keeps_almost_all_of_a_uniform_distribution() -> None:
    found = kl(histogram(np.random.default_rng(2).uniform(-3, 3, 500_000)))
    assert found.value > 0.97 * 3


def test_exact_zeros_do_not_move_the_kl_threshold() -> None:
    values = np.abs(np.random.default_rng(3).normal(size=100_000))
    assert kl(histogram(np.concatenate([values, np.zeros(900_000)]))) == kl(histogram(values))


def test_a_thin_histogram_is_made_coarser_and_counts_the_same() -> None:
    thin = Histogram(np.arange(2048), 8.0, zeros=3, maximum=7.5)
    assert resolved(thin) is not thin
    np.testing.assert_array_equal(resolved(thin).counts, thin.counts)  # 1,023 values in a bin are enough
    few = Histogram(np.ones(2048, np.int64), 8.0, zeros=3, maximum=7.5)
    coarse = resolved(few)
    np.testing.assert_array_equal(coarse.counts, np.full(256, 8))
    assert (coarse.limit, coarse.zeros, coarse.maximum) == (few.limit, few.zeros, few.maximum)
    assert len(resolved(few, levels=256).counts) == 512


def test_most_of_a_thin_histograms_divergence_is_its_own_noise() -> None:
    few = histogram(np.random.default_rng(6).normal(size=3000))
    assert kl(few).score > 5 * kl(resolved(few)).score


def test_percentile_counts_zeros_and_interpolates_within_a_bin() -> None:
    # 50 zeros, 40 values in [0, 1), 10 in [1, 2): 95 % lie below the middle of the second bin.
    seen = Histogram(np.array([40, 10, 0, 0]), 4.0, zeros=50, maximum=1.9)
    assert percentile(seen, kept=0.95).value == pytest.approx(1.5)


def test_percentile_never_passes_the_largest_value() -> None:
    seen = Histogram(np.array([40, 10, 0, 0]), 4.0, maximum=1.2)
    assert percentile(seen).value == 1.2


def _error(values: NDArray[np.float64], threshold: float, levels: int) -> float:
    step = threshold / (levels - 1)
    rounded = np.clip(np.rint(values / step), -(levels - 1), levels - 1) * step
    return float(np.mean((values - rounded) ** 2))


@pytest.mark.parametrize("levels", [128, 256])
def test_mse_beats_every_other_method_at_squared_error(levels: int) -> None:
    values = np.random.default_rng(4).standard_t(4, 300_000)
    seen = histogram(values)
    best = _error(values, mse(seen, levels).value, levels)
    for method in METHODS.values():
        assert best <= _error(values, method(seen, levels).value, levels) * 1.01
    assert best < 0.8 * _error(values, minmax(seen, levels).value, levels)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_the_threshold_zero(method: str) -> None:
    found = METHODS[method](Histogram(np.zeros(2048, np.int64), 1.0, zeros=10, maximum=0.0))
    assert found.value == 0.0
    assert found.candidates >= 1


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_one_value_keeps_it(method: str) -> None:
    found = METHODS[method](histogram(np.full(100, -2.5)))
    assert found.value == pytest.approx(2.5, rel=1e-3)


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match=r"'entropy'.*mse, minmax, percentile, kl"):
        calibrator("entropy")
