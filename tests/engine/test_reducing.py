"""Reductions in NumPy beside a library call."""

import numpy as np
import pytest

from penstock.engine.plan import Reduction
from penstock.engine.reducing import reduced


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_the_index_and_value_of_the_largest_replace_the_output(axis: int) -> None:
    y = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    other = np.ones(3)
    found = reduced({"y": y, "z": other}, [Reduction("y", axis)])
    assert set(found) == {"y_index", "y_value", "z"}
    assert found["y_index"].dtype == np.int64
    assert found["y_value"].dtype == np.float32
    np.testing.assert_array_equal(found["y_index"], y.argmax(axis))
    np.testing.assert_array_equal(found["y_value"], y.max(axis))
    assert found["z"] is other
    assert not np.shares_memory(found["y_value"], y)


def test_the_first_of_equal_values_counts_and_nan_is_not_hidden() -> None:
    y = np.array([[1, 3, 3], [np.nan, 2, 1]], np.float32)
    found = reduced({"y": y}, [Reduction("y", 1)])
    assert found["y_index"].tolist() == [1, 0]
    assert np.isnan(found["y_value"][1])


def test_a_single_value_is_its_own_largest() -> None:
    """The value must be a copy here, too: squeezing a view would leave it in the library's memory."""
    y = np.ones((1, 1), np.float32)
    value = reduced({"y": y}, [Reduction("y", 1)])["y_value"]
    y[:] = 7
    assert value.tolist() == [1]
