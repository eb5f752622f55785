"""The steps between detector and classifier, each against a slow or obvious way to do the same."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from examples.detect_classify import detector, networks
from examples.detect_classify.detections import Rules, found
from examples.detect_classify.pictures import CROP, MARGIN, crops, decoded, letterboxed
from examples.detect_classify.service import answer
from examples.detect_classify.suppression import kept, overlaps
from penstock.errors import InvalidArgument, ModelLoadError, NotFound
from tests.examples import small_networks


def slow_overlap(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared
    return shared / union if union > 0 else 0.0


def slow_kept(corners: np.ndarray, scores: np.ndarray, overlap: float, most: int) -> list[int]:
    """Of every pair, by the definition."""
    left = sorted(range(len(scores)), key=lambda each: (-scores[each], each))
    chosen: list[int] = []
    for each in left:
        if all(slow_overlap(corners[each].tolist(), corners[one].tolist()) <= overlap for one in chosen):
            chosen.append(each)
    return chosen[:most]


@pytest.mark.parametrize("seed", range(8))
def test_suppression_keeps_what_the_definition_keeps(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(0, 200))
    start = random.uniform(0, 100, (count, 2))
    corners = np.concatenate((start, start + random.uniform(0, 40, (count, 2))), axis=1).astype(np.float32)
    scores = np.round(random.random(count), 1).astype(np.float32)  # with equal ones
    overlap, most = float(random.uniform(0.05, 0.9)), int(random.integers(1, 60))
    assert kept(corners, scores, overlap=overlap, most=most).tolist() == slow_kept(corners, scores, overlap, most)


def test_boxes_without_an_area_and_scores_that_are_none_do_no_harm() -> None:
    corners = np.array([[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10]], np.float32)
    assert overlaps(corners[0], corners).tolist() == [0, 0, 0]
    scores = np.array([0.5, 0.4, np.nan], np.float32)
    assert kept(corners, scores, overlap=0.5, most=9).tolist() == [0, 1]


@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40), (64, 64), (1, 300), (300, 1), (1, 1), (700, 511)])
def test_a_box_of_the_input_comes_back_as_one_of_the_picture(height: int, width: int) -> None:
    frame, x = letterboxed(np.full((height, width, 3), 200, np.uint8), 64)
    assert x.shape == (1, 3, 64, 64)
    ours = np.argwhere(np.isclose(x[0, 0], 200 / 255, atol=0.01))
    (top, left), (bottom, right) = ours.min(axis=0), ours.max(axis=0) + 1
    assert np.allclose(np.delete(x[0, 0].ravel(), np.ravel_multi_index(ours.T, (64, 64))), MARGIN / 255)
    back = frame.in_picture(np.array([[left, top, right, bottom], [-99, -99, 999, 999]], np.float32))
    # Half a pixel of the input is what rounding costs.
    assert np.abs(back[0] - (0, 0, width, height)).max() <= 1 / frame.scale
    assert back[1].tolist() == [0, 0, width, height]


def test_a_crop_is_what_lies_in_the_box() -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[20:60, 50:90] = (10, 120, 250)  # blue, green, red
    frame, _ = letterboxed(pixels, 64)
    inside, point = crops(frame, np.array([[50, 20, 90, 60], [199.9, 99.9, 200, 100]], np.float32))
    assert inside.shape == point.shape == (3, CROP, CROP)
    assert np.allclose(inside[:, 9, 9], (np.array([250, 120, 10]) - 127) / 128)
    assert inside.std(axis=(1, 2)).max() == 0
    assert np.allclose(point, -127 / 128)


def test_what_counts_as_found() -> None:
    frame, _ = letterboxed(np.zeros((50, 100, 3), np.uint8), 100)  # margins of 25 above and below
    boxes = np.array([[50, 50, 20, 20], [51, 50, 20, 20], [20, 50, 10, 10], [50, 10, 30, 20], [80, 40, 9, 9]])
    scores = np.array([0.9, 0.8, 0.7, 0.99, np.nan])
    corners, sure = found(frame, boxes, scores, Rules(score=0.5, overlap=0.4, most=5))
    assert corners.tolist() == [[40, 15, 60, 35], [15, 20, 25, 30]]
    assert sure.tolist() == pytest.approx([0.9, 0.7])
    nothing, _ = found(frame, boxes, scores, Rules(score=0.995, overlap=0.4, most=5))
    assert nothing.shape == (0, 4)


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n and then nothing"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="are no picture"):
        decoded(data)


def test_an_answer_without_things_has_its_shapes() -> None:
    empty = answer(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), [], ("a", "b"))
    assert {name: array.shape for name, array in empty.items()} == {
        "boxes": (0, 4), "scores": (0,), "class_ids": (0,), "labels": (0,), "class_scores": (0,),
    }  # fmt: skip


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, {"x": x})]


@pytest.mark.parametrize("opset", [13, 18])
def test_a_yolo_scores_boxes_by_their_likeliest_class(opset: int, tmp_path: Path) -> None:
    model = onnx.load(small_networks.yolo(tmp_path))
    model.opset_import[0].version = opset
    side = small_networks.YOLO_SIDE
    x = np.random.default_rng(0).random((3, 3, side, side), np.float32)
    (raw,) = run(model, x)
    boxes, scores = run(detector.of_yolo(model), x)
    assert np.array_equal(boxes, raw[:, :, :4])
    assert np.allclose(scores, raw[:, :, 4] * raw[:, :, 5:].max(axis=2))


def test_a_window_of_the_whole_input_is_the_classifier_itself(tmp_path: Path) -> None:
    model = onnx.load(small_networks.classifier(tmp_path))
    x = np.random.default_rng(1).random((2, 3, 192, 192), np.float32)
    boxes, scores = run(detector.of_classifier(model, 192), x)
    assert boxes.shape[1] == 3 * 3 + 2 * (3 * 1) + 1  # windows of 4 x 4, 4 x 6, 6 x 4 and 6 x 6 places of 6 x 6
    assert boxes[:, -1].tolist() == [[96, 96, 192, 192]] * 2
    assert boxes[0, :2].tolist() == [[64, 64, 128, 128], [96, 64, 128, 128]]

    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 192
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 192

    def chance(part: np.ndarray) -> np.ndarray:
        (logits,) = run(model, (part * 255 - 127) / 128)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shares.max(axis=1) / shares.sum(axis=1)

    assert np.allclose(scores[:, -1], chance(x), atol=1e-5)
    # Four places of this network see 128 pixels and no more, so a window is the classifier on that part of the picture.
    tiled = np.tile(x[:, :, 32:64, 64:96], (1, 1, 6, 6))
    assert np.allclose(run(detector.of_classifier(model, 192), tiled)[1], chance(tiled)[:, None], atol=1e-5)


def test_networks_of_another_kind_are_refused(tmp_path: Path) -> None:
    small = onnx.load(small_networks.yolo(tmp_path))
    with pytest.raises(ValueError, match="ends in ReduceMean, Reshape and Gemm, got Mul for Gemm"):
        detector.of_classifier(small)
    with pytest.raises(ModelLoadError, match=r"small.onnx: expected one output \[batch, boxes, 5 \+ classes\]"):
        networks.networks(small_networks.classifier(tmp_path), small_networks.classifier(tmp_path), tmp_path)
    with pytest.raises(NotFound, match=r"no such model; make it with"):
        networks.networks(tmp_path / "absent.onnx")


def test_labels_are_the_files_own_or_numbers(tmp_path: Path) -> None:
    assert networks.labels(onnx.load(small_networks.classifier(tmp_path))) == small_networks.CLASSES
    plain = onnx.load(small_networks.classifier(tmp_path, names=()))
    assert networks.labels(plain) == tuple(f"class {number}" for number in range(len(small_networks.CLASSES)))
    helper.set_model_props(plain, {"names": '["too", "few"]'})
    with pytest.raises(ModelLoadError, match="5 classes and 2 names"):
        networks.labels(plain)
