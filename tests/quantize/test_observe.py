"""Statistics against NumPy's own on the same activations, and the cache that keeps them."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from penstock.errors import InvalidArgument
from penstock.quantize import Calibration, cached, collect, watched
from penstock.quantize.observe import BINS, Counter, runner
from tests.quantize.networks import Builder, pictures, residual


def test_statistics_agree_with_numpy_on_the_same_activations() -> None:
    model, data = residual(), pictures(4)
    names = watched(model)
    found = collect(model, data, names)
    assert set(found.tensors) == set(names)
    assert found.samples == 4
    with runner(model, names) as run:
        runs = [run(sample) for sample in data]
    for name, seen in found.tensors.items():
        values = np.concatenate([each[name].ravel() for each in runs])
        assert (seen.minimum, seen.maximum) == (values.min(), values.max())
        assert seen.histogram.zeros == (values == 0).sum()
        assert seen.histogram.counts.sum() + seen.histogram.zeros == values.size
        expected = np.histogram(np.abs(values[values != 0]), BINS, (0, seen.histogram.limit))[0]
        # A value at an edge may fall to either side of it.
        assert np.abs(np.cumsum(seen.histogram.counts - expected)).max() <= 2


def test_little_memory_means_more_runs_and_the_same_statistics() -> None:
    model, data = residual(), pictures(2)
    runs: list[int] = []
    small = collect(model, data, watched(model), memory=1, progress=lambda stage, done, total: runs.append(total))
    large = collect(model, data, watched(model))
    assert max(runs) == 2 * len(watched(model))
    for name, seen in large.tensors.items():
        np.testing.assert_array_equal(seen.histogram.counts, small.tensors[name].histogram.counts)


def test_doubling_the_range_gives_the_counts_of_the_wide_range() -> None:
    rng = np.random.default_rng(5)
    parts = [rng.normal(size=5000).astype(np.float32) * scale for scale in (1.0, 3.0, 0.2, 40.0)]
    grown = Counter()
    for part in parts:
        grown.add(part)
    whole = Counter(grown.limit)
    for part in parts:
        whole.add(part)
    assert grown.limit > 8 * float(np.abs(parts[0]).max())
    assert int(np.abs(np.cumsum(grown.counts - whole.counts)).max()) <= 1  # an edge's rounding
    assert grown.counts.sum() == whole.counts.sum() == sum(part.size for part in parts)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_a_counter(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Counter().add(np.array([1.0, bad], np.float32))


def test_tensors_with_infinities_are_skipped_and_named() -> None:
    b = Builder()
    b.weight("mask", np.array([0, -np.inf, 0, 0], np.float32))
    masked = b.node("Add", ["x", "mask"], "masked")
    model = b.model(["n", 4], b.node("Softmax", [masked], "y", axis=-1), ["n", 4])
    found = collect(model, Calibration(({"x": np.ones((1, 4), np.float32)},)), ["x", "masked", "y"])
    assert found.skipped == ("masked",)
    assert set(found.tensors) == {"x", "y"}


def test_only_as_many_samples_as_asked_for_are_run_spread_over_the_data() -> None:
    data = Calibration(tuple({"x": np.full((1, 4), value, np.float32)} for value in range(10)))
    b = Builder()
    model = b.model(["n", 4], b.node("Neg", ["x"], "y"), ["n", 4])
    found = collect(model, data, ["x"], samples=5)
    assert found.samples == 5
    assert (found.tensors["x"].minimum, found.tensors["x"].maximum) == (0, 8)


def test_an_unknown_tensor_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="named nothing"):
        collect(residual(), pictures(1), ["nothing"])


def _counting(seen: list[str], model: ir.Model, data: Calibration, folder: Path) -> object:
    return cached(folder, model, data, ["pool"], progress=lambda stage, done, total: seen.append(stage))


def test_the_cache_answers_for_the_same_model_and_data_only(tmp_path: Path) -> None:
    model, data = residual(), pictures(2)
    seen: list[str] = []
    first = cached(tmp_path, model, data, ["pool"])
    again = cached(tmp_path, model, data, ["pool"], progress=lambda stage, done, total: seen.append(stage))
    assert not seen
    np.testing.assert_array_equal(first.tensors["pool"].histogram.counts, again.tensors["pool"].histogram.counts)
    assert first.tensors["pool"].histogram.largest == again.tensors["pool"].histogram.largest
    _counting(seen, model, pictures(2, seed=1), tmp_path)
    assert seen
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_a_damaged_cache_file_is_made_again(tmp_path: Path) -> None:
    model, data = residual(), pictures(1)
    cached(tmp_path, model, data, ["pool"])
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:200])
    seen: list[str] = []
    _counting(seen, model, data, tmp_path)
    assert seen
    seen.clear()
    _counting(seen, model, data, tmp_path)
    assert not seen
