"""CRNN (Shi et al. 2015): a line of 32 x 100 grey pixels to class scores for CTC, with two bidirectional LSTMs or none.

Convolutions without a batch norm have weights and biases as if theirs had been folded. Called by `zoo`.
"""

import math
from collections.abc import Mapping

import numpy as np
import onnx

from benches.models.layers import (
    LEARNT_SHARE,
    activated,
    attuned,
    batch_norm,
    convolution,
    heavy_tailed,
    linear,
    readout_per_position,
    transposed,
)  # fmt: skip
from benches.models.network import Attributes, Network, Value
from benches.models.pictures import Side, text_windows

HEIGHT, WIDTH = 32, 100
_CLASSES = 37  # blank, digits and letters
_HIDDEN = 256
_LINES = 48

# (channels, kernel, padding, own batch norm, pool after it): table 1 of the paper.
_TRUNK = (
    (64, 3, 1, False, "square"), (128, 3, 1, False, "square"), (256, 3, 1, True, ""), (256, 3, 1, False, "tall"),
    (512, 3, 1, True, ""), (512, 3, 1, False, "tall"), (512, 2, 0, True, ""),
)  # fmt: skip
# "tall" halves the height only, so that every letter keeps its columns.
_POOLS: Mapping[str, Attributes] = {
    "square": {"ceil_mode": 0, "kernel_shape": [2, 2], "pads": [0, 0, 0, 0], "strides": [2, 2]},
    "tall": {"ceil_mode": 0, "kernel_shape": [2, 2], "pads": [0, 1, 0, 1], "strides": [2, 1]},
}


def crnn() -> onnx.ModelProto:
    """5.6 M parameters, 0.6 GMAC: the convolutions and a linear layer."""
    network = Network("crnn", 41)
    columns = transposed(network, _columns(network), 0, 2, 1)
    with network.scope("readout"):
        scores = readout_per_position(network, columns, _CLASSES)
    return network.finish({"scores": network.one("LogSoftmax", scores, attributes={"axis": 2})})


def crnn_bilstm() -> onnx.ModelProto:
    """8.3 M parameters, 0.7 GMAC: the paper's network."""
    network = Network("crnn_bilstm", 42)
    x = transposed(network, _columns(network), 2, 0, 1)  # time first
    with network.scope("rnn.0"):
        x = _bilstm(network, x)
        with network.scope("embedding"):
            x = linear(network, x, _HIDDEN)
    with network.scope("rnn.1"):
        x = _bilstm(network, x)
        with network.scope("embedding"):
            x = readout_per_position(network, x, _CLASSES)
    scores = network.one("LogSoftmax", x, attributes={"axis": 2})
    return network.finish({"scores": transposed(network, scores, 1, 0, 2)})


def _columns(network: Network) -> Value:
    """[batch, 512, 26]: what the convolutions see in each column."""
    x = network.input("x", text_windows(Side.CALIBRATION, _LINES, HEIGHT, WIDTH, seed=3))
    for number, (channels, kernel, padding, norm, pool) in enumerate(_TRUNK):
        with network.scope(f"cnn.{number}"):
            x = convolution(network, x, channels, kernel, padding=padding, folded_norm=not norm)
            if norm:
                with network.scope("bn"):
                    x = batch_norm(network, x)
            x = activated(network, x, "relu")
            if pool:
                x = network.one("MaxPool", x, attributes=_POOLS[pool])
    return network.one("Squeeze", x, network.integers(2))


def _bilstm(network: Network, x: Value) -> Value:
    """[time, batch, features] to [time, batch, 2 x 256], states zero at the start and of the batch's size."""
    features = x.array.shape[2]
    # Gates get sums of deviation 1 from what comes in: neither all open nor all shut.
    strength = 1 / max(float(x.array.std()), 1e-3)
    into = strength * attuned(network, 8 * _HIDDEN, x.array.reshape(-1, features), LEARNT_SHARE)
    into = into.reshape(2, 4 * _HIDDEN, features)
    again = heavy_tailed(network, 2, 4 * _HIDDEN, _HIDDEN) / math.sqrt(_HIDDEN)
    bias = 0.1 * heavy_tailed(network, 2, 8 * _HIDDEN)
    bias[:, 2 * _HIDDEN : 3 * _HIDDEN] += 1  # the forget gate, open as training begins and mostly as it ends
    weights = [
        network.weight(name, array.astype(np.float32)) for name, array in (("W", into), ("R", again), ("B", bias))
    ]
    size = network.one("Shape", x)
    rows = network.one("Gather", size, network.constant(np.array(1, np.int64)))
    shape = network.one(
        "Concat",
        network.integers(2),
        network.one("Unsqueeze", rows, network.integers(0)),
        network.integers(_HIDDEN),
        attributes={"axis": 0},
    )
    zeros = network.one("ConstantOfShape", shape)
    states = network.one(
        "LSTM", x, *weights, None, zeros, zeros, attributes={"direction": "bidirectional", "hidden_size": _HIDDEN}
    )
    return network.one("Reshape", transposed(network, states, 0, 2, 1, 3), network.integers(0, 0, -1))
