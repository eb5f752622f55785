"""Who takes part: each library in each precision, alone and at its best settings, and Penstock's engine.

Single candidates are what somebody would use who tuned one library by hand: static shapes, all cores, the latency hint.
INT8 files are made by the libraries' own tools at their defaults for a CPU, per channel, from the same calibration data
that Penstock gets. Called by `engine_cpu`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OURS = "penstock"
BASE = "ORT FP32"
REFERENCE = "reference"
TWINS = ("OpenVINO BF16", "OpenVINO FP16")
"""The same program twice where the processor has no FP16: what they differ by is what chance makes of equal ones."""


@dataclass(frozen=True)
class Contender:
    """One way to run a model, as data: it travels to the process that runs it."""

    name: str
    library: Literal["onnxruntime", "openvino", "penstock"]
    path: Path
    hint: str = ""
    """OpenVINO's INFERENCE_PRECISION_HINT; empty: its default on this machine."""
    optimised: bool = True
    """ONNX Runtime's graph optimisation; off for the reference that accuracy is told by."""


@dataclass(frozen=True)
class Files:
    """Where the forms of one model are; None where one could not be made."""

    source: Path
    int8_onnxruntime: Path | None
    int8_nncf: Path | None
    engine: Path | None


def reference(files: Files) -> Contender:
    return Contender(REFERENCE, "onnxruntime", files.source, optimised=False)


def contenders(files: Files) -> Iterator[Contender]:
    """The base first."""
    yield Contender(BASE, "onnxruntime", files.source)
    for hint, name in (("f32", "FP32"), ("bf16", "BF16"), ("f16", "FP16")):
        yield Contender(f"OpenVINO {name}", "openvino", files.source, hint)
    if files.int8_onnxruntime:
        yield Contender("ORT INT8", "onnxruntime", files.int8_onnxruntime)
        yield Contender("OpenVINO INT8 (ORT's Q/DQ)", "openvino", files.int8_onnxruntime, "f32")
    if files.int8_nncf:
        yield Contender("OpenVINO INT8 (NNCF)", "openvino", files.int8_nncf, "f32")
        yield Contender("OpenVINO INT8 (NNCF) + BF16", "openvino", files.int8_nncf, "bf16")
    if files.engine:
        yield Contender(OURS, "penstock", files.engine)
