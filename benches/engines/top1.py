"""Top-1 agreement of a classifier with itself in FP32, as a metric for a gate: 1 where the same class wins, else 0.

`penstock build ... --accuracy 'benches.engines.top1:efficientnet_lite0 drop<=0.03'` at the root of the checkout wants
97 % agreement, the 95 % bound included. Photographs that no calibration sees. Named by `subjects`.
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

PICTURES = 400
_BATCH = 8
_LAB = Path(os.environ.get("PENSTOCK_LAB", Path(__file__).parents[2] / ".peers"))


def efficientnet_lite0(run: Run) -> npt.NDArray[np.float64]:
    """Per picture 1 or 0; FileNotFoundError where the model was not exported."""
    expected = _expected("efficientnet_lite0")
    found = np.concatenate([_classes(run(piece)) for piece in _pieces("efficientnet_lite0")])
    return (found == expected).astype(np.float64)


@lru_cache(maxsize=4)
def _expected(name: str) -> npt.NDArray[np.intp]:
    import onnxruntime

    path = _LAB / "models" / f"{name}.onnx"
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not here: benches/models/export_torch.py makes it")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, dict(piece))[0].argmax(axis=1) for piece in _pieces(name)])


def _classes(outputs: Mapping[str, Array]) -> npt.NDArray[np.intp]:
    (logits,) = outputs.values()
    return logits.argmax(axis=1)


def _pieces(name: str) -> Iterator[dict[str, Array]]:
    (pictures,) = _pictures(name).values()
    for start in range(0, len(pictures), _BATCH):
        yield {"x": pictures[start : start + _BATCH]}


@lru_cache(maxsize=1)
def _pictures(name: str) -> dict[str, Array]:
    return held_out(name, PICTURES)
