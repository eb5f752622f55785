"""The story of contexts as tables and figures. Needs plotly. Called by `contexts`."""

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benches.stories import report
from benches.stories.contexts_results import SHARED, Cell, Measured, best, findings
from benches.stories.machine import described
from benches.stories.report import COLOURS, Story, Table

_COLUMNS = (
    "way", "contexts", "at once", "asked", "wrong", "missing", "failed", "least cosine", "right/s", "p50 ms", "p99 ms",
)  # fmt: skip


def publish(measured: Sequence[Measured], folder: Path) -> None:
    report.publish(story(measured), folder)


def story(measured: Sequence[Measured]) -> Story:
    return Story(
        name="contexts",
        title="Concurrency that is right: contexts are not shared, and their best number is found",
        asks=(
            "An image tower (ViT-B/32 of open_clip's shape) is asked by 5, 50 and 500 callers at once. What goes wrong "
            "when threads share an execution context, what keeps every answer right, and how many contexts are best?"
        ),
        tables=tuple(table for each in measured for table in (_ways(each), _settings(each))),
        figures=tuple(figure(each) for each in measured),
        findings=tuple(said for each in measured for said in findings(each)),
        data={each.device: each.as_json() for each in measured},
    )


def _ways(measured: Measured) -> Table:
    title = (
        f"{measured.device} ({described(measured.machine)}): answers judged by {measured.reference} (cosine ≥ 0.999; "
        f"no two pictures closer than {measured.closest:.3f}). The first three ways: {measured.library}, batch 1; the "
        f"others: an engine of {measured.engine}"
    )
    return Table(title, _COLUMNS, tuple(_row(each) for each in measured.cells))


def _row(cell: Cell) -> tuple[str | float | int, ...]:
    least = cell.least if cell.right else float("nan")
    return (
        cell.way, str(cell.setting), cell.in_flight, cell.asked, cell.wrong, cell.missing, cell.failed,
        f"{least:.5f}", cell.throughput, cell.p50_ms, cell.p99_ms,
    )  # fmt: skip


def _settings(measured: Measured) -> Table:
    top = best(measured.swept)
    turns = max(len(each.throughputs) for each in measured.swept)
    return Table(
        f"{measured.device}: contexts tried in turns, {measured.swept_in_flight} requests in flight over HTTP",
        ("contexts", *(f"turn {turn + 1}, right/s" for turn in range(turns)), "median", ""),
        tuple(
            (str(each.setting), *each.throughputs, each.median, "best" if each is top else "")
            for each in measured.swept
        ),
    )


def figure(measured: Measured) -> go.Figure:
    """Left: the share of answers that are wrong; middle: right answers a second; right: what was tried."""
    drawn = make_subplots(
        rows=1, cols=3, column_widths=[0.3, 0.42, 0.28],
        subplot_titles=("wrong answers, %", "right answers a second", "contexts, right answers a second"),
    )  # fmt: skip
    levels = sorted({each.in_flight for each in measured.cells})
    ways = list(dict.fromkeys(each.way for each in measured.cells))
    top = best(measured.swept)
    for way, colour in zip(ways, COLOURS, strict=False):
        cells = {each.in_flight: each for each in measured.of(way) if _compared(each, top.contexts)}
        shown = [level for level in levels if level in cells]
        at = [f"{level} at once" for level in shown]
        wrong = [100 * cells[level].wrong / max(1, cells[level].asked) for level in shown]
        rates = [cells[level].throughput for level in shown]
        for column, heights in ((1, wrong), (2, rates)):
            drawn.add_bar(
                x=at, y=heights, name=way, marker_color=colour, legendgroup=way, showlegend=column == 1,
                text=[f"{height:.0f}" for height in heights], textposition="outside", cliponaxis=False,
                textfont={"size": 11}, textangle=0, constraintext="none", row=1, col=column,
            )  # fmt: skip
    drawn.add_bar(
        x=[str(each.contexts) for each in measured.swept], y=[each.median for each in measured.swept], showlegend=False,
        marker_color=[COLOURS[2] if each is top else COLOURS[7] for each in measured.swept],
        text=[f"{each.median:.0f}" for each in measured.swept], textposition="outside", cliponaxis=False,
        row=1, col=3,
    )  # fmt: skip
    drawn.update_xaxes(title_text=f"contexts, {measured.swept_in_flight} requests in flight", type="category", col=3)
    drawn.update_layout(
        title=f"{measured.device}: one tower, many callers", barmode="group",
        legend={"orientation": "h", "y": -0.2}, margin={"t": 110, "b": 150},
    )  # fmt: skip
    return drawn


def _compared(cell: Cell, contexts: int) -> bool:
    """Of settings that were tried, the best one's stands for its way; those of one library have one each."""
    return cell.way.startswith(("one", "a context", SHARED)) or cell.contexts == contexts
