"""The results of `replicas` as tables, figures, data and sentences. Nothing here measures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

import plotly.graph_objects as go

from benches.stories.replica_results import CONTEXTS, COPIES, PEER, PLAIN, Probes, Result, Results
from benches.stories.report import COLOURS, Table, short

_FULL: Final = 0.9
"""Of the cores busy: there is hardly anything left to take."""
_NOTABLE: Final = 0.1


def tables(found: Results) -> tuple[Table, ...]:
    gpu = any(each.gpu_memory_mb for each in found.rows)
    columns = (
        "arrangement", "pictures/s", "lowest–highest", "p50 ms", "p95 ms", "cores busy", "CPU ms a picture",
        "waits a picture", "taken off a core a picture", "crops a batch", "memory MB (PSS)", "same things",
        *(("GPU busy", "GPU memory MB") if gpu else ()),
    )  # fmt: skip
    rows = tuple(
        (
            each.arrangement.name, each.throughput, f"{each.lowest:.1f}–{each.highest:.1f}", each.p50_ms, each.p95_ms,
            each.cores_busy, each.cpu_ms, each.voluntary, each.involuntary, each.batch, each.memory_mb,
            each.agreement,
            *((each.gpu_busy, each.gpu_memory_mb) if gpu else ()),
        )
        for each in found.rows
    )  # fmt: skip
    made = [Table(f"Copies, contexts and peers: {found.networks}", columns, rows)]
    if found.probes is not None:
        probes = found.probes
        made.append(
            Table(
                "What cores share: processes that keep to a core each, by second of their CPU time",
                ("of each process", "alone", f"with one on each of {probes.cores} cores", "lost, %"),
                (
                    ("detector, calls/s", probes.network_alone, probes.network_together, 100 * probes.network_lost),
                    ("memory copied, GB/s", probes.copy_alone_gb, probes.copy_together_gb, 100 * probes.copy_lost),
                ),
            )
        )
    return tuple(made)


def figures(found: Results) -> tuple[go.Figure, ...]:
    names = [each.arrangement.name for each in found.rows]
    colours = {COPIES: COLOURS[1], CONTEXTS: COLOURS[0], PLAIN: COLOURS[6], PEER: COLOURS[7]}
    painted = [colours[each.arrangement.kind] for each in found.rows]

    def bars(title: str, axis: str, values: Sequence[float], texts: Sequence[str]) -> go.Figure:
        figure = go.Figure(go.Bar(x=list(values), y=names, orientation="h", marker_color=painted, text=list(texts)))
        figure.update_layout(
            title=title, xaxis_title=axis, showlegend=False, margin={"l": 420},
            height=max(360, 150 + 42 * len(names)), yaxis={"autorange": "reversed"},
        )  # fmt: skip
        return figure

    def numbers(values: Sequence[float]) -> list[str]:
        return [short(value) for value in values]

    throughput = [each.throughput for each in found.rows]
    memory = [each.memory_mb for each in found.rows]
    busy = [f"{each.cores_busy:.2f} of {found.cores} cores" for each in found.rows]
    return (
        bars("Pictures a second, and cores kept busy", "pictures/s", throughput,
             [f"{value:.1f}, {said}" for value, said in zip(throughput, busy, strict=True)]),
        bars("CPU time of a picture", "ms", [each.cpu_ms for each in found.rows],
             numbers([each.cpu_ms for each in found.rows])),
        bars("Memory of all processes", "MB (PSS)", memory, numbers(memory)),
    )  # fmt: skip


def data(found: Results) -> Mapping[str, object]:
    return {
        "cores": found.cores,
        "networks": found.networks,
        "arrangements": [asdict(each) | {"name": each.arrangement.name} for each in found.rows],
        "probes": asdict(found.probes) if found.probes is not None else None,
    }


# ---- sentences ----


def findings(found: Results) -> tuple[str, ...]:
    said = [*_copies(found), *_one_server(found), *_held_back(found), *_peer(found), *_caveats(found)]
    return tuple(said)


def _copies(found: Results) -> list[str]:
    base, most = found.best(COPIES, 1), found.best(COPIES, max(found.counts))
    if base is None or most is None or base is most:
        return []
    count = most.arrangement.copies
    memory = (most.memory_mb - base.memory_mb) / (count - 1)
    said = [
        f"{count} copies answer {most.throughput / base.throughput:.2f} times as much as one ({most.throughput:.1f} "
        f"and {base.throughput:.1f} pictures/s, each with its better number of threads); a copy more costs "
        f"{memory:.0f} MB."
    ]
    crowded = [each for each in found.of(COPIES, count) if each.arrangement.threads == found.cores]
    if crowded and crowded[0] is not most:
        (worst,) = crowded
        said.append(
            f"With as many threads as cores in each of {count} copies, as libraries start them, it is "
            f"{worst.throughput / base.throughput:.2f} times, p95 {worst.p95_ms:.0f} ms in place of {base.p95_ms:.0f}, "
            f"and a picture costs {worst.cpu_ms:.1f} ms of CPU in place of {base.cpu_ms:.1f}."
        )
    return said


def _one_server(found: Results) -> list[str]:
    ours = found.one_server
    several = [each for each in found.of(COPIES) if each.arrangement.copies > 1]
    if not several:
        return []
    best = max(several, key=lambda each: each.throughput)
    return [
        f"One server ({ours.arrangement.name}) answers {ours.throughput / best.throughput:.2f} times what the best of "
        f"several copies does ({best.arrangement.name}: {best.throughput:.1f} pictures/s), with p95 "
        f"{ours.p95_ms:.0f} ms against {best.p95_ms:.0f} and {ours.memory_mb:.0f} MB against {best.memory_mb:.0f}."
    ]


def _held_back(found: Results) -> list[str]:
    base, most = found.best(COPIES, 1), found.best(COPIES, max(found.counts))
    if base is None or most is None or base is most:
        return []
    said = []
    full = base.cores_busy / found.cores
    if full >= _FULL:
        said.append(
            f"Cores: one copy keeps {base.cores_busy:.2f} of {found.cores} busy already, so further copies share what "
            "there is."
        )
    else:
        said.append(
            f"Cores: one copy keeps {base.cores_busy:.2f} of {found.cores} busy, {most.arrangement.copies} copies keep "
            f"{most.cores_busy:.2f}; the client takes some of the rest."
        )
    said.append(_dearer(base, most))
    if found.probes is not None:
        said.append(_shared(found.probes, most))
    return said


def _dearer(base: Result, most: Result) -> str:
    grown = most.cpu_ms / base.cpu_ms - 1
    how = f"{100 * abs(grown):.0f} % {'more' if grown > 0 else 'less'}"
    switched = (
        f"threads are taken off a core {most.involuntary:.1f} times a picture against {base.involuntary:.1f}, and wait "
        f"{most.voluntary:.0f} times against {base.voluntary:.0f}"
    )
    return (
        f"Context switches: with {most.arrangement.copies} copies a picture costs {how} CPU time than with one "
        f"({most.cpu_ms:.1f} and {base.cpu_ms:.1f} ms); {switched}."
    )


def _shared(probes: Probes, most: Result) -> str:
    """Memory: what is lost without any software in common, and what reading the weights takes."""
    weights = probes.weights_mb * most.throughput / 1e3  # GB/s
    whole = probes.copy_together_gb * probes.cores
    lost = probes.network_lost
    verdict = "hardware that cores share holds it back" if lost >= _NOTABLE else "cores hardly disturb each other"
    return (
        f"Memory: the detector in a process of its own on each of {probes.cores} cores runs {_slower(lost)} than alone "
        f"({verdict}); a plain copy of memory runs {_slower(probes.copy_lost)}, {whole:.1f} GB/s together. "
        f"Reading the weights anew for each picture and each thing ({probes.weights_mb:.0f} MB a picture) "
        f"would take {weights:.2f} GB/s at {most.throughput:.1f} pictures/s, {100 * weights / whole:.0f} % of that."
    )


def _slower(lost: float) -> str:
    return f"{100 * abs(lost):.0f} % {'slower' if lost >= 0 else 'faster'}"


def _peer(found: Results) -> list[str]:
    best, plain = found.best(PEER), found.best(PLAIN)
    if best is None:
        return []
    ours = found.one_server
    said = [
        f"{PEER} answers {best.throughput:.1f} pictures/s at its best ({best.arrangement.name}, p95 "
        f"{best.p95_ms:.0f} ms, {best.memory_mb:.0f} MB); one server with engines "
        f"{ours.throughput / best.throughput:.2f} times that."
    ]
    if plain is not None:
        said.append(
            "On the same library in the same precision one server answers "
            f"{plain.throughput / best.throughput:.2f} times what {PEER} does at its best (p95 "
            f"{plain.p95_ms:.0f} ms against {best.p95_ms:.0f})."
        )
    return said


def _caveats(found: Results) -> list[str]:
    said = []
    failed = sum(each.failed for each in found.rows)
    if failed:
        said.append(f"{failed} requests failed.")
    others = max(each.others for each in found.rows)
    if others > _NOTABLE * found.cores:
        said.append(f"Other programs kept up to {others:.2f} of {found.cores} cores busy meanwhile: measure again.")
    least = min(each.agreement for each in found.rows)
    if least < 1:
        said.append(f"At least {100 * least:.0f} % of the things that the networks find in FP32 are found everywhere.")
    return said
