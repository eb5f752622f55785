"""What the tracker's story says of its figures: tables, bars, findings. Pure but for plotly, which may be missing.

Called by `tracker`.
"""

import importlib.util
import math
from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from benches.stories.report import COLOURS, Story, Table, short
from benches.stories.tracker_results import (
    BASE,
    EAGER,
    ENGINE,
    NO_GRAPH,
    TIE,
    Measured,
    Rows,
    Way,
    batches,
    best,
    plain,
    speed_up,
    to_data,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TOLD: Final = {1: 2.5, 8: 1.6}
"""What a conversion to TensorRT is reported to have gained: 40 to 16 ms at batch 1, 160 to 100 at batch 8."""

_POSSIBLE: Final = 3.0
"""From here on it is what that report calls possible."""


def story(measured: Measured) -> Story:
    gpu = measured.device != "cpu"
    return Story(
        "tracker",
        f"A tracker's conversion, on {measured.machine.get('cpu', 'a CPU') if not gpu else measured.device}",
        "A tracker in PyTorch became an engine and gained 2.5 times at batch 1, but 1.6 at batch 8, where 3 to 5 were "
        "called possible. What do precision, fixed shapes, several requests under way and the rest bring?",
        tuple(_tables(measured, gpu)),
        tuple(_figures(measured)) if importlib.util.find_spec("plotly") else (),
        tuple(findings(measured)),
        to_data(measured),
    )


# ---- tables ----


def _tables(measured: Measured, gpu: bool) -> Iterator[Table]:
    yield _ways(measured, gpu)
    if measured.rows:
        rows = tuple((each.rows, each.built_for, median(each.turns_ms)) for each in measured.rows)
        yield Table("One shape or a range of them", ("rows of a call", "engine built for", "ms"), rows)
    if measured.flights:
        yield Table(
            "One by one, or several under way",
            (
                "requests of one row", "contexts", "handed over before waiting", "per second",
                "p50 ms until the answer is taken", "p99 ms",
            ),
            tuple((each.way, each.contexts, each.ahead, each.per_second, each.p50_ms, each.p99_ms)
                  for each in measured.flights),
        )  # fmt: skip
    if measured.splits:
        yield Table(
            "Where a call's time goes, ms",
            ("engine", "batch", "enqueue", "host to device", "compute", "device to host", "latency"),
            tuple((each.way, each.batch, each.enqueue, each.copy_in, each.compute, each.copy_out, each.latency)
                  for each in measured.splits),
        )  # fmt: skip


def _ways(measured: Measured, gpu: bool) -> Table:
    judged = "error against FP32" if gpu else "cosine with FP32"
    rows = []
    for batch in batches(measured.ways):
        first = plain(measured.ways, batch)
        for each in (way for way in measured.ways if way.batch == batch):
            gain = speed_up(each, first) if first else math.nan
            said = each.lost or (each.note if each.accurate else f"INACCURATE {each.note}")
            rows.append((each.name, batch, each.milliseconds, gain, _likeness(each, gpu), said))
    return Table("Eager and engine", ("way", "batch", "ms", "times faster", judged, "note"), tuple(rows))


def _likeness(way: Way, gpu: bool) -> str:
    if math.isnan(way.likeness):
        return "–"
    return f"{way.likeness:.1e}" if gpu else f"{way.likeness:.6f}"


# ---- findings ----


def findings(measured: Measured) -> Iterator[str]:
    for batch in batches(measured.ways):
        yield from _gain(measured, batch)
    yield from _falls(measured)
    yield from _precisions(measured)
    yield from _graphs(measured)
    yield from _shapes(measured.rows)
    yield from _flights(measured)
    yield from _splits(measured)
    if measured.absent:
        yield "Not measured: " + "; ".join(measured.absent) + "."


def _gain(measured: Measured, batch: int) -> Iterator[str]:
    first, engine = plain(measured.ways, batch), best(measured.ways, batch, ENGINE)
    if first is None or engine is None:
        return
    gain = speed_up(engine, first)
    text = f"Batch {batch}: {first.name} {_ms(first)} ms, {engine.name} {_ms(engine)} ms, {gain:.1f} times faster"
    if first.name.startswith(EAGER) and batch in _TOLD:
        held = "inside or above" if gain >= _POSSIBLE else "below"
        text += f" ({_TOLD[batch]:g} in the report; {held} the 3 to 5 called possible)"
    starts = (EAGER, "torch.compile", "CUDA graph", BASE)
    rivals = [way for start in starts if (way := best(measured.ways, batch, start))]
    fastest = min(rivals, key=lambda way: way.milliseconds, default=None)
    if fastest is not None and fastest.name != first.name:
        beside = speed_up(engine, fastest)
        verdict = "faster" if beside >= 1 + TIE else "no slower" if beside >= 1 - TIE else "slower"
        others = f"{fastest.name}, {_ms(fastest)} ms"
        text += f"; {verdict} than the best of the others ({others}): {beside:.2f} times"
    yield text + "."


def _ms(way: Way) -> str:
    return f"{way.milliseconds:.0f}" if way.milliseconds >= 100 else f"{way.milliseconds:.3g}"


def _falls(measured: Measured) -> Iterator[str]:
    """Whether the gain shrinks with the batch, as in the report, and which side's time says why."""
    known = batches(measured.ways)
    found = [(plain(measured.ways, each), best(measured.ways, each, ENGINE)) for each in known[:1] + known[1:][-1:]]
    pairs = [(first, engine) for first, engine in found if first and engine]
    if len(pairs) < 2:
        return
    (first, engine), (later_first, later_engine) = pairs
    gain, later = speed_up(engine, first), speed_up(later_engine, later_first)
    how = "shrinks" if later < gain * (1 - TIE) else "grows" if later > gain * (1 + TIE) else "stays"
    yield (
        f"From batch {known[0]} to {known[-1]} the gain {how}, {gain:.1f} to {later:.1f} times: for "
        f"{known[-1] // known[0]} times the rows {first.name} takes "
        f"{later_first.milliseconds / first.milliseconds:.1f} times as long and the engine "
        f"{later_engine.milliseconds / engine.milliseconds:.1f} times."
    )


def _precisions(measured: Measured) -> Iterator[str]:
    for batch in batches(measured.ways):
        first = best(measured.ways, batch, ENGINE, "FP32")
        if first is None:
            continue
        others = [way for name in ("TF32", "BF16", "FP16", "INT8") if (way := best(measured.ways, batch, ENGINE, name))]
        if others:
            said = ", ".join(f"{each.precision} {speed_up(each, first):.2f}" for each in others)
            yield f"Batch {batch}, times faster than the engine in FP32: {said}."


def _graphs(measured: Measured) -> Iterator[str]:
    """What launching every kernel from the host costs."""
    for batch in batches(measured.ways):
        of_batch = [way for way in measured.ways if way.batch == batch]
        off = next((way for way in of_batch if way.counts and way.name.endswith(NO_GRAPH)), None)
        on = best([way for way in of_batch if way is not off], batch, ENGINE, off.precision) if off else None
        if off and on:
            ratio = speed_up(on, off)
            yield f"Batch {batch}: launched kernel by kernel the engine takes {ratio:.1f} times as long as one graph."


def _shapes(rows: tuple[Rows, ...]) -> Iterator[str]:
    """What a range costs where there is an engine of that shape; else what padding to the next one costs."""
    fixed = {each.rows: each for each in rows if "to" not in each.built_for.split()}
    padded: list[str] = []
    for each in rows:
        if each in fixed.values():
            continue
        if (own := fixed.get(each.rows)) is not None:
            ratio = median(slow / fast for fast, slow in zip(own.turns_ms, each.turns_ms, strict=False))
            yield (
                f"A call of {each.rows}: the engine for {each.built_for} takes {ratio:.2f} times what the one for "
                f"{own.built_for} does."
            )
        elif larger := [count for count in fixed if count > each.rows]:
            ratio = median(each.turns_ms) / median(fixed[min(larger)].turns_ms)
            padded.append(f"{each.rows} rows {ratio:.2f} times a call of {min(larger)}")
    if padded:
        yield f"Rows that no shape was prepared for: {', '.join(padded)}."


def _flights(measured: Measured) -> Iterator[str]:
    if not measured.flights:
        return
    one = next((each for each in measured.flights if each.contexts == 1 and each.ahead == 1), None)
    most = max(measured.flights, key=lambda each: each.per_second)
    if one is not None and most is not one:
        yield (
            f"Requests of one row: {short(one.per_second)} a second when each is waited for, {short(most.per_second)} "
            f"with {most.way} ({most.per_second / one.per_second:.2f} times); a request then takes {most.p50_ms:.3g} "
            f"ms for {one.p50_ms:.3g}."
        )


def _splits(measured: Measured) -> Iterator[str]:
    for each in measured.splits:
        copies = each.copy_in + each.copy_out
        if copies:
            share = 100 * copies / (copies + each.compute)
            yield f"Batch {each.batch}: copies are {share:.0f} % of what the device does for a call ({each.way})."


# ---- figures ----


def _figures(measured: Measured) -> "Iterator[go.Figure]":
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    known = batches(measured.ways)
    if known:
        titles = [f"batch {each}" for each in known]
        figure: Any = make_subplots(rows=1, cols=len(known), subplot_titles=titles, horizontal_spacing=0.22)
        for column, batch in enumerate(known, 1):
            shown = [way for way in measured.ways if way.batch == batch and way.counts][::-1]
            first = plain(measured.ways, batch)
            labels = [f"{_ms(way)} ms, {speed_up(way, first):.1f} x" if first else "" for way in shown]
            figure.add_trace(
                go.Bar(
                    x=[way.milliseconds for way in shown], y=[way.name for way in shown], orientation="h", text=labels,
                    textposition="outside", cliponaxis=False, showlegend=False,
                    marker_color=[COLOURS[0] if way.name.startswith(ENGINE) else COLOURS[7] for way in shown],
                ),
                row=1, col=column,
            )  # fmt: skip
            most = max((way.milliseconds for way in shown), default=1.0)
            figure.update_xaxes(title="milliseconds of a call", range=[0, 1.45 * most], row=1, col=column)
        height = 200 + 44 * max(sum(way.batch == each for way in measured.ways) for each in known)
        figure.update_layout(title="A step of the tracker's search branch", height=height, margin_l=250)
        yield figure
    if measured.flights:
        figure = go.Figure(
            go.Bar(
                x=[each.way for each in measured.flights], y=[each.per_second for each in measured.flights],
                text=[f"{short(each.per_second)}/s, p50 {each.p50_ms:.3g} ms" for each in measured.flights],
                textposition="outside", cliponaxis=False, showlegend=False, marker_color=COLOURS[2],
            )
        )  # fmt: skip
        figure.update_layout(title="Requests of one row", yaxis_title="requests per second")
        yield figure
