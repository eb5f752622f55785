"""Eight bits against 32: speed, accuracy by what is read, and memory of the process that serves.

The trained recogniser of PP-OCRv6 at 48 x 320. Before: the model as it is by ONNX Runtime, and the fastest FP32
engine. After: the fastest engine that misreads at most 0.7 % more of the characters, calibrated on other lines; which
precision that is, the build decides.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import penstock as ps
from benches.stories.utilising import reading
from benches.stories.utilising.engines import Built, Wish, built
from benches.stories.utilising.served import Held, held
from benches.stories.utilising.worker import Worker
from examples.ocr import samples
from examples.ocr.metrics import held_out
from examples.ocr.model import recogniser_path
from penstock.build.paired import drop_of

BATCHES: Final = (1, 8)
SHAPES: Final = "x:1x3x48x320,8x3x48x320,8x3x48x320"
REDUCE: Final = ("fetch_name_0:argmax@2",)
DROP: Final = 0.007
"""What the report that this story follows lost: 0.7 % of accuracy."""

PLAIN, FP32, AUTO = "as it is", "engine, fp32", "engine, auto"


@dataclass
class Contender:
    name: str
    path: Path
    precision: str
    milliseconds: dict[int, list[float]] = field(default_factory=dict)
    """By batch, a median for each turn."""

    accuracy: float = 0.0
    """Share of characters read rightly, the mean over lines."""

    served: Held | None = None

    def per_second(self, batch: int) -> float:
        """Lines."""
        return 1000 * batch / median(self.milliseconds[batch])


@dataclass(frozen=True)
class Found:
    contenders: tuple[Contender, ...]
    drop: float
    """Of the accuracy of `auto` against FP32."""

    drop_at_most: float
    """With 95 % confidence."""

    lines: int
    engines: Mapping[str, Built]

    def contender(self, name: str) -> Contender:
        return next(each for each in self.contenders if each.name == name)

    def to_json(self) -> dict[str, Any]:
        return {
            "contenders": [{**asdict(each), "path": each.path.name} for each in self.contenders],
            "drop": self.drop,
            "drop_at_most": self.drop_at_most,
            "lines": self.lines,
            "engines": {name: {**asdict(each), "path": each.path.name} for name, each in self.engines.items()},
        }


def wishes(scale: float) -> Mapping[str, Wish]:
    """`scale`: of the budgets."""
    model = recogniser_path()
    return {
        FP32: Wish("recogniser-fp32", model, SHAPES, 40 * scale, "fp32", BATCHES, reduce=REDUCE),
        AUTO: Wish(
            "recogniser-auto", model, SHAPES, 150 * scale, "auto", BATCHES,
            "examples.ocr.metrics:short_calibration_lines",
            f"benches.stories.utilising.reading:gate drop<={DROP}", REDUCE,
        ),
    }  # fmt: skip


def measured(folder: Path, seconds: float, rounds: int, scale: float) -> Found:
    engines = {name: built(wish, folder) for name, wish in wishes(scale).items()}
    contenders = [
        Contender(PLAIN, recogniser_path(), "fp32"),
        *(Contender(name, each.path, each.precision) for name, each in engines.items()),
    ]
    pictures = np.concatenate([batch.pictures for batch in held_out(samples.HELD_OUT, short=True)])
    _take_turns(contenders, pictures, seconds, rounds)
    scores = {each.name: _scores(each.path) for each in contenders}
    for each in contenders:
        each.accuracy = float(scores[each.name].mean())
        each.served = held(each.path, pictures[: max(BATCHES)], BATCHES)
    drop = drop_of(scores[FP32], scores[AUTO])
    return Found(tuple(contenders), drop.mean, drop.upper, len(scores[FP32]), engines)


def _take_turns(contenders: Sequence[Contender], pictures: NDArray[np.float32], seconds: float, rounds: int) -> None:
    with ExitStack() as stack:
        workers = {each.name: stack.enter_context(Worker()) for each in contenders}
        for each in contenders:
            workers[each.name].load(each.path)
        for turn in range(rounds):
            for batch in BATCHES:
                for each in contenders if turn % 2 == 0 else contenders[::-1]:
                    spent = workers[each.name].time({"x": pictures[:batch]}, seconds)
                    each.milliseconds.setdefault(batch, []).append(spent)


def _scores(path: Path) -> NDArray[np.float64]:
    """Of each line that no build saw."""
    model = ps.load(path)
    try:
        return reading.unseen(lambda arrays: model(**arrays))
    finally:
        model.close()
