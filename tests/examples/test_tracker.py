"""The tracker: its loop with a network of NumPy alone, and its own network as torch and engines run it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from examples.tracker import tracking
from examples.tracker.likeness import likeness
from examples.tracker.scene import OBJECT, OBJECTS, norm_crops, scene
from examples.tracker.tracking import SEARCH_SIZE, STRIDE, Floats, Network, Tracking, cropped
from examples.tracker.turns import speed_up, take_turns

PLACES = tracking.PLACES
OWN = slice(4, 11)  # of 15 cells of 8 x 8 pixels, the template's that show the object and not what is behind it


def means(crops: Floats) -> Floats:
    count = crops.shape[2] // STRIDE
    cut = crops[:, :, : count * STRIDE, : count * STRIDE]
    return cut.reshape(len(crops), 3, count, STRIDE, count, STRIDE).mean((3, 5))


def match(regions: Floats, kernels: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Scores by the cosine of means of pixels, no change of any box."""
    (kernel,) = kernels
    seen = np.lib.stride_tricks.sliding_window_view(means(regions), kernel.shape[2:], axis=(2, 3))
    seen = seen[:, :, OWN.start : OWN.start + PLACES, OWN.start : OWN.start + PLACES]
    products = np.einsum("ncyxij,ncij->nyx", seen, kernel)
    lengths = np.sqrt(np.einsum("ncyxij,ncyxij->nyx", seen, seen) * np.square(kernel).sum((1, 2, 3))[:, None, None])
    scores = np.zeros((len(regions), 10, PLACES, PLACES), np.float32)
    scores[:, 5:] = (12 * (products / lengths - 0.6))[:, None]
    return scores, np.zeros((len(regions), 20, PLACES, PLACES), np.float32)


BY_PIXELS = Network(lambda crops: [means(crops)[:, :, OWN, OWN]], match)


# ---- the loop ----


def test_objects_that_move_are_followed_to_a_step_of_the_map_of_scores() -> None:
    shown = scene(3, 8)
    following = Tracking(BY_PIXELS, shown.frames[0], shown.boxes[0])
    found = np.stack([following.follow(frame) for frame in shown.frames[1:]])
    away = np.abs(found[..., :2] - shown.boxes[1:, :, :2])
    assert np.abs(shown.boxes[-1, :, :2] - shown.boxes[0, :, :2]).max() > OBJECT / 2  # else staying would do
    assert away.mean() < STRIDE
    assert away.max() <= 1.5 * STRIDE


def test_several_objects_at_once_are_followed_as_each_alone() -> None:
    shown = scene(2, 3)
    together = Tracking(BY_PIXELS, shown.frames[0], shown.boxes[0])
    alone = [Tracking(BY_PIXELS, shown.frames[0], shown.boxes[0, at : at + 1]) for at in range(2)]
    for frame in shown.frames[1:]:
        np.testing.assert_allclose(together.follow(frame), np.concatenate([each.follow(frame) for each in alone]))


@pytest.mark.parametrize(
    "boxes", [[1.0, 2.0, 3.0, 4.0], [[5.0, 5.0, 0.0, 4.0]], [[5.0, np.nan, 3.0, 4.0]], [[5.0, 5.0, 3.0]]]
)
def test_what_is_no_box_is_refused(boxes: list[float]) -> None:
    with pytest.raises(ValueError, match="expected boxes"):
        Tracking(BY_PIXELS, np.zeros((64, 64, 3), np.uint8), np.array(boxes))


def test_a_crop_at_its_own_size_is_the_pixels_themselves_and_the_mean_colour_outside() -> None:
    frame = np.random.default_rng(3).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    (inside,) = cropped(frame, np.array([[30.0, 20.0]]), np.array([16.0]), 16)
    np.testing.assert_allclose(inside, frame[12:28, 22:38].transpose(2, 0, 1), atol=1e-3)
    (corner,) = cropped(frame, np.array([[0.0, 0.0]]), np.array([16.0]), 16)
    np.testing.assert_allclose(corner[:, 8:, 8:], frame[:8, :8].transpose(2, 0, 1), atol=1e-3)
    np.testing.assert_allclose(
        corner[:, :8, :8], np.broadcast_to(frame.mean((0, 1))[:, None, None], (3, 8, 8)), rtol=1e-5
    )


def test_a_crop_that_is_enlarged_lies_between_the_pixels() -> None:
    ramp = np.broadcast_to((3 * np.arange(50, dtype=np.uint8))[None, :, None], (30, 50, 3))
    (found,) = cropped(ramp, np.array([[25.0, 15.0]]), np.array([10.0]), 40)
    places = 25 - 0.5 + (np.arange(40) + 0.5 - 20) / 4
    np.testing.assert_allclose(found[0, 7], 3 * places, rtol=1e-5)


def test_anchors_have_one_area_and_the_windows_middle_is_theirs() -> None:
    given = tracking.anchors()
    assert given.shape == (4, 5 * PLACES * PLACES)
    np.testing.assert_allclose(given[2] * given[3], 64.0**2)
    middle = np.flatnonzero((given[0] == 0) & (given[1] == 0))
    np.testing.assert_array_equal(tracking.window()[middle], 1.0)
    assert len(middle) == 5


def test_boxes_are_their_anchors_moved_and_stretched() -> None:
    deltas = np.zeros((1, 20, PLACES, PLACES), np.float32)
    deltas[:, :5], deltas[:, 15:] = 0.5, np.log(2)
    given = tracking.anchors()
    (found,) = tracking.decoded(deltas, given)
    np.testing.assert_allclose(found[0], given[0] + given[2] / 2)
    np.testing.assert_allclose(found[1:3], given[1:3])
    np.testing.assert_allclose(found[3], 2 * given[3], rtol=1e-6)


def test_changes_of_size_and_shape_cost_and_the_same_box_costs_nothing() -> None:
    sizes = np.array([[40.0, 40.0]])
    same, larger, turned, both = tracking.penalties(
        np.array([[[40.0, 80.0, 20.0, 40.0], [40.0, 80.0, 80.0, 160.0]]]), sizes
    )[0]
    assert same == pytest.approx(1)
    assert same > larger > both
    assert same > turned > both


def test_probabilities_are_of_the_second_half_and_never_overflow() -> None:
    scores = np.zeros((1, 10, PLACES, PLACES), np.float32)
    scores[0, 5, 0, 0], scores[0, 0, 0, 1] = 1e4, 1e4
    found = tracking.probabilities(scores)
    assert found[0, 0] == pytest.approx(1)
    assert found[0, 1] == pytest.approx(0)
    assert found[0, 2] == pytest.approx(0.5)


# ---- what it is shown, and how it is compared ----


def test_scenes_are_the_same_for_a_seed_and_objects_never_meet() -> None:
    shown, again = scene(OBJECTS, 60), scene(OBJECTS, 1)
    np.testing.assert_array_equal(shown.frames[0], again.frames[0])
    pairs = shown.boxes[:, :, None], shown.boxes[:, None]
    overlaps = tracking.overlap(*np.broadcast_arrays(*pairs))
    assert (overlaps.sum((1, 2)) == OBJECTS).all()
    with pytest.raises(ValueError, match="1 to 8 objects"):
        scene(OBJECTS + 1)
    assert norm_crops(SEARCH_SIZE, 4).shape == (4, SEARCH_SIZE, SEARCH_SIZE, 3)


def test_likeness_is_of_the_worst_row_and_nan_is_never_alike() -> None:
    right = {"y": np.array([[1.0, 0.0], [0.0, 2.0]])}
    found = likeness({"y": np.array([[1.0, 0.0], [2.0, 0.0]])}, right)["y"]
    assert (found.cosine, found.error, found.largest) == (0.0, 2.0, 2.0)
    assert np.isnan(likeness({"y": np.array([[np.nan, 0.0], [0.0, 2.0]])}, right)["y"].cosine)
    with pytest.raises(ValueError, match="shape"):
        likeness({"y": np.zeros((1, 2))}, right)
    with pytest.raises(ValueError, match="expected"):
        likeness({"z": np.zeros((2, 2))}, right)


def test_ways_take_turns_and_ratios_are_taken_within_rounds() -> None:
    order: list[str] = []
    found = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, 0, least=2)
    assert "".join(order) == "aaabbb" + "bbbaaa"
    assert [len(found[name]) for name in "ab"] == [2, 2]
    assert speed_up([1.0, 2.0, 10.0], [3.0, 8.0, 20.0]) == 3.0
    with pytest.raises(ValueError, match="expected ways"):
        take_turns({}, 1, 0)


# ---- the network ----


@pytest.mark.torch
@pytest.mark.slow
def test_the_branches_together_are_the_whole_network_and_follow_what_moves() -> None:
    torch = pytest.importorskip("torch")
    from examples.tracker import engines, network

    made = engines.tracker()
    shown = scene(2, 4)
    following = Tracking(engines.eager(made), shown.frames[0], shown.boxes[0])
    regions = following.regions(shown.frames[1])
    apart = engines.eager(made).search(regions, following.kernels)
    with torch.inference_mode():
        whole = made(torch.from_numpy(following.template), torch.from_numpy(regions))
    names = engines.OUTPUTS
    found = likeness(dict(zip(names, apart, strict=True)), {k: v.numpy() for k, v in zip(names, whole, strict=True)})
    assert min(each.cosine for each in found.values()) > 0.999999
    assert isinstance(made, network.Tracker)
    boxes = np.stack([following.follow(frame) for frame in shown.frames[1:]])
    assert np.abs(boxes[..., :2] - shown.boxes[1:, :, :2]).max() <= 1.5 * STRIDE


@pytest.mark.torch
@pytest.mark.slow
def test_an_engine_answers_as_torch_does_and_is_found_again(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from examples.tracker import engines

    made, asked = engines.tracker(), engines.Asked("fp32", "cpu", budget_seconds=20.0)
    engine = engines.search_engine(made, asked, tmp_path)
    shown = scene(1, 2)
    following = Tracking(engines.eager(made), shown.frames[0], shown.boxes[0])
    regions = following.regions(shown.frames[1])
    right = dict(zip(engines.OUTPUTS, engines.eager(made).search(regions, following.kernels), strict=True))
    answers = dict(
        zip(engines.OUTPUTS, engine(**engines.search_inputs(regions, following.kernels)).values(), strict=True)
    )
    for each in likeness(answers, right).values():
        assert each.cosine > 0.99999
        assert each.error < 1e-3 * each.largest
    assert engines.search_engine(made, asked, tmp_path).content_hash == engine.content_hash
    other = engines.Asked("bf16", "cpu")
    assert other.path("search", tmp_path) != asked.path("search", tmp_path) != asked.path("template", tmp_path)
