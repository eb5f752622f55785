"""Top-1 agreement of a classifier with itself in FP32, as a metric for a gate: 1 where the same class wins, else 0.

`penstock build ... --accuracy 'benches.engines.top1:efficientnet_lite0 drop<=0.04'` at the root of the checkout wants
96 % agreement, the 95 % bound included. Crops of photographs that no calibration sees, of which those count that FP32
takes for something: of the rest, half of all crops, the best of a thousand classes is a coin's toss that BF16 turns as
well as INT8 does. Named by `subjects`.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benches.inputs import held_out

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

CROPS = 1000
# Probability of the best class in FP32; about four crops in ten reach it.
KNOWN = 0.2
_BATCH = 8
_LAB = Path(os.environ.get("PENSTOCK_LAB", Path(__file__).parents[2] / ".peers"))


def efficientnet_lite0(run: Run) -> npt.NDArray[np.float64]:
    """Per picture 1 or 0; FileNotFoundError where the model was not exported."""
    pictures, expected = _judged("efficientnet_lite0")
    found = np.concatenate([_logits(run(piece)).argmax(axis=1) for piece in _pieces(pictures)])
    return (found == expected).astype(np.float64)


@lru_cache(maxsize=1)
def _judged(name: str) -> tuple[Array, npt.NDArray[np.intp]]:
    """The pictures that count, and FP32's classes."""
    import onnxruntime

    path = _LAB / "models" / f"{name}.onnx"
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not here: benches/models/export_torch.py makes it")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (crops,) = held_out(name, CROPS).values()
    logits = np.concatenate([session.run(None, dict(piece))[0] for piece in _pieces(crops)])
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    known = odds.max(axis=1) / odds.sum(axis=1) >= KNOWN
    return crops[known], logits[known].argmax(axis=1)


def _logits(outputs: Mapping[str, Array]) -> Array:
    (logits,) = outputs.values()
    return logits


def _pieces(pictures: Array) -> Iterator[dict[str, Array]]:
    for start in range(0, len(pictures), _BATCH):
        yield {"x": pictures[start : start + _BATCH]}
