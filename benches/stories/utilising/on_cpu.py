"""The story on a CPU: each part measured, drawn and told."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import plotly.graph_objects as go

from benches.stories.report import Story, Table
from benches.stories.utilising import batches, drawing, eight_bits, findings, layers, memory, sizes
from examples.ocr.model import CLASSIFIER, DETECTOR, RECOGNISER, model_path


class Told:
    """What the parts found, in order."""

    def __init__(self) -> None:
        self.tables: list[Table] = []
        self.figures: list[go.Figure] = []
        self.findings: list[str] = []
        self.data: dict[str, Any] = {}

    def add(self, part: str, drawn: tuple[Table, go.Figure], said: Sequence[str], data: Any) -> None:
        table, figure = drawn
        self.tables.append(table)
        self.figures.append(figure)
        self.findings += said
        self.data[part] = data


def story(options: argparse.Namespace) -> Story:
    told = Told()
    measure = {"layers": _layers, "bits": _bits, "shapes": _shapes, "batches": _batches}
    for part in dict.fromkeys(options.parts):
        print(f"{part} ...", file=sys.stderr, flush=True)
        measure[part](told, options)
    return Story(
        "utilisation", "Full use of the machine",
        "What do fusion, eight bits, shapes that vary and the right batch win, and what do they cost?",
        tuple(told.tables), tuple(told.figures), tuple(told.findings), told.data,
    )  # fmt: skip


def _layers(told: Told, options: argparse.Namespace) -> None:
    packaged = [model_path(name) for name in (DETECTOR, RECOGNISER, CLASSIFIER)]
    found = layers.counted([*sorted(options.lab.glob("*.onnx")), *packaged])
    told.add("layers", drawing.layers(found), findings.of_layers(found), [asdict(each) for each in found])


def _bits(told: Told, options: argparse.Namespace) -> None:
    found = eight_bits.measured(options.out / "utilisation", options.seconds, options.rounds, options.budget_scale)
    told.add("bits", drawing.eight(found), findings.of_eight_bits(found), found.to_json())


def _shapes(told: Told, options: argparse.Namespace) -> None:
    found = sizes.measured(
        options.out / "utilisation", options.sizes, options.seconds, options.rounds, options.budget_scale
    )
    data = {
        "sizes": [asdict(each) for each in found.sizes],
        "engine": {**asdict(found.engine), "path": found.engine.path.name},
        "peak_bytes": dict(found.peak_bytes),
    }
    told.add("shapes", drawing.shapes(found), findings.of_sizes(found), data)


def _batches(told: Told, options: argparse.Namespace) -> None:
    path = options.lab / f"{batches.MODEL}.onnx"
    if not path.is_file():
        told.findings.append(f"Batches were not measured: {path.name} is not here (benches/models/export_torch.py).")
        return
    available = memory.available()
    found = batches.measured(path, options.batches, options.seconds)
    data = {"available_bytes": available, "sweeps": [asdict(each) for each in found]}
    told.add("batches", drawing.sweep(found, available), findings.of_batches(found, available), data)
