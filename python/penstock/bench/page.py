"""What was measured as one page: the curve of latency over throughput, and a table of the levels.

Drawn by plotly, whose script is inside: the page needs no network. Called by `penstock bench --html`.
"""

from collections.abc import Sequence
from html import escape
from typing import Any, Final

from penstock.bench.measuring import Measured, Settings
from penstock.bench.report import split_us
from penstock.errors import Unsupported

_COLOURS: Final = {50: "#5b8def", 95: "#f2994a", 99: "#c0392b"}
_PARTS: Final = {
    "queue": "#f2c94c",
    "compute_input": "#bdd7ff",
    "compute_infer": "#5b8def",
    "compute_output": "#2f5fb3",
    "overhead": "#c9ced6",
}
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1080px; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #e3e7ec } th { color: #52606d }
td.words { text-align: left } .unstable { color: #c0392b }
"""


def page(found: Sequence[Measured], settings: Settings, title: str) -> str:
    """Self-contained HTML. Raises Unsupported where plotly is not installed."""
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise Unsupported("--html draws with plotly, which is not installed: pip install 'penstock[report]'") from None
    curve, split = _curve(go, found), _split(go, found)
    figures = [curve.to_html(full_html=False, include_plotlyjs=True)]
    if split is not None:
        figures.append(split.to_html(full_html=False, include_plotlyjs=False))
    counted = f"p{settings.percentile}" if settings.percentile else "average latency"
    return "\n".join(
        [
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
            f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>",
            f"<p>Three windows of {settings.window_seconds:g} s alike to {100 * settings.stability:g} % in throughput "
            f"and {counted}. In an open loop latency counts from when a request was due.</p>",
            *figures,
            _table(found),
            "</body></html>",
        ]
    )


def _curve(go: Any, found: Sequence[Measured]) -> Any:
    figure = go.Figure()
    names = [_name(each) for each in found]
    for percentile, colour in _COLOURS.items():
        figure.add_scatter(
            x=[each.throughput for each in found],
            y=[each.latency.percentiles[percentile] / 1000 for each in found],
            mode="lines+markers+text" if percentile == 99 else "lines+markers",
            text=names, textposition="top center", name=f"p{percentile}", line={"color": colour},
        )  # fmt: skip
    figure.update_layout(
        template="plotly_white", height=460, margin={"t": 30}, xaxis_title="inferences a second",
        yaxis_title="latency, ms", yaxis_rangemode="tozero", xaxis_rangemode="tozero",
    )  # fmt: skip
    return figure


def _split(go: Any, found: Sequence[Measured]) -> Any | None:
    """Where a request's time goes in the server."""
    known = [(each, split_us(each.server)) for each in found if each.server is not None and each.requests]
    if not known:
        return None
    figure = go.Figure()
    names = [_name(each) for each, _ in known]
    for part, colour in _PARTS.items():
        milliseconds = [spent[part] / 1000 for _, spent in known]
        figure.add_bar(x=names, y=milliseconds, name=part.replace("_", " "), marker_color=colour)
    outside = [max(0.0, each.latency.mean - sum(spent.values())) / 1000 for each, spent in known]
    figure.add_bar(x=names, y=outside, name="outside the server", marker_color="#e3e7ec")
    figure.update_layout(
        template="plotly_white", height=380, margin={"t": 30}, barmode="stack", yaxis_title="average request, ms",
        xaxis_type="category", xaxis_title=found[0].mode,
    )  # fmt: skip
    return figure


def _name(found: Measured) -> str:
    return f"{found.level:g}"


def _table(found: Sequence[Measured]) -> str:
    heads = (found[0].mode if found else "", "infer/s", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "p99 since sent ms",
             "requests", "failed", "")  # fmt: skip
    rows = [f"<tr>{''.join(f'<th>{escape(each)}</th>' for each in heads)}</tr>"]
    for each in found:
        latency = [f"{each.latency.percentiles[name] / 1000:.2f}" for name in (50, 90, 95, 99)]
        numbers = (_name(each), f"{each.throughput:.1f}", *latency, f"{each.since_sent.percentiles[99] / 1000:.2f}",
                   str(each.requests), str(each.failed + each.unsent))  # fmt: skip
        words = "; ".join(filter(None, ["" if each.stable else "unstable", each.saturated]))
        cells = "".join(f"<td>{text}</td>" for text in numbers)
        rows.append(f'<tr>{cells}<td class="words unstable">{escape(words)}</td></tr>')
    return f"<table>{''.join(rows)}</table>"
