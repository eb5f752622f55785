"""Figures and tables of what was measured on a GPU. Pure."""

from collections.abc import Mapping
from typing import Any, Final

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benches.stories.report import Story, Table
from benches.stories.utilising import eight_bits, memory
from benches.stories.utilising.gpu_findings import comparable, findings, held

_MIB: Final = 2**20
Drawn = tuple[Table, go.Figure]


def story(found: Mapping[str, Any]) -> Story:
    draw = {"bits": _bits, "shapes": _shapes, "batches": _batches}
    drawn = [draw[part](found[part]) for part in draw if part in found]
    return Story(
        "utilisation_gpu", f"Full use of a GPU: {found.get('gpu', found['device'])}",
        "What do narrow numbers, one engine for many shapes and the right batch win on a GPU?",
        tuple(table for table, _ in drawn), tuple(figure for _, figure in drawn), tuple(findings(found)), found,
    )  # fmt: skip


def _bits(bits: Mapping[str, Any]) -> Drawn:
    contenders, batches = bits["contenders"], [str(batch) for batch in eight_bits.BATCHES]
    columns = [column for batch in batches for column in (f"call ms, batch {batch}", "compute ms", "device MiB")]
    rows = tuple(
        (
            name,
            each["precision"],
            *(
                value
                for row in (each["by_batch"][batch] for batch in batches)
                for value in (row["milliseconds"], row["compute"], held(row) / _MIB)
            ),
            100 * each["accuracy"],
            each["build_seconds"],
        )
        for name, each in contenders.items()
    )
    table = Table(
        f"Text recogniser, 48 x 320: characters read rightly on {bits['lines']} lines",
        ("", "precision", *columns, "characters %", "build s"), rows,
    )  # fmt: skip
    names = list(contenders)
    figure = go.Figure(
        [
            go.Bar(name=f"batch {at}", x=names, y=[contenders[name]["by_batch"][at]["compute"] for name in names])
            for at in batches
        ]
    )
    figure.update_layout(title="Computing by precision", yaxis_title="ms of the GPU a call", barmode="group")
    return table, figure


def _shapes(shapes: Mapping[str, Any]) -> Drawn:
    rows = shapes["sizes"]
    table = Table(
        "One detector engine from 720p to 4K",
        ("frame", "shape", "call ms", "compute ms", "built alone, compute ms", "device MiB", "cosine with FP32"),
        tuple(
            (
                each["name"], each["shape"], each["one engine"]["milliseconds"], each["one engine"]["compute"],
                each["alone"]["compute"] if "alone" in each else "–", held(each["one engine"]) / _MIB,
                f"{each['cosine']:.6f}",
            )
            for each in rows
        ),
    )  # fmt: skip
    names = [each["name"] for each in rows]
    alone = [each["alone"]["compute"] if "alone" in each else None for each in rows]
    figure = go.Figure(
        [
            go.Bar(name="one engine for all", x=names, y=[each["one engine"]["compute"] for each in rows]),
            go.Bar(name="built for this shape alone", x=names, y=alone),
        ]
    )
    figure.update_layout(title="A frame through one engine of 720p to 4K", yaxis_title="ms of the GPU a frame")
    return table, figure


def _batches(batches: Mapping[str, Any]) -> Drawn:
    rows = {int(batch): row for batch, row in batches["by_batch"].items()}
    table = Table(
        "Text recogniser by batch",
        ("batch", "kernels", "call ms", "compute ms", "lines/s, calls", "lines/s, compute", "device MiB"),
        tuple(
            (
                batch, "tuned" if row["tuned"] else "plain", row["milliseconds"], row["compute"],
                1000 * batch / row["milliseconds"], 1000 * batch / row["compute"], held(row) / _MIB,
            )
            for batch, row in rows.items()
        ),
    )  # fmt: skip
    alike = comparable(rows)
    rest = {batch: row for batch, row in rows.items() if batch not in alike}
    line = memory.fitted({batch: held(row) for batch, row in alike.items()})
    figure = make_subplots(1, 2, subplot_titles=("lines/s", "memory of the device, MiB"))
    for name, key in (("computing alone", "compute"), ("whole calls", "milliseconds")):
        rates = [1000 * batch / row[key] for batch, row in alike.items()]
        figure.add_trace(go.Scatter(name=name, x=list(alike), y=rates), 1, 1)
    if rest:
        slow = [1000 * batch / row["compute"] for batch, row in rest.items()]
        crosses = {"symbol": "x", "size": 11}
        figure.add_trace(
            go.Scatter(name="computing, not tuned", x=list(rest), y=slow, mode="markers", marker=crosses), 1, 1
        )
    dots = [held(row) / _MIB for row in rows.values()]
    figure.add_trace(go.Scatter(name="memory", x=list(rows), y=dots, mode="markers", marker={"size": 10}), 1, 2)
    fitted = [line.at(batch) / _MIB for batch in rows]
    figure.add_trace(
        go.Scatter(name="memory, fitted", x=list(rows), y=fitted, mode="lines", line={"dash": "dot"}), 1, 2
    )
    figure.update_xaxes(title="batch", type="log", tickvals=list(rows))
    figure.update_layout(title="Batches on a GPU")
    return table, figure
