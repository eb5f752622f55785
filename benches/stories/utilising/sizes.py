"""One engine for frames of 720p to 4K: its time at every shape, beside itself compiled for that shape alone and beside
ONNX Runtime, and whether it answers what FP32 answers.

The trained text detector of PP-OCRv6 on frames with pages of text at their own size over photographs. Sizes are
multiples of 32, as the detector wants them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benches.models.pictures import Side, crops, page
from benches.stories.utilising.engines import Built, Wish, built
from benches.stories.utilising.worker import Worker
from examples.ocr.model import DETECTOR, model_path
from penstock.engine.likeness import cosine

SIZES: Final[Mapping[str, tuple[int, int]]] = {
    "720p": (736, 1280),
    "1080p": (1088, 1920),
    "1440p": (1440, 2560),
    "4K": (2176, 3840),
}
"""Height and width: the standard's, up to the next multiple of 32."""

LEAST_COSINE: Final = 0.999
PLAIN, DYNAMIC, ALONE = "ONNX Runtime, FP32", "one engine for all", "compiled for this shape alone"
_PAGE: Final = 704
_LEARNT: Final = 4

Frame = NDArray[np.float32]  # [1, 3, height, width] in -1..1
Cosine = Callable[[NDArray[np.float64], NDArray[np.float64]], float]


@dataclass
class Size:
    name: str
    height: int
    width: int
    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    """By contender, a median for each turn."""

    cosines: dict[str, float] = field(default_factory=dict)
    """With ONNX Runtime in FP32."""

    def spent(self, contender: str) -> float:
        return median(self.milliseconds[contender])


@dataclass(frozen=True)
class Found:
    sizes: tuple[Size, ...]
    engine: Built
    peak_bytes: Mapping[str, int]
    """Of the processes that held each contender, by then."""


def wish(scale: float) -> Wish:
    """Without eight bits: the map that they answer differs by a hundredth, which only a metric of lines forgives."""
    shapes = ",".join(f"1x3x{height}x{width}" for height, width in (SIZES["720p"], SIZES["1080p"], SIZES["4K"]))
    return Wish(
        "detector", model_path(DETECTOR), f"x:{shapes}", 100 * scale, "bf16", accuracy=f"cosine>={LEAST_COSINE}"
    )


def frame(height: int, width: int, side: Side = Side.HELD_OUT, index: int = 0) -> Frame:
    """A photograph under pages of text."""
    pixels = crops(side, index + 1, (height, width))[index].copy()
    for row, top in enumerate(range(16, height - _PAGE, _PAGE + 32)):
        for column, left in enumerate(range(16 + 32 * row, width - _PAGE, _PAGE + 160)):
            pixels[top : top + _PAGE, left : left + _PAGE] = page(side, index + 3 * row + column, _PAGE)[:, :, ::-1]
    signed = pixels[:, :, ::-1].transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    return np.ascontiguousarray(signed)[None]


def learnt() -> list[dict[str, Frame]]:
    """Frames of the shapes that are common, none of which is measured: what programs of either are judged on."""
    shapes = [SIZES[name] for name in ("720p", "1080p")]
    return [{"x": frame(*shapes[at % 2], Side.CALIBRATION, at)} for at in range(_LEARNT)]


def measured(folder: Path, names: Sequence[str], seconds: float, rounds: int, scale: float) -> Found:
    engine = built(wish(scale), folder, learnt())
    sizes = [Size(name, *SIZES[name]) for name in names]
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker()) for name in (PLAIN, DYNAMIC, ALONE)}
        workers[PLAIN].load(model_path(DETECTOR), "onnxruntime")
        workers[DYNAMIC].load(engine.path)
        for each in sizes:
            _one_size(each, workers, engine, seconds, rounds)
        peaks = {name: worker.memory().peak for name, worker in workers.items()}
    return Found(tuple(sizes), engine, peaks)


def _one_size(size: Size, workers: Mapping[str, Worker], engine: Built, seconds: float, rounds: int) -> None:
    inputs = {"x": frame(size.height, size.width)}
    workers[ALONE].load(engine.path, alone={"x": inputs["x"].shape})
    answers = {name: next(iter(worker.answer(inputs).values())) for name, worker in workers.items()}
    for name in (DYNAMIC, ALONE):
        size.cosines[name] = cosine(
            answers[PLAIN].reshape(1, -1).astype(np.float64), answers[name].reshape(1, -1).astype(np.float64)
        )
    for turn in range(rounds):
        for name in list(workers)[:: 1 if turn % 2 == 0 else -1]:
            size.milliseconds.setdefault(name, []).append(workers[name].time(inputs, seconds, 2))
