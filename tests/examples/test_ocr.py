"""The OCR example: its lines, its metric, its reading of class scores, and the real recogniser on all of them.

The server and the client part are covered by the demonstration itself, which checks every answer.
"""

import io
import json
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from PIL import Image

from examples.ocr import reader, texts
from examples.ocr.client import Answer, Batches, Run
from examples.ocr.lines import PAGE_LINES, Line, page_lines, rendered_lines
from examples.ocr.metrics import character_error_rate, edit_distance, line_accuracies
from examples.ocr.model import alphabet_of, line_reader, recogniser, recogniser_path
from examples.ocr.terminal import Style, picture_rows

ALPHABET = ("", "a", "b", "c", " ")


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return rendered_lines()


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), 255).save(file, "PNG")
    return file.getvalue()


def readings_of(lines: Sequence[Line], batch: int = 8) -> list[str]:
    recognise, alphabet = recogniser()
    encoded = [line.encoded for line in lines]
    starts = range(0, len(encoded), batch)
    return [one.text for start in starts for one in reader.read(encoded[start : start + batch], recognise, alphabet)]


def test_the_same_seed_renders_the_same_bytes_and_another_seed_does_not() -> None:
    assert rendered_lines(12) == rendered_lines(12)
    assert rendered_lines(12)[:6] == rendered_lines(6)
    assert all(a.encoded != b.encoded for a, b in zip(rendered_lines(12), rendered_lines(12, seed=1), strict=True))


def test_half_of_the_lines_are_plain_and_half_are_hard(lines: list[Line]) -> None:
    kinds = [line.kind for line in lines]
    assert len(lines) >= 300
    assert kinds.count("plain") == kinds.count("hard") == len(lines) / 2
    assert len({line.name for line in lines}) == len(lines)


def test_every_character_of_every_text_is_one_the_recogniser_can_answer() -> None:
    known = set(alphabet_of(recogniser_path()))
    random = np.random.default_rng(0)
    for _ in range(2_000):
        text = texts.line_of_text(random)
        assert set(text) <= known
        assert text == " ".join(text.split())


@pytest.mark.parametrize(
    ("truth", "reading", "edits"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("abc", "abc", 0),
        ("kitten", "sitting", 3),
        ("No. 7", "No.7", 1),
        ("ab", "ba", 2),
        ("12,50", "12.50", 1),
    ],
)
def test_edit_distance_counts_insertions_deletions_and_substitutions(truth: str, reading: str, edits: int) -> None:
    assert edit_distance(truth, reading) == edits
    assert edit_distance(reading, truth) == edits


def test_character_error_rate_divides_all_edits_by_all_characters() -> None:
    # 1 edit in 4 characters and 0 in 6: 1 / 10, where the mean of the lines' rates would be 0.125.
    assert character_error_rate(["abcd", "abcdef"], ["abxd", "abcdef"]) == pytest.approx(0.1)
    assert character_error_rate(["ab"], ["abcdef"]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="got none"):
        character_error_rate([""], ["a"])


def test_each_line_is_scored_between_0_and_1() -> None:
    assert line_accuracies(["abcd", "ab", ""], ["abxd", "uvwxyz", ""]).tolist() == [0.75, 0.0, 1.0]


@pytest.mark.parametrize(
    ("classes", "chances", "text", "score"),
    [
        ([0, 0, 0], [0.9, 0.9, 0.9], "", 0.0),
        ([1, 1, 0, 1, 2], [0.5, 0.1, 0.9, 0.7, 0.9], "aab", 0.7),
        ([0, 3, 3, 4, 4, 3, 0], [1.0, 0.8, 0.2, 1.0, 0.2, 0.6, 1.0], "c c", 0.8),
        ([1], [0.25], "a", 0.25),
    ],
)
def test_ctc_merges_repeats_drops_blanks_and_averages_the_first_of_each_run(
    classes: list[int], chances: list[float], text: str, score: float
) -> None:
    reading = reader.greedy_ctc(np.array(classes), np.array(chances, np.float32), ALPHABET)
    assert reading.text == text
    assert reading.score == pytest.approx(score)


def test_lines_of_near_width_share_a_call_and_far_ones_do_not() -> None:
    assert reader.groups_of_near_width([]) == []
    assert reader.groups_of_near_width([400]) == [[0]]
    assert reader.groups_of_near_width([800, 200, 808, 204]) == [[1, 3], [0, 2]]


@pytest.mark.parametrize(("rows", "groups"), [(1, [[1], [2], [0]]), (2, [[1], [2, 0]]), (3, [[1, 2, 0]])], ids=str)
def test_a_call_has_no_more_lines_than_its_runtime_likes(rows: int, groups: list[list[int]]) -> None:
    assert reader.groups_of_near_width([500, 490, 499], reader.Calls(rows=rows)) == groups


@pytest.mark.parametrize(
    ("step", "widths"), [(8, [160, 160, 168, 400, 408]), (64, [192, 192, 192, 448, 448])], ids=["any", "few"]
)
def test_a_runtime_meets_only_widths_of_its_step_and_none_too_narrow(step: int, widths: list[int]) -> None:
    calls = reader.Calls(step=step)
    assert [calls.width(width) for width in (1, 160, 161, 400, 401)] == widths


def test_no_grouping_by_cutting_the_sorted_widths_is_cheaper() -> None:
    def cost(groups: Sequence[Sequence[int]]) -> int:
        widest = [max(calls.width(widths[member]) for member in group) for group in groups]
        return sum(calls.overhead + len(group) * width for group, width in zip(groups, widest, strict=True))

    calls = reader.ANY_WIDTH
    random = np.random.default_rng(0)
    for _ in range(20):
        widths = random.integers(100, 900, size=7).tolist()
        order = sorted(range(7), key=widths.__getitem__)
        every = []
        for cuts in range(2**6):
            groups = [[order[0]]]
            for place in range(6):
                if cuts >> place & 1:
                    groups.append([])
                groups[-1].append(order[place + 1])
            every.append(cost(groups))
        found = reader.groups_of_near_width(widths)
        assert sorted(member for group in found for member in group) == list(range(7))
        assert cost(found) == min(every)


@pytest.mark.parametrize("calls", [reader.ANY_WIDTH, reader.Calls(step=64, rows=1)], ids=["together", "alone"])
def test_answers_come_in_the_order_of_the_pictures_whatever_their_widths(calls: reader.Calls) -> None:
    def width_as_text(pictures: reader.Floats) -> tuple[reader.Classes, reader.Floats]:
        """Class 1 for wide pictures, 2 for narrow ones, told from the pixels of each row."""
        classes = [[1 if np.count_nonzero(picture[0, 0]) > 500 else 2] * 3 for picture in pictures]
        return np.array(classes), np.ones((len(pictures), 3), np.float32)

    images = [png(width, 48) for width in (900, 100, 700, 120, 110, 950)]
    readings = reader.read(images, width_as_text, ALPHABET, calls)
    assert [one.text for one in readings] == ["a", "b", "a", "b", "b", "a"]


def test_a_batch_is_centred_on_zero_and_padded_with_zero() -> None:
    white = np.full((48, 100, 3), 255, np.uint8)
    batch = reader.as_batch([white, np.zeros((48, 203, 3), np.uint8)])
    assert batch.shape == (2, 3, 48, 208)
    assert (batch[0, :, :, :100] == 1).all()
    assert (batch[0, :, :, 100:] == 0).all()
    assert (batch[1, :, :, :203] == -1).all()


def test_channels_are_blue_green_red() -> None:
    file = io.BytesIO()
    Image.new("RGB", (96, 48), (255, 0, 10)).save(file, "PNG")
    assert reader.scaled_line(file.getvalue())[0, 0].tolist() == [10, 0, 255]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "expected a PNG or JPEG file, got 0 bytes"),
        (b"not a picture", "expected a PNG or JPEG file, got 13 bytes"),
        (b"GIF89a" + bytes(100), "expected a PNG or JPEG file"),
        (png(300, 48)[:60], "do not decode|neither"),
        (png(8_000, 20), "the limit is 3200"),
        (png(5_000, 4_000), "over 16000000 pixels"),
    ],
)
def test_an_unusable_picture_is_refused_with_the_reason(image: bytes, reason: str) -> None:
    with pytest.raises(reader.UnreadableImageError, match=reason):
        reader.scaled_line(image)


def test_a_picture_is_turned_upright_before_it_is_measured() -> None:
    file = io.BytesIO()
    orientation = Image.Exif()
    orientation[0x0112] = 6  # held upright, to be turned a quarter: the EXIF standard's Orientation tag
    Image.new("RGB", (48, 200)).save(file, "JPEG", exif=orientation)
    assert reader.scaled_line(file.getvalue()).shape == (48, 200, 3)


def test_batches_are_counted_from_one_moment_to_another() -> None:
    grown = Batches({1: 5, 8: 7, 4: 1}).since(Batches({1: 3, 4: 1}))
    assert grown.counts == {1: 2, 8: 7}
    assert grown.mean == pytest.approx(58 / 9)


def test_failed_requests_count_neither_as_throughput_nor_as_latency() -> None:
    run = Run((Answer("a", 1.0, 0.1), Answer("", 0.0, 9.0, "line-1: gone"), Answer("b", 1.0, 0.3)), seconds=2.0)
    assert run.errors == ["line-1: gone"]
    assert run.lines_per_second == 1.0
    assert run.latency_ms(50) == pytest.approx(200)


@pytest.mark.parametrize("style", list(Style))
def test_a_picture_in_the_terminal_is_never_wider_than_asked(style: Style) -> None:
    for line in rendered_lines(4):
        rows = picture_rows(line.encoded, 60, style)
        cells = [row.count("\u2580") if style is Style.COLOUR else len(row) for row in rows]
        assert 0 < max(cells) <= 60
        assert len(set(cells)) == 1
    assert style is not Style.ASCII or set("".join(rows)) == {" ", "#"}


@pytest.mark.slow
def test_plain_lines_are_read_all_but_perfectly_and_hard_ones_mostly(lines: list[Line]) -> None:
    readings = readings_of(lines)
    for kind, limit in (("plain", 0.005), ("hard", 0.2)):
        mine = [(line.text, reading) for line, reading in zip(lines, readings, strict=True) if line.kind == kind]
        rate = character_error_rate([truth for truth, _ in mine], [reading for _, reading in mine])
        assert rate <= limit, f"{kind}: CER {rate:.3%}"


@pytest.mark.slow
def test_page_lines_are_read_as_rapidocr_reads_them() -> None:
    rapidocr = pytest.importorskip("rapidocr", reason="the reference reader; make setup installs it")
    pipeline = rapidocr.RapidOCR(params={"Global.log_level": "critical"})
    page = page_lines()
    for line, mine in zip(page, readings_of(page), strict=True):
        pixels = cv2.imdecode(np.frombuffer(line.encoded, np.uint8), cv2.IMREAD_COLOR)
        # The recogniser alone: the whole pipeline scales small pictures up before it.
        reference = pipeline._load_rec_model()(rapidocr.ch_ppocr_rec.TextRecInput(img=[pixels]))
        assert mine == reference.txts[0] == line.text


def test_page_boxes_lie_inside_the_page() -> None:
    for entry in json.loads(PAGE_LINES.read_text(encoding="utf-8"))["lines"]:
        x0, y0, x1, y1 = entry["box"]
        assert 0 <= x0 < x1 <= 384
        assert 0 <= y0 < y1 <= 191


@pytest.mark.slow
def test_the_model_answers_text_and_score_for_every_row() -> None:
    page = page_lines()[:2]
    images = np.array([[line.encoded] for line in page], dtype=object)
    answer = line_reader()(images)
    assert answer["text"].tolist() == [[line.text.encode()] for line in page]
    assert answer["score"].shape == (2, 1)
    assert answer["score"].dtype == np.float32
    assert (answer["score"] > 0.9).all()


@pytest.mark.slow
def test_the_model_refuses_a_batch_that_holds_a_broken_picture() -> None:
    images = np.array([[page_lines()[0].encoded], [b"broken"]], dtype=object)
    with pytest.raises(reader.UnreadableImageError, match="got 6 bytes"):
        line_reader()(images)
