"""The models that scripts make: the right size, the same bytes, and answers that depend on the input."""

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benches import inputs
from benches.models import pictures, zoo
from benches.models.cost import cost_of
from benches.models.pictures import Side


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def answers(path: Path, arrays: inputs.Arrays) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, arrays)[0]
    return found


# Parameters of the published networks: torchvision's, CLIP's visual tower; CRNN by hand from its paper's table.
@pytest.mark.parametrize(
    ("name", "parameters", "giga", "shape", "seconds_or_less"),
    [
        ("mobilenetv2", 3_504_872, 0.30, (1000,), True),
        ("crnn", 5_569_061, 0.63, (26, 37), True),
        ("crnn_bilstm", 8_330_021, 0.71, (26, 37), True),
        pytest.param("resnet34", 21_797_672, 3.66, (1000,), False, marks=pytest.mark.slow),
        pytest.param("resnet50", 25_557_032, 4.09, (1000,), False, marks=pytest.mark.slow),
        pytest.param("vit_b32", 87_849_216, 4.41, (512,), False, marks=pytest.mark.slow),
        pytest.param("yolo", 7_225_885, 8.22, (25200, 85), False, marks=pytest.mark.slow),
    ],
)
def test_a_model_has_its_architectures_size_and_tells_inputs_apart(
    folder: Path, name: str, parameters: int, giga: float, shape: tuple[int, ...], seconds_or_less: bool
) -> None:
    path = zoo.make(name, folder)
    cost = cost_of(path)
    assert cost.parameters == parameters
    assert cost.multiplications / 1e9 == pytest.approx(giga, rel=0.01)
    samples = 3 if not seconds_or_less else 8
    found = answers(path, inputs.held_out(name, samples))
    assert found.shape == (samples, *shape)
    assert np.isfinite(found).all()
    rows = found.reshape(samples, -1).astype(np.float64)
    rows -= rows.mean(axis=0)
    assert np.linalg.norm(rows, axis=1).min() > 0.05 * np.linalg.norm(found[0])
    alone = answers(path, {key: array[:1] for key, array in inputs.held_out(name, samples).items()})
    assert np.allclose(alone[0], found[0], rtol=1e-3, atol=1e-3 * np.abs(found).max())


def test_the_same_maker_gives_the_same_bytes_and_makes_them_once(tmp_path: Path) -> None:
    first, second = (zoo.make("mobilenetv2", tmp_path / part) for part in ("first", "second"))
    assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()
    written = first.stat().st_mtime_ns
    assert zoo.make("mobilenetv2", tmp_path / "first").stat().st_mtime_ns == written


def test_a_model_of_other_makers_is_made_again(tmp_path: Path) -> None:
    path = zoo.make("crnn", tmp_path)
    path.with_name("crnn.made-by.txt").write_text("others\n")
    path.write_bytes(b"old")
    assert zoo.make("crnn", tmp_path).stat().st_size > 1_000_000


def test_an_unknown_model_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown model 'resnet18', expected one of resnet34"):
        zoo.make("resnet18", tmp_path)


# MiniLM's tokens lie beside its export, which not every checkout has.
@pytest.mark.parametrize("name", [name for name in inputs.ALL if name != "minilm"])
def test_calibration_and_held_out_inputs_are_different_and_repeatable(name: str) -> None:
    make = inputs.ALL[name].make
    count = 2
    seen, again, held = make(Side.CALIBRATION, count), make(Side.CALIBRATION, count), make(Side.HELD_OUT, count)
    for key, array in seen.items():
        assert np.array_equal(array, again[key])
        assert array.shape == held[key].shape
        assert not any(np.array_equal(row, other) for row in array for other in held[key])
    assert callable(getattr(inputs, name))


def test_the_sides_of_a_photograph_share_no_column(monkeypatch: pytest.MonkeyPatch) -> None:
    # A picture whose brightness is its column: crops then tell where they came from.
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    monkeypatch.setattr(pictures, "_photograph", lambda _name: ramp)
    monkeypatch.setattr(pictures, "_augmented", lambda window, _random: window)
    left = np.stack(pictures.crops(Side.CALIBRATION, 20, (16, 16)))
    right = np.stack(pictures.crops(Side.HELD_OUT, 20, (16, 16)))
    assert left.max() < right.min()
