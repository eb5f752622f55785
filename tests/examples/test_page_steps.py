"""The steps between the networks of a page, on inputs whose right answer is known without a network."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from examples.ocr.page.boxes import boxes, clockwise, in_reading_order
from examples.ocr.page.crops import FEW_WIDTHS, WIDTHS, Batch, Crop, batches, crops, directions, upright
from examples.ocr.page.frame import Frame, prepare
from examples.ocr.page.reading import read_page
from examples.ocr.page.words import words
from examples.ocr.reader import MAX_WIDTH, MIN_WIDTH, Calls, Floats, Pixels, UnreadableImageError

ALPHABET = ("", "a", "b", "c", " ")
RNG = np.random.default_rng(7)


def blank(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), 255, np.uint8)


def rectangle(x: float, y: float, width: float, height: float, degrees: float = 0.0) -> Floats:
    """Corners clockwise from the top left one, around a middle."""
    corners = np.array(((-1, -1), (1, -1), (1, 1), (-1, 1))) * (width / 2, height / 2)
    angle = np.deg2rad(degrees)
    turn = np.array(((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))))
    return np.asarray(corners @ turn + (x, y), dtype=np.float32)


def chance_map(size: tuple[int, int], areas: Sequence[Floats], chance: float = 0.9) -> Floats:
    chances = np.zeros(size, np.float32)
    for corners in areas:
        cv2.fillConvexPoly(chances, np.rint(corners).astype(np.int32), chance)
    return chances[None, None]


# ---- a picture to the detector's input ----


@pytest.mark.parametrize(
    ("picture", "page"),
    [
        ((191, 384), (736, 1472)),  # the shorter side to 736, the longer with it
        ((900, 1200), (896, 1216)),  # large enough: to the nearest multiples of 32
        ((4000, 3000), (1984, 1504)),  # over 2000: scaled down first
        ((20, 300), (736, 2976)),  # one line: bands above and below, to 74 high
        ((1, 1), (736, 736)),
        ((1, 2000), (736, 2944)),
        ((2000, 1), (2944, 736)),
        ((3, 9000), (736, 2944)),
    ],
)
def test_the_detector_sees_any_picture_at_a_bounded_size(picture: tuple[int, int], page: tuple[int, int]) -> None:
    frame, tensor = prepare(blank(*picture))
    assert tensor.shape == (1, 3, *page)
    assert tensor.dtype == np.float32
    assert frame.picture == picture


def test_pixels_become_minus_one_to_one_channel_by_channel() -> None:
    picture = np.zeros((736, 736, 3), np.uint8)
    picture[:, :, 0], picture[:, :, 1], picture[:, :, 2] = 0, 51, 255
    _, tensor = prepare(picture)
    assert tensor[0, :, 300, 300].tolist() == pytest.approx([-1.0, -0.6, 1.0], abs=1e-6)
    assert np.ptp(tensor, axis=(2, 3)).max() == 0


def test_a_grey_picture_is_one_of_three_equal_channels() -> None:
    grey = RNG.integers(0, 256, (740, 760), dtype=np.uint8)
    colour = np.repeat(grey[:, :, None], 3, axis=2)
    wanted = prepare(colour)[1]
    assert np.array_equal(prepare(grey)[1], wanted)
    assert np.array_equal(prepare(grey[:, :, None])[1], wanted)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((0, 10, 3), np.uint8), "10x0 has no pixels"),
        (np.zeros((10, 0), np.uint8), "0x10 has no pixels"),
        (np.zeros((4, 4, 4), np.uint8), r"got uint8\[4, 4, 4\]"),
        (np.zeros(4, np.uint8), r"got uint8\[4\]"),
        (np.zeros((4, 4, 3), np.float32), r"got float32\[4, 4, 3\]"),
        (np.broadcast_to(np.uint8(0), (10_000, 10_000)), "10000x10000 is over"),
    ],
    ids=["no rows", "no columns", "four channels", "one dimension", "floats", "huge"],
)
def test_what_is_no_picture_is_refused_with_the_reason(image: npt.NDArray[np.generic], reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason):
        prepare(image)


@pytest.mark.parametrize("size", [(500, 700), (3000, 4000), (20, 400), (900, 60), (1, 1)], ids=str)
def test_corners_of_the_frame_are_told_in_the_pictures_own_pixels(size: tuple[int, int]) -> None:
    height, width = size
    frame, _ = prepare(blank(height, width))
    left, top = frame.bands
    inner_height, inner_width = (length - 2 * band for length, band in zip(frame.size, (top, left), strict=True))
    inside = np.array(((left, top), (left + inner_width / 2, top + inner_height / 2)), np.float32)
    assert frame.in_picture(inside)[0].tolist() == [0, 0]
    middle = np.clip((width / 2, height / 2), 0, (width - 1, height - 1))
    assert frame.in_picture(inside)[1].tolist() == pytest.approx(middle.tolist(), abs=1e-3)
    far = frame.in_picture(np.array((-50, 1e6), np.float32))
    assert far.tolist() == [0, height - 1]


def test_a_line_alone_gets_bands_and_a_page_none() -> None:
    assert prepare(blank(20, 300))[0].bands == (0, 27)
    assert prepare(blank(300, 20))[0].bands == (27, 0)
    assert prepare(blank(100, 801))[0].bands == (0, 50)
    assert prepare(blank(600, 800))[0].bands == (0, 0)
    assert prepare(blank(100, 800))[0].bands == (0, 0)


# ---- probabilities to boxes ----


def grown(width: float, height: float) -> tuple[float, float]:
    """Width and height of a rectangle after the growth by area x 1.6 / perimeter."""
    distance = width * height * 1.6 / (2 * (width + height))
    return width + 2 * distance, height + 2 * distance


@pytest.mark.parametrize("degrees", [0, 3, -15, 14, 40, -40])
def test_a_turned_rectangle_comes_back_where_it_lies_grown_on_all_sides(degrees: float) -> None:
    width, height = 200, 40
    found = boxes(chance_map((480, 640), [rectangle(300, 240, width, height, -degrees)]), (480, 640))
    assert found.shape == (1, 4, 2)
    wanted = rectangle(300, 240, *grown(width, height), -degrees)
    # Drawing and joining add a pixel or two, and growth its part of them; it adds 27 on each side.
    assert np.abs(found[0] - wanted).max() < 5


def test_boxes_are_told_in_the_size_of_the_frame() -> None:
    chances = chance_map((480, 640), [rectangle(300, 240, 200, 20)])
    small, large = boxes(chances, (480, 640)), boxes(chances, (960, 1920))
    assert np.abs(large - small * (3, 2)).max() <= 3


def test_each_area_is_a_box_and_faint_thin_and_tiny_ones_are_none() -> None:
    size = (400, 600)
    lines = [rectangle(300, y, 300, 16) for y in (50, 120, 190)]
    chances = chance_map(size, lines)
    chances += chance_map(size, [rectangle(300, 260, 300, 16)], 0.4)  # text-like, but not enough
    chances += chance_map(size, [rectangle(300, 300, 300, 1)])
    chances += chance_map(size, [rectangle(300, 340, 1, 1)])
    assert len(boxes(chances, size)) == 3


@pytest.mark.parametrize("value", [0.0, 0.2, np.nan, -np.inf], ids=str)
def test_a_map_without_text_has_no_boxes(value: float) -> None:
    assert boxes(np.full((1, 1, 64, 64), value, np.float32), (64, 64)).shape == (0, 4, 2)


def test_a_map_all_of_text_is_one_box_inside_the_frame() -> None:
    found = boxes(np.ones((1, 1, 64, 96), np.float32), (64, 96))
    assert found.tolist() == [[[0, 0], [95, 0], [95, 63], [0, 63]]]


def test_a_map_of_two_pages_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[2, 1, 64, 64\]"):
        boxes(np.zeros((2, 1, 64, 64), np.float32), (64, 64))


def test_corners_in_any_order_become_clockwise_from_the_top_left() -> None:
    wanted = np.stack([rectangle(100, 50, 80, 20, degrees) for degrees in (0, 20, -20)])
    for order in ((1, 2, 3, 0), (3, 0, 1, 2), (2, 0, 3, 1)):
        assert np.array_equal(clockwise(wanted[:, order]), wanted)


@pytest.mark.parametrize("degrees", [0, 0.5, 10, -12])
def test_reading_order_is_top_to_bottom_and_left_to_right_on_a_turned_page_too(degrees: float) -> None:
    places = [(200, 40), (120, 100), (380, 104), (120, 130), (380, 126), (200, 180)]
    angle = np.deg2rad(degrees)
    turn = np.array(((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))))
    corners = np.stack([(rectangle(x, y, 200, 20) @ turn).astype(np.float32) for x, y in places])
    for _ in range(5):
        shuffled = corners[RNG.permutation(len(corners))]
        assert np.array_equal(in_reading_order(shuffled), corners)


# ---- boxes to crops ----


def ramp(height: int, width: int) -> Frame:
    """Blue grows to the right and green downwards: a pixel says where it is from."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 0] = np.linspace(0, 200, width).astype(np.uint8)
    pixels[:, :, 1] = np.linspace(0, 200, height).astype(np.uint8)[:, None]
    return Frame(pixels, (1.0, 1.0), (0, 0), (height, width))


@pytest.mark.parametrize("degrees", [0, 12, -15])
def test_a_crop_holds_what_lies_between_its_corners(degrees: float) -> None:
    frame = ramp(401, 601)
    corners = rectangle(300, 200, 240, 40, degrees)
    (crop,) = crops(frame, corners[None])
    assert crop.pixels.shape == (48, 288, 3)
    for (row, column), (x, y) in zip(((1, 1), (1, -2), (-2, -2), (-2, 1)), corners, strict=True):
        blue, green, _ = crop.pixels[row, column].astype(float)
        assert abs(blue - x / 3) < 3  # 200 levels over 600 pixels
        assert abs(green - y / 2) < 3


def test_a_line_that_runs_down_is_laid_flat() -> None:
    frame = ramp(401, 601)
    (crop,) = crops(frame, rectangle(300, 200, 40, 240)[None])
    assert crop.pixels.shape == (48, 288, 3)
    # Its text begins at the top right: the crop's left edge is the page's top.
    assert crop.corners.tolist() == [[320, 80], [320, 320], [280, 320], [280, 80]]
    assert abs(float(crop.pixels[24, 2, 1]) - 80 / 2) < 3
    assert abs(float(crop.pixels[2, 144, 0]) - 320 / 3) < 3


def test_a_crop_is_never_wider_than_the_recogniser_is_asked_to_read() -> None:
    (crop,) = crops(ramp(20, 2000), rectangle(1000, 10, 1990, 6)[None])
    assert crop.pixels.shape == (48, 3200, 3)


def three_lines() -> list[Crop]:
    return crops(ramp(400, 600), np.stack([rectangle(300, y, 240, 40) for y in (60, 140, 220)]))


def test_a_line_is_turned_where_the_classifier_is_certain_and_remembers_its_corners() -> None:
    lines = three_lines()
    same = upright(lines, np.array([[1, 0], [0.9, 0.1], [0.9, 0.1]], np.float32))
    assert all(a is b for a, b in zip(same, lines, strict=True))
    turned = upright(lines, np.array([[0.9, 0.1], [0.0, 1.0], [0.9, 0.1]], np.float32))
    assert len(turned) == 3
    assert np.array_equal(turned[1].pixels, cv2.rotate(lines[1].pixels, cv2.ROTATE_180))
    assert np.array_equal(turned[1].corners, lines[1].corners[[2, 3, 0, 1]])
    assert turned[0] is lines[0]
    assert [crop.line for crop in turned] == [0, 1, 2]


@pytest.mark.parametrize(
    ("own", "others", "ways"),
    [(0.3, 0.01, "as it is"), (0.3, 0.5, "both"), (0.95, 0.01, "both"), (0.98, 0.98, "both"), (0.99, 0.99, "turned")],
)
def test_a_line_in_doubt_is_there_both_ways_and_the_others_of_its_page_count(
    own: float, others: float, ways: str
) -> None:
    lines = three_lines()
    down = np.array([others, own, others])
    found = [crop for crop in upright(lines, np.stack((1 - down, down), axis=1)) if crop.line == 1]
    assert ["as it is" if crop is lines[1] else "turned" for crop in found] == {
        "both": ["as it is", "turned"],
    }.get(ways, [ways])


def test_the_classifier_sees_every_line_at_its_own_size_and_long_ones_in_their_middle() -> None:
    frame = ramp(400, 601)
    looks = directions(crops(frame, np.stack([rectangle(300, 60, 500, 30), rectangle(300, 140, 60, 40)])))
    assert looks.shape == (2, 3, 48, 192)
    assert np.all(looks[1, :, :, 72:] == 0)
    assert np.all(looks[0, 2] == -1)
    # 384 of 800 columns are 240 of 500 pixels, from 180 to 420; blue is a third of where a pixel is from.
    blue = (looks[0, 0, 24, [0, -1]] + 1) * 255 / 2
    assert blue.tolist() == pytest.approx([180 / 3, 420 / 3], abs=2)


@pytest.mark.parametrize(
    ("length", "width"),
    [
        (40, 80),
        (80, 160),
        (90, 160),
        (96, 192),
        (111, 192),
        (159, 288),
        (180, 320),
        (223, 384),
        (550, 1024),
        (900, 1792),
    ],
)
def test_a_line_is_squeezed_to_a_width_that_needs_no_padding(length: int, width: int) -> None:
    (line,) = crops(ramp(400, 1000), np.stack([rectangle(500, 20, length, 24)]))
    assert line.pixels.shape == (48, width, 3)
    (batch,) = batches([line], FEW_WIDTHS)
    assert batch.pictures.shape == (1, 3, 48, max(width, MIN_WIDTH))


def test_no_width_of_a_line_is_padded() -> None:
    assert (WIDTHS[0], WIDTHS[-1]) == (MIN_WIDTH, MAX_WIDTH)
    assert [FEW_WIDTHS.width(width) for width in WIDTHS] == list(WIDTHS)


def test_every_line_is_in_one_batch_padded_to_the_width_of_the_call() -> None:
    frame = ramp(400, 1000)
    lines = crops(
        frame, np.stack([rectangle(500, 20 + 40 * row, width, 24) for row, width in enumerate((80, 900, 97))])
    )
    grouped = batches(lines, Calls(step=64))
    assert sorted(member for batch in grouped for member in batch.members) == [0, 1, 2]
    assert [batch.pictures.shape for batch in grouped] == [(2, 3, 48, 192), (1, 3, 48, 1792)]
    assert batches([]) == []


# ---- answers to words ----


def answer(text: str, columns: int, chance: float = 0.9) -> dict[str, npt.NDArray[np.float32]]:
    """What a recogniser says that reads a letter in every other column."""
    scores = np.zeros((1, columns, len(ALPHABET)), np.float32)
    scores[0, :, 0] = 1.0
    for place, letter in enumerate(text):
        scores[0, 2 * place + 1] = 0
        scores[0, 2 * place + 1, ALPHABET.index(letter)] = chance
    return {"y": scores}


def one_line(text: str, chance: float = 0.9) -> tuple[Frame, list[Crop], list[Batch], list[dict[str, Floats]]]:
    width = 8 * (2 * len(text) + 1)
    frame = Frame(blank(100, 400), (2.0, 2.0), (0, 0), (200, 800))
    corners = np.array(((10, 20), (10 + width, 20), (10 + width, 68), (10, 68)), np.float32)
    lines = [Crop(blank(48, width), corners, 0)]
    return frame, lines, batches(lines), [answer(text, 64, chance)]


def test_words_lie_along_their_line_in_pixels_of_the_picture() -> None:
    (line,) = words(*one_line("ab c abc"), ALPHABET)
    assert line.text == "ab c abc"
    assert line.score == pytest.approx(0.9)
    assert [word.text for word in line.words] == ["ab", "c", "abc"]
    assert line.corners.tolist() == [[20, 40], [292, 40], [292, 136], [20, 136]]
    for word, letters in zip(line.words, ((0, 1), (3, 3), (5, 7)), strict=True):
        # The middle of letter i is (2 i + 1.5) columns of 8 pixels, two pixels of the picture each, right of 20.
        first, last = (20 + 16 * (2 * letter + 1.5) for letter in letters)
        left, right = float(word.corners[0, 0]), float(word.corners[1, 0])
        assert first - 17 <= left < first
        assert last < right <= last + 17
        assert word.corners[:, 1].tolist() == [40, 40, 136, 136]


def test_what_reads_as_nothing_or_unsurely_is_left_out() -> None:
    assert words(*one_line("ab", chance=0.45), ALPHABET) == ()
    assert words(*one_line(""), ALPHABET) == ()
    assert words(*one_line("   "), ALPHABET) == ()
    assert len(words(*one_line("ab", chance=0.55), ALPHABET)) == 1
    assert words(*one_line("ab", chance=float("nan")), ALPHABET) == ()


def test_doubled_spaces_are_single_and_outer_ones_go() -> None:
    (line,) = words(*one_line(" ab  c "), ALPHABET)
    assert line.text == "ab c"
    assert [word.text for word in line.words] == ["ab", "c"]


@pytest.mark.parametrize("better", [0, 1])
def test_of_a_line_there_both_ways_the_surer_reading_counts(better: int) -> None:
    frame, (crop,), _, _ = one_line("abc")
    lines = [crop, crop.turned()]
    answers = [answer("cc", 64, 0.7), answer("cc", 64, 0.7)]
    answers[better] = answer("abc", 64, 0.9)
    (line,) = words(frame, lines, batches(lines, Calls(rows=1)), answers, ALPHABET)
    assert line.text == "abc"
    assert line.corners.tolist() == frame.in_picture(lines[better].corners).tolist()


# ---- all of them ----


class Unasked:
    def __call__(self, *, x: Floats) -> dict[str, Floats]:
        raise AssertionError(f"was asked about {x.shape}")


class Blind:
    """A detector that finds nothing."""

    def __call__(self, *, x: Floats) -> dict[str, Floats]:
        return {"map": np.zeros((1, 1, *x.shape[2:]), np.float32)}


@pytest.mark.parametrize("size", [(1, 1), (30, 2000), (600, 800)], ids=str)
def test_an_empty_page_has_no_lines_and_asks_no_other_network(size: tuple[int, int]) -> None:
    assert read_page(blank(*size), Blind(), Unasked(), Unasked(), ALPHABET) == ()
