"""What the tower is given, and what its answers are judged by."""

import io

import numpy as np
import pytest
from PIL import Image

from examples.clip.asking import Turns
from examples.clip.judging import Answer, Reference, judged
from examples.clip.pictures import encoded_pictures
from examples.clip.preprocessing import SIZE, UnreadableImageError, centre, normalised, opened, prepared
from examples.clip.service import unit
from penstock.errors import ExecutionError

RANDOM = np.random.default_rng(3)
KNOWN = RANDOM.standard_normal((6, 16)).astype(np.float32)
REFERENCE = Reference(KNOWN)


# ---- preprocessing ----


def png(pixels: np.ndarray, mode: str = "RGB") -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(written, "PNG")
    return written.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (640, 333), (225, 500), (17, 300), (224, 224)])
def test_any_picture_becomes_one_input(width: int, height: int, mode: str) -> None:
    found = prepared(png(RANDOM.integers(0, 256, (height, width, 3), np.uint8), mode))
    assert found.shape == (3, SIZE, SIZE)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_a_picture_of_the_right_size_keeps_its_pixels_but_for_the_statistics() -> None:
    pixels = RANDOM.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(centre(opened(png(pixels))), pixels)
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = (pixels.transpose(2, 0, 1) / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(deviation, (3, 1, 1))
    np.testing.assert_allclose(prepared(png(pixels)), expected, rtol=0, atol=1e-5)


def test_the_middle_is_cut_out() -> None:
    pixels = np.zeros((SIZE, 3 * SIZE, 3), np.uint8)
    pixels[:, SIZE : 2 * SIZE] = 255
    assert centre(opened(png(pixels))).min() == 255


def test_huge_pictures_are_refused_before_they_are_decoded() -> None:
    written = io.BytesIO()
    Image.new("1", (9000, 9000)).save(written, "PNG")
    with pytest.raises(UnreadableImageError, match="9000x9000 is over 50000000 pixels"):
        prepared(written.getvalue())


def test_pictures_are_the_same_each_time_and_unlike_each_other() -> None:
    first, second = encoded_pictures(8), encoded_pictures(8)
    assert first == second
    assert len(set(first)) == 8
    assert {each[:4] for each in first} == {b"\xff\xd8\xff\xe0", b"\x89PNG"}


@pytest.mark.torch
def test_the_input_is_what_torchvision_makes_of_the_picture() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.Compose(
        [
            transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    for encoded in encoded_pictures(12, seed=5):
        picture = opened(encoded)
        np.testing.assert_allclose(normalised(centre(picture)), theirs(picture).numpy(), rtol=0, atol=1e-5)


# ---- judging ----


def answer(picture: int, embedding: np.ndarray | None) -> Answer:
    return Answer(picture, 0.01, embedding)


@pytest.mark.parametrize(
    ("found", "right"),
    [
        (KNOWN[2], True),
        (7 * KNOWN[2] + 0.001, True),
        (KNOWN[3], False),  # somebody else's
        (KNOWN[2] + 0.3 * RANDOM.standard_normal(16), False),
        (-KNOWN[2], False),
        (np.where(np.arange(16) == 5, np.nan, KNOWN[2]), False),
        (np.zeros(16), False),
        (KNOWN[2][:8], False),
    ],
)
def test_an_answer_is_right_when_its_direction_is_its_own_pictures(found: np.ndarray, right: bool) -> None:
    tally = judged(REFERENCE, [answer(2, found)], 1, 1.0)
    assert (tally.right, tally.wrong, tally.good) == (int(right), int(not right), right)


def test_what_is_wrong_missing_and_failed_is_counted_apart() -> None:
    answers = [
        answer(0, KNOWN[0]),
        answer(1, KNOWN[2]),
        Answer(2, 1.0, trouble="failed", said="503"),
        Answer(3, 1.0, trouble="missing", said="timed out"),
    ]
    tally = judged(REFERENCE, answers, 5, 2.0)
    assert (tally.right, tally.wrong, tally.failed, tally.missing) == (1, 1, 1, 2)  # one was never answered at all
    assert tally.throughput == 1.0
    assert tally.reasons == ["503", "timed out"]
    assert not tally.good


def test_nothing_asked_is_not_good() -> None:
    assert not judged(REFERENCE, [], 0, 0.0).good


def test_pictures_that_look_alike_to_the_tower_cannot_judge() -> None:
    with pytest.raises(ValueError, match="a swapped answer could pass"):
        Reference(np.ones((2, 16)) + 0.001 * RANDOM.standard_normal((2, 16)))
    with pytest.raises(ValueError, match="a swapped answer could pass"):
        Reference(np.full((2, 16), np.nan))


def test_an_embedding_without_direction_is_an_error_of_the_tower() -> None:
    np.testing.assert_allclose(unit(np.array([3.0, 4.0])), [0.6, 0.8])
    for bad in (np.zeros(4), np.array([1.0, np.nan]), np.array([np.inf, 1.0])):
        with pytest.raises(ExecutionError, match="expected a finite one above 0"):
            unit(bad)


# ---- turns ----


def test_turns_end_with_the_requests_or_the_time_but_not_before_every_caller_had_one() -> None:
    counted, timed = Turns(5, requests=3), Turns(5, seconds=0.0, least=4)
    assert [counted.next() for _ in range(4)] == [0, 1, 2, None]
    assert [timed.next() for _ in range(5)] == [0, 1, 2, 3, None]
    assert (counted.taken, timed.taken) == (3, 4)
    assert sorted(counted.picture(number) for number in range(5)) == [0, 1, 2, 3, 4]
