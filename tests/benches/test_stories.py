"""What a story writes: tables in words, everything as JSON, one page; the picture only where it can be drawn."""

import json
import math
import struct
from pathlib import Path

import plotly.graph_objects as go
import pytest

from benches.stories import report
from benches.stories.report import Story, Table, markdown_table, publish

TABLE = Table("Ways", ("way", "infer/s", "p95 ms"), (("plain", 100, 12.345), ("a|b", 1234.5, math.nan)))


def story(*figures: go.Figure) -> Story:
    return Story(
        "sample", "A <sample>", "Which way is faster?", (TABLE,), figures, ("b is 12.3 times a.",),
        {"ways": {"plain": [1.0, math.inf]}},
    )  # fmt: skip


def bars(title: str) -> go.Figure:
    figure = go.Figure()
    figure.add_bar(x=["2", "4"], y=[1, 2], name="plain")
    return figure.update_layout(title=title, xaxis_title="requests at once", yaxis_title="infer/s")


def test_numbers_stand_right_and_words_left_and_what_is_none_is_a_dash() -> None:
    assert markdown_table(TABLE).splitlines() == [
        "| way | infer/s | p95 ms |",
        "| :-- | --: | --: |",
        "| plain | 100 | 12.35 |",
        r"| a\|b | 1234 | – |",
    ]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells under 3 columns"):
        Table("Ways", ("a", "b", "c"), (("plain", 1),))


def test_all_is_written_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_draw", lambda *_: False)
    publish(story(bars("One"), bars("Two")), tmp_path / "new")
    said = capsys.readouterr()
    assert "| plain | 100 | 12.35 |" in said.out
    assert "* b is 12.3 times a." in said.out
    found = json.loads((tmp_path / "new" / "sample.json").read_text())
    assert found["data"] == {"ways": {"plain": [1.0, None]}}
    assert found["tables"][0]["rows"][1] == ["a|b", 1234.5, None]
    assert found["machine"]["cores"] >= 1
    text = (tmp_path / "new" / "sample.html").read_text()
    assert "A &lt;sample&gt;" in text
    assert text.count("Plotly.newPlot(") >= 2
    assert "<script src=" not in text


def test_a_figure_keeps_what_its_story_set() -> None:
    own = bars("One").update_layout(height=900)
    laid = report._laid_out(own)
    assert (laid.layout.height, laid.layout.width, laid.layout.paper_bgcolor) == (900, 1400, "white")
    assert own.layout.width is None


def test_without_a_browser_the_rest_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> bytes:
        raise RuntimeError("no browser here\nand more")

    monkeypatch.setattr(go.Figure, "to_image", refuse)
    publish(story(bars("One")), tmp_path)
    assert "no picture: no browser here (it takes" in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["sample.html", "sample.json"]


@pytest.mark.slow
def test_the_picture_has_all_figures(tmp_path: Path) -> None:
    publish(story(bars("One"), bars("Two")), tmp_path)
    place = tmp_path / "sample.png"
    if not place.is_file():
        pytest.skip("no chromium here")
    width, height = struct.unpack(">II", place.read_bytes()[16:24])
    assert width >= 1200
    assert height >= 2 * 600


@pytest.mark.parametrize(
    ("value", "text"), [(0.0874, "0.0874"), (3.0, "3"), (999.2, "999"), (999.6, "1,000"), (32494.0, "32,494")]
)
def test_numbers_in_pictures_have_no_exponents(value: float, text: str) -> None:
    assert report.short(value) == text
