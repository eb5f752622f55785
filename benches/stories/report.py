"""What a story found, in the forms people read: Markdown in the terminal, a page, a picture, and everything as JSON.

    publish(Story(...), Path(".stories"))

Promises: the tables are printed before anything is written; the JSON has no NaN (null stands for what was not
measured) and says which machine it was; the page needs no network; the picture shows the page's figures, one below the
other, and where it can't be drawn (kaleido and a chromium are needed) that is said and the rest is there. Without
plotly, as on a machine that is lent, there is the JSON alone.
"""

import importlib.util
import io
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benches.stories.machine import described, machine

if TYPE_CHECKING:
    import plotly.graph_objects as go

DEFAULT_FOLDER: Final = Path(".stories")
COLOURS: Final = ("#2f5fb3", "#e07b24", "#3a9d5d", "#b8405e", "#7a57b8", "#8a6d3b", "#4aa3b8", "#6b7280")
"""Of the lines and bars of a figure, in order; told apart by those who see red and green alike, too."""

_WIDTH, _HEIGHT, _SCALE = 1400, 640, 1.5
_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1440px; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-bottom: 1.5rem }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #e3e7ec } th { color: #52606d }
td.words, th.words { text-align: left } .machine { color: #52606d; font-size: 14px }
"""

Cell = str | float | int


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: a row of {len(row)} cells under {len(self.columns)} columns")


@dataclass(frozen=True)
class Story:
    name: str
    """Of its script and of the files that are written."""

    title: str
    asks: str
    """The question, one or two sentences."""

    tables: tuple[Table, ...]
    figures: "tuple[go.Figure, ...]"
    """Each with titles and units on its axes; size, font and background are set by `publish`."""

    findings: tuple[str, ...]
    """Sentences computed from what was measured."""

    data: Mapping[str, object]
    """All that was measured, JSON-able."""


def short(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def publish(story: Story, folder: Path, facts: Mapping[str, object] | None = None) -> None:
    """Prints the story and writes folder/NAME.json, .html and .png. Raises OSError where the folder can't be had.

    facts  of the machine that it was measured on, where that was another one: what `machine` says there.
    """
    facts = facts or machine()
    print(markdown(story, facts), flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / story.name
    place.with_suffix(".json").write_text(
        json.dumps(document(story, facts), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    written = [place.with_suffix(".json").name]
    if importlib.util.find_spec("plotly") is None:
        print("no page and no picture: plotly is not installed", file=sys.stderr)
    else:
        figures = [_laid_out(figure) for figure in story.figures]
        place.with_suffix(".html").write_text(page(story, figures, facts))
        written.append(place.with_suffix(".html").name)
        if figures and _draw(figures, place.with_suffix(".png")):
            written.append(place.with_suffix(".png").name)
    print(f"{folder}: {', '.join(written)}", file=sys.stderr)


# ---- words ----


def markdown(story: Story, facts: Mapping[str, object]) -> str:
    parts = [f"# {story.title}", story.asks, f"Machine: {described(facts)}."]
    parts += [f"**{table.title}**\n\n{markdown_table(table)}" for table in story.tables]
    if story.findings:
        parts.append("\n".join(f"* {each}" for each in story.findings))
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """Words to the left, numbers to the right."""
    rows = [[shown(cell) for cell in row] for row in table.rows]
    marks = [":--" if words else "--:" for words in _of_words(table)]
    lines = [list(table.columns), marks, *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def shown(cell: Cell) -> str:
    """Three or four figures of a number; a dash for what is none."""
    if isinstance(cell, str | int):
        return str(cell)
    if not math.isfinite(cell):
        return "–"
    size = abs(cell)
    places = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 or size == 0 else 3
    return f"{cell:.{places}f}"


def _of_words(table: Table) -> list[bool]:
    """For each column, whether a cell of it is no number."""
    return [any(isinstance(row[at], str) for row in table.rows) for at in range(len(table.columns))]


# ---- data ----


def document(story: Story, facts: Mapping[str, object]) -> dict[str, object]:
    return {
        "name": story.name,
        "title": story.title,
        "asks": story.asks,
        "machine": _finite(facts),
        "findings": list(story.findings),
        "tables": [
            {"title": each.title, "columns": list(each.columns), "rows": [_finite(row) for row in each.rows]}
            for each in story.tables
        ],
        "data": _finite(story.data),
    }


def _finite(value: Any) -> Any:
    """The same, with None for numbers that are none, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ---- page and picture ----


def page(story: Story, figures: "list[go.Figure]", facts: Mapping[str, object]) -> str:
    """Self-contained HTML."""
    drawn = [figure.to_html(full_html=False, include_plotlyjs=at == 0) for at, figure in enumerate(figures)]
    findings = "".join(f"<li>{escape(each)}</li>" for each in story.findings)
    return "\n".join(
        [
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(story.title)}</title>',
            f"<style>{_STYLE}</style></head><body><h1>{escape(story.title)}</h1><p>{escape(story.asks)}</p>",
            f"<ul>{findings}</ul>" if findings else "",
            *drawn,
            *(f"<h2>{escape(table.title)}</h2>{_html_table(table)}" for table in story.tables),
            f'<p class="machine">{escape(described(facts))}</p></body></html>\n',
        ]
    )


def _html_table(table: Table) -> str:
    kinds = [' class="words"' if words else "" for words in _of_words(table)]
    heads = "".join(f"<th{kind}>{escape(each)}</th>" for kind, each in zip(kinds, table.columns, strict=True))
    rows = (
        "".join(f"<td{kind}>{escape(shown(cell))}</td>" for kind, cell in zip(kinds, row, strict=True))
        for row in table.rows
    )
    return f"<table><tr>{heads}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _laid_out(figure: "go.Figure") -> "go.Figure":
    """A copy, readable at a glance and alike in all stories; what the story set itself stays."""
    import plotly.graph_objects as go

    laid = go.Figure(figure)
    own = laid.layout
    laid.update_layout(
        template="plotly_white", paper_bgcolor="white", plot_bgcolor="white",
        width=own.width or _WIDTH, height=own.height or _HEIGHT,
        font={"size": own.font.size or 17, "color": "#1f2933"},
        colorway=own.colorway or COLOURS,
        showlegend=True if own.showlegend is None else own.showlegend,
        margin={"l": own.margin.l or 90, "r": own.margin.r or 40, "t": own.margin.t or 90, "b": own.margin.b or 80},
    )  # fmt: skip
    return laid


def _draw(figures: "list[go.Figure]", place: Path) -> bool:
    """One picture of all, one below the other; whether it could be drawn."""
    try:
        drawn = [figure.to_image(format="png", scale=_SCALE) for figure in figures]
    # Of kaleido and of the browser that it starts, each with errors of its own; the figures are in the page as well.
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"no picture: {said} (it takes kaleido and chromium)", file=sys.stderr)
        return False
    place.write_bytes(drawn[0] if len(drawn) == 1 else _stacked(drawn))
    return True


def _stacked(drawn: list[bytes]) -> bytes:
    from PIL import Image

    parts = [Image.open(io.BytesIO(each)).convert("RGB") for each in drawn]
    whole = Image.new("RGB", (max(each.width for each in parts), sum(each.height for each in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    written = io.BytesIO()
    whole.save(written, format="PNG")
    return written.getvalue()
