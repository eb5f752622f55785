"""What is remembered of the batches that a backend ran, and for how long the backend lives."""

from pathlib import Path

import numpy as np

from penstock.backends.observed import Batches, ObservedBackend
from penstock.backends.runtime import RuntimeBackend
from penstock.engine import load
from tests import onnx_models


def rows(count: int, value: float = 1.0) -> dict[str, np.ndarray]:
    return {"x": np.full((count, 4), value, np.float32)}


def test_the_sizes_seen_give_a_range_and_what_is_usual() -> None:
    batches = Batches()
    assert batches.ranges() == {}
    for count in (3, 2, 2, 8):
        batches.saw(rows(count))
    batches.saw({"x": np.ones((4, 1), np.float32)})
    assert batches.ranges() == {"x": ((2, 1), (2, 4), (8, 4))}
    assert batches.total == 5


def test_a_batch_of_each_of_a_few_shapes_is_kept_most_frequent_first() -> None:
    batches = Batches()
    inputs = rows(1, 7.0)
    for _ in range(3):
        batches.saw(inputs)
    batches.saw(rows(2))
    inputs["x"][:] = 0  # what comes later in the same memory is another batch
    for count in range(3, 600):
        batches.saw(rows(count))
    kept = batches.kept()
    assert [len(batch.inputs["x"]) for batch in kept] == [1, 2, 3, 4]
    assert [batch.count for batch in kept] == [3, 1, 1, 1]
    assert kept[0].inputs["x"][0, 0] == 7.0


def test_large_batches_and_strings_are_counted_and_not_kept() -> None:
    batches = Batches()
    batches.saw({"x": np.zeros((1, 10 << 20), np.float32)})
    batches.saw({"x": np.array([[b"text"]], object)})
    assert (batches.total, batches.kept()) == (2, [])


def test_nothing_is_kept_once_nobody_asks() -> None:
    batches = Batches()
    batches.saw(rows(1))
    batches.stop()
    batches.saw(rows(2))
    assert (batches.total, batches.kept()) == (1, [])


def test_the_backend_lives_until_its_last_owner_is_gone(tmp_path: Path) -> None:
    backend = ObservedBackend(RuntimeBackend(load(onnx_models.scale(tmp_path / "scale.onnx", 3))))
    assert backend.hold()
    instance = backend.instance(0, 1, None)
    backend.close()
    assert instance.execute(rows(2))["y"][0, 0] == 3.0
    assert backend.unseen().execute(rows(5))["y"].shape == (5, 4)
    assert backend.batches.total == 1
    backend.close()
    assert not backend.hold()
    assert backend.batches.kept() == []
