"""What an embedding is: one text at a time, nothing padded, ONNX Runtime in float32, pooled by NumPy in float64.

Shares no graph, batch or server with what is judged by it. Called by the demonstration and by tests.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import onnxruntime

from examples.embed.files import network_path
from examples.embed.tokens import tokens

Doubles = npt.NDArray[np.float64]


def embeddings(texts: Sequence[str]) -> Doubles:
    """[n, 384], each of length 1."""
    return np.stack([_embedding(text) for text in texts])


def cosines(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> Doubles:
    """Of each row of one with that row of the other."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    found: Doubles = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return found


def _embedding(text: str) -> Doubles:
    read = tokens(text.encode())
    (vectors,) = _session().run(None, {"input_ids": read.ids[None], "attention_mask": read.mask[None]})
    mean = vectors[0].astype(np.float64).mean(axis=0)
    found: Doubles = mean / np.linalg.norm(mean)
    return found


@lru_cache(maxsize=1)
def _session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(network_path()), options, providers=["CPUExecutionProvider"])
