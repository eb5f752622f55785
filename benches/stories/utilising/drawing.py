"""Figures and tables of the story. Pure."""

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benches.stories.report import COLOURS, Table
from benches.stories.utilising import batches, eight_bits, memory, sizes
from benches.stories.utilising.layers import Counted

_MIB = 2**20


def layers(found: Sequence[Counted]) -> tuple[Table, go.Figure]:
    table = Table(
        "Layers and the regions that they are executed in",
        ("model", "nodes", "layers", "regions", "layers a region"),
        tuple((each.model, each.nodes, each.layers, each.regions, each.fewer) for each in found),
    )
    names = [each.model for each in found]
    figure = go.Figure(
        [
            go.Bar(name="layers", x=names, y=[each.layers for each in found], text=[each.layers for each in found]),
            go.Bar(name="regions", x=names, y=[each.regions for each in found], text=[each.regions for each in found]),
        ]
    )
    figure.update_layout(title="Layers before, regions after", barmode="group", yaxis_title="count")
    return table, figure


def eight(found: eight_bits.Found) -> tuple[Table, go.Figure]:
    rows = [
        (
            each.name,
            each.precision,
            *(each.per_second(batch) for batch in eight_bits.BATCHES),
            100 * each.accuracy,
            each.path.stat().st_size / _MIB,
            *((held.now / _MIB for held in (each.served.ready, each.served.asked)) if each.served else (0.0, 0.0)),
        )
        for each in found.contenders
    ]
    per_batch = tuple(f"lines/s, batch {batch}" for batch in eight_bits.BATCHES)
    table = Table(
        f"Text recogniser, 48 x 320: characters read rightly on {found.lines} lines",
        ("", "precision", *per_batch, "characters %", "file MiB", "served, ready MiB", "after requests MiB"),
        tuple(rows),
    )
    figure = make_subplots(1, 3, subplot_titles=("lines/s", "characters read rightly, %", "serving process, MiB"))
    names = [each.name for each in found.contenders]
    for batch in eight_bits.BATCHES:
        rates = [each.per_second(batch) for each in found.contenders]
        figure.add_trace(go.Bar(name=f"batch {batch}", x=names, y=rates), 1, 1)
    scores = [100 * each.accuracy for each in found.contenders]
    figure.add_trace(go.Scatter(name="accuracy", x=names, y=scores, mode="markers", marker={"size": 14}), 1, 2)
    held = [each.served.asked.now / _MIB if each.served else 0.0 for each in found.contenders]
    figure.add_trace(go.Bar(name="memory", x=names, y=held), 1, 3)
    figure.update_yaxes(range=[min(scores) - 1, 100.2], row=1, col=2)
    figure.update_layout(title="Eight bits against 32")
    return table, figure


def shapes(found: sizes.Found) -> tuple[Table, go.Figure]:
    ways = (sizes.PLAIN, sizes.ALONE, sizes.DYNAMIC)
    table = Table(
        f"One detector engine ({found.engine.precision}) from {found.sizes[0].name} to {found.sizes[-1].name}",
        ("frame", "shape", *(f"{way}, ms" for way in ways), "any shape / one shape", "cosine with FP32"),
        tuple(
            (
                each.name,
                f"1x3x{each.height}x{each.width}",
                *(each.spent(way) for way in ways),
                each.spent(sizes.DYNAMIC) / each.spent(sizes.ALONE),
                f"{each.cosines[sizes.DYNAMIC]:.6f}",
            )
            for each in found.sizes
        ),
    )
    names = [each.name for each in found.sizes]
    figure = go.Figure([go.Bar(name=way, x=names, y=[each.spent(way) for each in found.sizes]) for way in ways])
    figure.update_layout(title="A frame through one engine of 720p to 4K", yaxis_title="ms a frame", barmode="group")
    return table, figure


def sweep(found: Sequence[batches.Sweep], available: int) -> tuple[Table, go.Figure]:
    measured = sorted({batch for each in found for batch in each.rates})
    columns = [column for each in found for column in (f"{each.runtime}, pictures/s", "peak MiB")]
    rows = [
        (batch, *(value for each in found for value in (each.rates[batch], each.peaks[batch] / _MIB)))
        for batch in measured
    ]
    table = Table(
        f"EfficientNet-Lite0 by batch, {available / _MIB:.0f} MiB available", ("batch", *columns), tuple(rows)
    )
    figure = make_subplots(1, 2, subplot_titles=("pictures/s", "highest memory of the process, MiB"))
    for each, colour in zip(found, COLOURS, strict=False):
        rates, peaks = [each.rates[at] for at in measured], [each.peaks[at] / _MIB for at in measured]
        line, dots = {"color": colour}, {"color": colour, "size": 10}
        figure.add_trace(go.Scatter(name=each.runtime, x=measured, y=rates, line=line), 1, 1)
        figure.add_trace(
            go.Scatter(name=f"{each.runtime}, memory", x=measured, y=peaks, mode="markers", marker=dots), 1, 2
        )
        fitted = [each.line.at(at) / _MIB for at in measured]
        dotted = {"color": colour, "dash": "dot"}
        figure.add_trace(
            go.Scatter(name=f"{each.runtime}, fitted", x=measured, y=fitted, mode="lines", line=dotted), 1, 2
        )
    figure.update_xaxes(title="batch", type="log", tickvals=measured)
    figure.update_layout(
        title="Best batch: " + ", ".join(f"{each.runtime} {memory.best(each.rates)}" for each in found)
    )
    return table, figure
