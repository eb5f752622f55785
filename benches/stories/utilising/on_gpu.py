"""The story on an NVIDIA GPU, by `ps.build(device="cuda:0")`: one folder of models and inputs, and no network.

`prepare`, on a machine that can render lines and pages, writes the folder; `measured` needs torch, ONNX and NumPy, and
answers what JSON can hold. Memory is the device's, as the engine counts it. What a call takes is a whole call, arrays
in and arrays out; `compute` is the GPU's part of it, by its own clock.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import cv2
import numpy as np
from numpy.typing import NDArray

import penstock as ps
from benches.stories.utilising import eight_bits, memory, sizes
from benches.stories.utilising.engines import Built, Wish, built
from benches.stories.utilising.reading import GATE, Run, Scores, scores
from examples.ocr.model import DETECTOR, RECOGNISER, alphabet_of, model_path
from examples.ocr.samples import Batch
from penstock.build import Metric
from penstock.build.paired import drop_of
from penstock.build.timing import Load, measure
from penstock.engine import Engine
from penstock.engine.likeness import cosine
from penstock.engine.runtimes.base import InDeviceMemory

BATCHES: Final = (1, 8, 32, 128)
"""Few, so that all of them are tuned."""
ALONE: Final = ("4K",)
"""Sizes that an engine is built for alone, to compare with."""

TUNED: Final = "tuned"
_QUALITY: Final = 95
_LINES: Final = "lines.npz"
_LEARNT: Final = 48
"""Lines that calibrate."""

Floats = NDArray[np.float32]


# ---- what travels ----


def prepare(folder: Path) -> list[str]:
    """Writes the folder, some 40 MB; answers the names of what is in it."""
    from benches.models.pictures import Side
    from examples.ocr import samples
    from examples.ocr.metrics import held_out

    folder.mkdir(parents=True, exist_ok=True)
    for name in (RECOGNISER, DETECTOR):
        shutil.copyfile(model_path(name), folder / name)
    judged = held_out(samples.HELD_OUT, short=True)
    learnt = list(samples.calibration(_LEARNT, short=True))
    texts = json.dumps([text for batch in judged for text in batch.texts]).encode()
    np.savez_compressed(
        folder / _LINES,
        held_out=_bytes(np.concatenate([each.pictures for each in judged])),
        calibration=_bytes(np.concatenate([each.pictures for each in learnt])),
        texts=np.frombuffer(texts, np.uint8),
    )
    for name, (height, width) in sizes.SIZES.items():
        _save_frame(folder / f"{name}.jpg", sizes.frame(height, width))
        _save_frame(folder / f"{name}-learnt.jpg", sizes.frame(height, width, Side.CALIBRATION))
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def _bytes(pictures: Floats) -> NDArray[np.uint8]:
    return np.asarray(np.rint((pictures + 1) * 127.5), np.uint8)


def _floats(pixels: NDArray[np.uint8]) -> Floats:
    return np.ascontiguousarray(pixels.astype(np.float32) / 127.5 - 1)


def _save_frame(path: Path, frame: Floats) -> None:
    pixels = _bytes(frame[0]).transpose(1, 2, 0)
    path.write_bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes())


def _frame(path: Path) -> Floats:
    pixels = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR), np.uint8)
    return _floats(pixels.transpose(2, 0, 1))[None]


# ---- measuring ----


def measured(
    folder: Path, out: Path, seconds: float, scale: float, device: str, parts: Sequence[str]
) -> dict[str, Any]:
    """`folder`: what `prepare` wrote; `scale`: of the budgets, some two minutes in all."""
    found: dict[str, Any] = {"device": device, "gpu": _name(device)}
    if "bits" in parts:
        found["bits"] = _bits(folder, out, seconds, scale, device)
    if "shapes" in parts:
        found["shapes"] = _shapes(folder, out, seconds, scale, device)
    if "batches" in parts:
        found["batches"] = _batches(folder, out, seconds, scale, device)
    return found


class _Lines:
    """What was prepared for the recogniser."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / _LINES, allow_pickle=False) as arrays:
            texts = json.loads(arrays["texts"].tobytes())
            self.pictures, self.learnt = _floats(arrays["held_out"]), _floats(arrays["calibration"])
        self.letters = alphabet_of(folder / RECOGNISER)
        self.batches = [Batch(tuple(texts[at : at + 8]), self.pictures[at : at + 8]) for at in range(0, len(texts), 8)]

    def gate(self) -> Metric:
        """Judges builds by the first lines."""
        return Metric(self._first, eight_bits.DROP, "reading:gate")

    def _first(self, run: Run) -> Scores:
        return scores(run, self.batches[: GATE // 8], self.letters)

    def unseen(self, run: Run) -> Scores:
        return scores(run, self.batches[GATE // 8 :], self.letters)


def _bits(folder: Path, out: Path, seconds: float, scale: float, device: str) -> dict[str, Any]:
    model, lines, shapes = folder / RECOGNISER, _Lines(folder), eight_bits.SHAPES
    gate, wide = lines.gate(), "cosine>=0.999"
    wishes = {
        name: Wish(
            f"gpu-recogniser-{name}", model, shapes, budget * scale, name, eight_bits.BATCHES, accuracy=judge,
            reduce=eight_bits.REDUCE, device=device,
        )
        for name, budget, judge in (("fp32", 8, wide), ("auto", 40, gate))
    }  # fmt: skip
    samples = [{"x": lines.learnt[at : at + 8]} for at in range(0, len(lines.learnt), 8)]
    contenders, judged = {}, {}
    for name, wish in wishes.items():
        made = built(wish, out, samples if name == "auto" else None)
        engine = cast("Engine", ps.load(made.path))
        judged[name] = lines.unseen(lambda arrays, own=engine: own(**arrays))  # type: ignore[misc]
        contenders[name] = {
            **_of(made),
            "accuracy": float(judged[name].mean()),
            "by_batch": {
                str(batch): _timed(engine, {"x": lines.pictures[:batch]}, seconds) for batch in eight_bits.BATCHES
            },
        }
        engine.close()
    drop = drop_of(judged["fp32"], judged["auto"])
    return {"contenders": contenders, "drop": drop.mean, "drop_at_most": drop.upper, "lines": len(judged["fp32"])}


def _shapes(folder: Path, out: Path, seconds: float, scale: float, device: str) -> dict[str, Any]:
    model = folder / DETECTOR
    each_shape = {name: f"x:1x3x{height}x{width}" for name, (height, width) in sizes.SIZES.items()}
    learnt = [{"x": _frame(folder / f"{name}-learnt.jpg")} for name in sizes.SIZES]
    many = built(
        Wish("gpu-detector", model, tuple(each_shape.values()), 25 * scale, "fp16", device=device), out, learnt
    )
    engine = cast("Engine", ps.load(many.path))
    plain = ps.load(model)
    rows = []
    for name, shape in each_shape.items():
        inputs = {"x": _frame(folder / f"{name}.jpg")}
        expected, answer = (next(iter(run(**inputs).values())) for run in (plain, engine))
        row: dict[str, Any] = {
            "name": name,
            "shape": shape.removeprefix("x:"),
            "cosine": cosine(expected.reshape(1, -1).astype(np.float64), answer.reshape(1, -1).astype(np.float64)),
            "one engine": _timed(engine, inputs, seconds),
        }
        if name in ALONE:
            one = built(Wish(f"gpu-detector-{name}", model, shape, 8 * scale, "fp16", device=device), out, [inputs])
            alone = cast("Engine", ps.load(one.path))
            row["alone"] = _timed(alone, inputs, seconds)
            alone.close()
        rows.append(row)
    engine.close()
    return {"engine": _of(many), "sizes": rows}


def _batches(folder: Path, out: Path, seconds: float, scale: float, device: str) -> dict[str, Any]:
    lines = _Lines(folder)
    shapes = f"x:1x3x48x320,32x3x48x320,{max(BATCHES)}x3x48x320"
    wish = Wish(
        "gpu-recogniser-batches", folder / RECOGNISER, shapes, 35 * scale, "fp16", BATCHES, accuracy=lines.gate(),
        reduce=eight_bits.REDUCE, device=device,
    )  # fmt: skip
    made = built(wish, out)
    engine = cast("Engine", ps.load(made.path))
    rows = {
        str(batch): _timed(engine, {"x": lines.pictures[np.arange(batch) % len(lines.pictures)]}, seconds)
        for batch in BATCHES
    }
    engine.close()
    return {"engine": _of(made), "by_batch": rows, "available_bytes": _device_bytes(device)}


def _timed(engine: Engine, inputs: Mapping[str, Floats], seconds: float) -> dict[str, float]:
    """Milliseconds of a call and of its computing, and bytes on the device of the program that ran."""
    report = measure(engine, inputs, Load(duration_seconds=seconds), ())
    found = {"milliseconds": report.latency.median}
    if report.phases is not None:
        found["compute"] = report.phases.compute.median
    at = engine.route(inputs).steps[0].program
    found["tuned"] = float(TUNED in dict(engine.manifest.programs[at].tactic.options).values())
    program = engine.compiled(at)
    if isinstance(program, InDeviceMemory):
        held = program.device_memory()
        found |= {"weights": held.weights, "program": held.program, "context": held.context}
    return found


def _of(made: Built) -> dict[str, Any]:
    return {
        "precision": made.precision,
        "file_bytes": made.file_bytes,
        "build_seconds": made.seconds,
        "programs": list(made.programs),
        "int8": made.int8,
        "accuracy_gate": made.accuracy,
        "notes": list(made.notes),
    }


def _name(device: str) -> str:
    if device == "cpu":
        return device
    import torch

    return str(torch.cuda.get_device_name(device))


def _device_bytes(device: str) -> int:
    if device == "cpu":
        return memory.available()
    import torch

    return int(torch.cuda.mem_get_info(device)[1])
