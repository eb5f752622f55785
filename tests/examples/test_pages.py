"""Documents of known truth, the measure of a page read, and the real networks on whole pages beside RapidOCR."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from examples.ocr import compare_service
from examples.ocr.compare_pages import main
from examples.ocr.documents import KINDS, LOOKS, Document, real_page, rendered_documents
from examples.ocr.draw import colour_of, draw_page
from examples.ocr.fonts import DISPLAY, PAGES, PRINT, paths_of
from examples.ocr.layout import MOST_LINES, flat_page
from examples.ocr.model import alphabet_of, recogniser_path
from examples.ocr.page.words import Line, Word
from examples.ocr.page_metrics import WordErrors, accuracy_gain, differing_lines, line_errors, total, word_errors
from examples.ocr.readers import PageReader, RapidReader

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(rendered_documents(len(KINDS)))


@lru_cache(maxsize=1)
def reader() -> PageReader:
    return PageReader("onnxruntime")


@dataclass(frozen=True)
class Text:
    text: str
    corners: Floats


def at(text: str, x: float, y: float, width: float = 100, height: float = 20) -> Text:
    corners = np.array(((x, y), (x + width, y), (x + width, y + height), (x, y + height)), np.float32)
    return Text(text, corners)


# ---- documents ----


def test_the_same_seed_renders_the_same_pages_and_another_seed_does_not(documents: list[Document]) -> None:
    (again,) = rendered_documents(1, first=2)
    assert np.array_equal(again.pixels, documents[2].pixels)
    assert [line.text for line in again.lines] == [line.text for line in documents[2].lines]
    assert all(np.array_equal(a.corners, b.corners) for a, b in zip(again.lines, documents[2].lines, strict=True))
    (other,) = rendered_documents(1, seed=1, first=2)
    assert [line.text for line in other.lines] != [line.text for line in documents[2].lines]


def test_pages_are_of_every_kind_in_turn(documents: list[Document]) -> None:
    assert [document.kind for document in documents] == list(KINDS) == list(LOOKS)
    assert len({document.name for document in documents}) == len(documents)


def test_pages_are_set_in_faces_that_no_other_line_is_set_in() -> None:
    faces = paths_of(PAGES)
    assert len(faces) >= 20
    assert not {*faces} & {*paths_of(PRINT), *paths_of(DISPLAY)}


@pytest.mark.parametrize("seed", range(12))
def test_ink_of_a_flat_page_lies_in_the_boxes_of_its_lines_and_nowhere_else(seed: int) -> None:
    page = flat_page(np.random.default_rng(seed))
    assert 3 <= len(page.lines) <= MOST_LINES
    outside = page.ink.copy()
    boxes = [tuple(round(edge) for edge in line.box) for line in page.lines]
    for line, (left, top, right, bottom) in zip(page.lines, boxes, strict=True):
        ink = page.ink[top:bottom, left:right]
        assert 0 <= left < right <= page.ink.shape[1], line.text
        assert 0 <= top < bottom <= page.ink.shape[0], line.text
        assert min(*ink.max(axis=0)[[0, -1]], *ink.max(axis=1)[[0, -1]]) > 0, line.text
        outside[top:bottom, left:right] = 0
    assert outside.max() == 0
    for index, (left, top, right, bottom) in enumerate(boxes):
        for x0, y0, x1, y1 in boxes[:index]:
            assert right <= x0 or x1 <= left or bottom <= y0 or y1 <= top


def test_every_character_of_every_page_is_one_the_recogniser_can_answer(documents: list[Document]) -> None:
    known = set(alphabet_of(recogniser_path()))
    for document in documents:
        for line in document.lines:
            assert set(line.text) <= known
            assert line.text == " ".join(line.text.split()) != ""


def test_corners_of_a_page_lie_around_its_ink_after_every_bend(documents: list[Document]) -> None:
    for document in documents:
        height, width = document.pixels.shape[:2]
        grey = cv2.cvtColor(document.pixels, cv2.COLOR_BGR2GRAY)
        for line in document.lines:
            assert line.corners.min() >= 0
            assert np.all(line.corners <= (width, height))
            inside = cv2.fillConvexPoly(np.zeros_like(grey), np.rint(line.corners).astype(np.int32), 1)
            around = cv2.dilate(inside, np.ones((7, 7), np.uint8)) - inside
            # Paper around letters is lighter than paper and letters, on every line of every kind.
            assert np.median(grey[around == 1]) - grey[inside == 1].mean() > 8, (document.name, line.text)


def test_turned_pages_are_turned_by_at_most_fifteen_degrees_and_not_all_alike() -> None:
    turned = [page for page in rendered_documents(15) if page.kind == "turned"]
    angles = []
    for page in turned:
        along = page.lines[0].corners[1] - page.lines[0].corners[0]
        angles.append(float(np.rad2deg(np.arctan2(along[1], along[0]))))
    assert max(np.abs(angles)) <= 15.01
    assert np.ptp(angles) > 3


# ---- the measure ----

TRUTH = (at("the quiet water", 0, 0), at("a gate", 0, 30), at("of silver", 200, 0))


def test_a_perfect_reading_in_any_order_has_no_errors() -> None:
    assert word_errors(TRUTH, TRUTH[::-1]) == WordErrors(7, 0)
    assert word_errors(TRUTH, TRUTH).accuracy == 1


def test_lines_read_in_pieces_are_put_together_along_the_line() -> None:
    pieces = (at("quiet water", 40, 2, 60), at("the", 0, -2, 30), *TRUTH[1:])
    assert word_errors(TRUTH, pieces).errors == 0


@pytest.mark.parametrize(
    ("read", "errors"),
    [
        ((), 7),
        ((at("the quite water", 0, 0), *TRUTH[1:]), 1),
        ((at("thequiet water", 0, 0), *TRUTH[1:]), 2),
        ((at("the quiet, water", 0, 0), *TRUTH[1:]), 1),
        ((at("the very quiet water", 0, 0), *TRUTH[1:]), 1),
        ((*TRUTH, at("grass stains", 500, 500)), 2),
        ((*TRUTH, at("the", 0, 0)), 1),
        # Two columns read as one line: its middle lies in neither, so both are missing and all of it is made up.
        ((at("the quiet water of silver", 0, 0, 300), TRUTH[1]), 3 + 2 + 5),
    ],
    ids=["nothing", "one wrong", "no space", "comma", "one more", "stray", "twice", "two columns as one"],
)
def test_wrong_missing_and_made_up_words_are_errors(read: tuple[Text, ...], errors: int) -> None:
    assert word_errors(TRUTH, read) == WordErrors(7, errors)
    assert sum(line.errors for line in line_errors(TRUTH, read)) == errors


def test_a_page_without_truth_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one word"):
        word_errors((), TRUTH)


def test_accuracy_is_over_all_words_and_not_the_mean_of_pages() -> None:
    assert total([WordErrors(10, 1), WordErrors(90, 0)]).accuracy == pytest.approx(0.99)


def test_the_gain_is_paired_by_page() -> None:
    ours = [WordErrors(100, errors) for errors in (1, 9, 1, 9)]
    theirs = [WordErrors(100, errors) for errors in (2, 10, 2, 10)]
    assert accuracy_gain(ours, theirs) == pytest.approx((0.01, 0.01, 0.01))  # the same on each: no spread
    gain, low, high = accuracy_gain(ours, theirs[::-1])
    assert gain == pytest.approx(0.01)
    assert low < 0 < high
    with pytest.raises(ValueError, match="got 4 and 3"):
        accuracy_gain(ours, theirs[:3])


def test_differing_lines_are_paired_in_order() -> None:
    assert differing_lines(["a", "b"], ["a", "b"]) == []
    assert differing_lines(["a", "b"], ["a", "c", "d"]) == [("b", "c"), ("", "d")]


# ---- the drawing ----


def test_a_drawing_holds_the_page_and_its_words_beside_it(tmp_path: Path) -> None:
    word = Word("water", 0.99, at("", 20, 30, 80, 40).corners)
    path = tmp_path / "below" / "page.png"
    draw_page(np.full((100, 200, 3), 255, np.uint8), [Line("water", 0.99, word.corners, (word,))], path)
    with Image.open(path) as file:
        picture = np.asarray(file.convert("RGB"), dtype=np.int16)
    assert picture.shape == (124, 436, 3)
    right = picture[12:112, 224:424]
    ink = np.abs(right - np.array(colour_of(0.99))).max(axis=2) < 40
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    assert 30 <= rows[0] < rows[-1] <= 70
    assert 20 <= columns[0] <= 30
    assert 90 <= columns[-1] <= 100


def test_words_are_coloured_by_how_sure_the_reader_is() -> None:
    assert len({colour_of(score) for score in (0.99, 0.9, 0.6)}) == 3
    assert colour_of(0.95) == colour_of(1.0)
    assert colour_of(float("nan")) == colour_of(0.0)


def test_an_empty_page_is_drawn_as_it_is(tmp_path: Path) -> None:
    draw_page(np.zeros((10, 20, 3), np.uint8), [], tmp_path / "empty.png")
    with Image.open(tmp_path / "empty.png") as file:
        assert file.size == (2 * 20 + 36, 34)


# ---- the networks ----


@pytest.mark.slow
def test_the_real_page_reads_as_rapidocr_reads_it_without_its_wrong_turn() -> None:
    lines = reader()(real_page())
    peer = RapidReader("onnxruntime").without_turning(real_page())
    assert [line.text for line in lines] == [line.text for line in peer]
    assert [line.text for line in lines][4] == "the markers are found at the two extreme parts of the"
    for ours, theirs in zip(lines, peer, strict=True):
        assert np.abs(ours.corners - theirs.corners).max() < 3


@pytest.mark.slow
def test_rendered_pages_read_as_well_as_rapidocr_reads_them(documents: list[Document]) -> None:
    peer = RapidReader("onnxruntime")
    ours, theirs = (
        total([word_errors(document.lines, read(document.pixels)) for document in documents[:2]])
        for read in (reader(), peer)
    )
    assert ours.accuracy > 0.97
    assert ours.accuracy >= theirs.accuracy - 0.005


@pytest.mark.slow
def test_words_lie_in_their_lines_and_lines_in_the_picture(documents: list[Document]) -> None:
    document = documents[1]
    height, width = document.pixels.shape[:2]
    lines = reader()(document.pixels)
    assert len(lines) >= len(document.lines) - 1
    for line in lines:
        assert line.text == " ".join(word.text for word in line.words)
        assert np.isfinite(line.corners).all()
        assert 0.5 <= line.score <= 1
        lefts = [float(word.corners[0, 0]) for word in line.words]
        assert lefts == sorted(lefts)
        for word in line.words:
            assert np.all(word.corners >= 0)
            assert np.all(word.corners <= (width, height))
            assert word.corners.min(axis=0)[0] >= line.corners.min(axis=0)[0] - 1
            assert word.corners.max(axis=0)[0] <= line.corners.max(axis=0)[0] + 1


@pytest.mark.slow
def test_a_page_held_upside_down_or_on_its_side_reads_the_same_lines() -> None:
    (document,) = rendered_documents(1, first=5)
    upright = {line.text for line in reader()(document.pixels)}
    for turn, least in ((cv2.ROTATE_180, 0.9), (cv2.ROTATE_90_CLOCKWISE, 0.9)):
        turned = {line.text for line in reader()(np.ascontiguousarray(cv2.rotate(document.pixels, turn)))}
        assert len(upright & turned) >= least * len(upright), turn


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (31, 33), (200, 300)], ids=str)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_picture_without_text_has_no_lines(size: tuple[int, int], level: int) -> None:
    assert reader()(np.full((*size, 3), level, np.uint8)) == ()


@pytest.mark.parametrize("compare", [main, compare_service.main])
def test_a_folder_without_engines_is_told_before_anything_is_read(
    compare: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "det.engine").touch()
    with pytest.raises(SystemExit) as ended:
        compare(["--engines", str(tmp_path)])
    assert ended.value.code == 2
    assert "expected at least one of PP-OCRv6_det_small.engine" in capsys.readouterr().err


@pytest.mark.slow
def test_the_comparison_reports_every_reader_and_leaves_pictures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main(["--documents", "1", "--first", "6", "--peers", "openvino", "--json", "--draw", str(tmp_path)])
    report = json.loads(capsys.readouterr().out)
    ours, peer = report["readers"]["ours"], report["readers"]["rapidocr openvino"]
    assert ours["words"] == peer["words"] == sum(ours["words_by_page"]) > 50
    assert ours["ours_better_by_points"] is None
    assert len(peer["ours_better_by_points"]) == 3
    assert [*report["ours_ms_by_step_median"]] == [
        "prepare",
        "detect",
        "boxes",
        "crops",
        "classify",
        "batches",
        "recognise",
        "words",
    ]
    assert report["real_page"]["rapidocr openvino, no classifier"]["lines"] == 7
    assert {path.name for path in tmp_path.iterdir()} == {"turned-006.png", "page.png"}
