"""Layers with some of what trained ones have: heavy tails, channels of unlike scale, statistics of real inputs.

Each function adds a layer to a `Network` and answers its output. What is imitated, in form and not in degree:
    weights   Laplace and not normal (trained filters have heavy tails), turned towards what the layer sees, and each
              output channel with a scale of its own: per-tensor INT8 ranges must hurt as they do in practice
    norms     running statistics are those of the real activations; gamma and beta differ by channel
    readouts  centred and scaled over real inputs, so that answers tell inputs apart: random features share a large mean
Called by the architectures.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from benches.models.network import Attributes, Network, Value

Floats = npt.NDArray[np.float32]
Activation = Literal["none", "relu", "relu6", "silu"]

# Sigma of the logarithm of a channel's scale: the largest of 256 channels is then about six times the smallest.
_CHANNEL_SPREAD = 0.3
# How much of a filter is made of what it sees, which components of that count, and the power of their deviation that
# they are weighted with. Learning turns weights towards what inputs vary in, which damps noise; how much is a guess.
# What answers lose of their cosine to 1 % noise on calibration pictures: EfficientNet-Lite0, which is trained, 0.03,
# with these numbers MobileNetV2 0.11 and ResNet-50 0.0005; the trained detector YOLOX (of the package ddddocr) 0.0005,
# YOLO 0.0005. To BF16: 0.0016, 0.010 and 0.0002; 0.00001 and 0.0007. Answers stay in too few dimensions (about 3,
# EfficientNet-Lite0's 16). So what INT8 or BF16 does to the accuracy of these models says nothing of trained ones.
# Never set these by the accuracy of a quantized model: at 0.5, 0.7, 0.85, -0.5 any INT8 passes, and it looks like a
# success.
LEARNT_SHARE, READOUT_SHARE = 0.2, 0.5
_VARIANCE_KEPT = 0.95
_EMPHASIS = -1.0
_SEEN = 512  # patches that a layer's directions are found from
_OUTLIER_STRENGTH = 10
# Embeddings of unlike pictures by a trained tower still have a cosine of about a half.
_CENTRED_SHARE = 0.7
_EPSILON = 1e-5  # torch's default for batch norm and layer norm


def heavy_tailed(network: Network, *shape: int) -> Floats:
    """Laplace numbers with deviation 1."""
    return network.random.laplace(0, 1 / math.sqrt(2), shape).astype(np.float32)


def attuned(network: Network, outputs: int, seen: Floats, share: float) -> Floats:
    """Weights [outputs, features]: part Laplace, part directions in which the inputs vary. Rows have norm about 1.

    seen   [samples, features] of real inputs.
    share  of the amplitude that lies in those directions.
    """
    white = heavy_tailed(network, outputs, seen.shape[1]) / math.sqrt(seen.shape[1])
    directions = _main_directions(seen)
    learnt = (heavy_tailed(network, outputs, len(directions)) @ directions).astype(np.float32)
    learnt /= np.linalg.norm(learnt, axis=1, keepdims=True) + _EPSILON
    return np.asarray((1 - share) * white + share * learnt, np.float32)


def _main_directions(seen: Floats) -> npt.NDArray[np.float64]:
    """[directions, features]: principal components that hold most of the variance, strong ones shorter."""
    centred = (seen - seen.mean(axis=0)).astype(np.float64)
    # By the smaller of the two products: filters have thousands of features, the samples are some hundred.
    by_sample = len(centred) <= centred.shape[1]
    powers, vectors = np.linalg.eigh(centred @ centred.T if by_sample else centred.T @ centred)
    powers, vectors = np.maximum(powers[::-1], 0), vectors[:, ::-1]
    total = powers.sum()
    if total <= _EPSILON:  # the inputs are all alike: there are none
        return np.zeros((1, seen.shape[1]))
    kept = int(np.searchsorted(np.cumsum(powers) / total, _VARIANCE_KEPT)) + 1
    deviations = np.sqrt(powers[:kept])
    axes = (centred.T @ vectors[:, :kept] / deviations).T if by_sample else vectors[:, :kept].T
    return np.asarray(axes * (deviations[:, None] / deviations[0]) ** _EMPHASIS, np.float64)


def filters(network: Network, x: Value, outputs: int, kernel: tuple[int, int], groups: int = 1) -> Floats:
    """[outputs, inputs / groups, height, width]: norm sqrt(2) (He et al. 2015) times a scale for each channel."""
    channels = x.array.shape[1]
    inputs = channels // groups
    shape = (outputs // groups, inputs, *kernel)
    patches = _patches(network, x.array, kernel)
    found = np.concatenate(
        [
            attuned(network, shape[0], part.reshape(len(part), -1), LEARNT_SHARE).reshape(shape)
            for part in np.split(patches, groups, axis=1)
        ]
    )
    scales = math.sqrt(2) * network.random.lognormal(0, _CHANNEL_SPREAD, (outputs, 1, 1, 1))
    return np.asarray(found * scales, np.float32)


def _patches(network: Network, array: Floats, kernel: tuple[int, int]) -> Floats:
    """[samples, channels, height, width] from random places."""
    count, _, height, width = array.shape
    rows, columns = (min(size, limit) for size, limit in zip(kernel, (height, width), strict=True))
    found = np.zeros((_SEEN, array.shape[1], *kernel), np.float32)
    for patch in found:
        top = int(network.random.integers(0, height - rows + 1))
        left = int(network.random.integers(0, width - columns + 1))
        picture = int(network.random.integers(0, count))
        patch[:, :rows, :columns] = array[picture, :, top : top + rows, left : left + columns]
    return found


def convolution(
    network: Network,
    x: Value,
    outputs: int,
    kernel: int | tuple[int, int],
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    folded_norm: bool = False,
) -> Value:
    """A convolution. `folded_norm`: as if its batch norm had been folded into weights and bias by the exporter.

    padding: on every side; None keeps the size at stride 1.
    """
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    pads = [size[0] // 2, size[1] // 2] * 2 if padding is None else [padding] * 4
    weights = filters(network, x, outputs, size, groups)
    attributes: Attributes = {
        "dilations": [1, 1], "group": groups, "kernel_shape": list(size), "pads": pads, "strides": [stride, stride],
    }  # fmt: skip
    if not folded_norm:
        return network.one("Conv", x, network.weight("weight", weights), attributes=attributes)
    # What the filters give decides what they become. A scratch network: its node isn't part of this one.
    scratch = Network("scratch", 0)
    given = scratch.one("Conv", x, scratch.weight("weight", weights), attributes=attributes).array
    mean, deviation = channel_statistics(given)
    gamma, beta = _affine(network, outputs, 1.0)
    folded = weights * (gamma / deviation)[:, None, None, None]
    bias = beta - gamma * mean / deviation
    return network.one("Conv", x, network.weight("weight", folded), network.weight("bias", bias), attributes=attributes)


def batch_norm(network: Network, x: Value, gain: float = 1.0) -> Value:
    """Running statistics of `x` itself; gamma around `gain`."""
    channels = x.array.shape[1]
    mean, deviation = channel_statistics(x.array)
    gamma, beta = _affine(network, channels, gain)
    parameters = {"weight": gamma, "bias": beta, "running_mean": mean, "running_var": deviation**2}
    weights = [network.weight(name, array.astype(np.float32)) for name, array in parameters.items()]
    return network.one("BatchNormalization", x, *weights, attributes={"epsilon": _EPSILON, "momentum": 0.9})


def _affine(network: Network, channels: int, gain: float) -> tuple[Floats, Floats]:
    gamma = gain * network.random.lognormal(0, 0.25, channels)
    beta = gain * network.random.normal(0, 0.3, channels)
    return gamma.astype(np.float32), beta.astype(np.float32)


def channel_statistics(array: Floats) -> tuple[Floats, Floats]:
    """Mean and deviation over all axes but 1."""
    axes = tuple(axis for axis in range(array.ndim) if axis != 1)
    wide = array.astype(np.float64)
    mean, deviation = wide.mean(axis=axes), np.sqrt(wide.var(axis=axes) + _EPSILON)
    return mean.astype(np.float32), deviation.astype(np.float32)


def activated(network: Network, x: Value, kind: Activation) -> Value:
    if kind == "relu":
        return network.one("Relu", x)
    if kind == "relu6":
        limits = (network.constant(np.array(limit, np.float32)) for limit in (0.0, 6.0))
        return network.one("Clip", x, *limits)
    if kind == "silu":
        return network.one("Mul", x, network.one("Sigmoid", x))
    return x


def linear(network: Network, x: Value, outputs: int, *, deviation: float = 1.0, bias: bool = True) -> Value:
    """MatMul and Add, as exporters write it on three axes. The output gets this deviation over real inputs."""
    weights, offset = _fitted(network, x.array, outputs, deviation, centred=False)
    product = network.one("MatMul", x, network.weight("weight", weights))
    return network.one("Add", network.weight("bias", offset), product) if bias else product


def readout(network: Network, x: Value, outputs: int, *, deviation: float = 2.0) -> Value:
    """The last layer: Gemm on [batch, features], centred over real inputs."""
    weights, offset = _fitted(network, x.array, outputs, deviation, centred=True)
    named = network.weight("weight", weights.T), network.weight("bias", offset)
    return network.one("Gemm", x, *named, attributes={"transB": 1})


def readout_per_position(network: Network, x: Value, outputs: int, *, deviation: float = 2.0) -> Value:
    """The last layer of a model that answers at every position: MatMul and Add on three axes, centred."""
    weights, offset = _fitted(network, x.array, outputs, deviation, centred=True)
    return network.one(
        "Add", network.weight("bias", offset), network.one("MatMul", x, network.weight("weight", weights))
    )


def _fitted(
    network: Network, features: Floats, outputs: int, deviation: float, *, centred: bool
) -> tuple[Floats, Floats]:
    """Weights [features, outputs] and a bias that give outputs of the deviation; with mean 0 where `centred`."""
    seen = features.reshape(-1, features.shape[-1])
    share = READOUT_SHARE if centred else LEARNT_SHARE
    weights = attuned(network, outputs, seen, share).T.astype(np.float64)
    weights *= network.random.lognormal(0, _CHANNEL_SPREAD, outputs)
    flat = seen.astype(np.float64)
    given = flat @ weights
    scale = deviation / max(float(given.std(axis=0).mean()), _EPSILON)
    weights *= scale
    offset = -(flat @ weights).mean(axis=0) if centred else 0.1 * deviation * network.random.normal(size=outputs)
    return weights.astype(np.float32), np.asarray(offset, np.float32)


def layer_norm(network: Network, x: Value, *, outliers: Sequence[int] = (), centred: bool = False) -> Value:
    """Gamma and beta by channel.

    outliers  channels that are strong, as a few are in every trained transformer.
    centred   beta takes away most of what all inputs have in common.
    """
    width = x.array.shape[-1]
    gamma = np.asarray(network.random.lognormal(0, 0.3, width))
    beta = np.asarray(network.random.normal(0, 0.1, width))
    gamma[list(outliers)] *= _OUTLIER_STRENGTH
    if centred:
        wide = x.array.reshape(-1, width).astype(np.float64)
        normed = (wide - wide.mean(axis=1, keepdims=True)) / np.sqrt(wide.var(axis=1, keepdims=True) + _EPSILON)
        beta -= _CENTRED_SHARE * gamma * normed.mean(axis=0)
    weights = (network.weight("weight", gamma.astype(np.float32)), network.weight("bias", beta.astype(np.float32)))
    return network.one("LayerNormalization", x, *weights, attributes={"axis": -1, "epsilon": _EPSILON})


def transposed(network: Network, x: Value, *order: int) -> Value:
    return network.one("Transpose", x, attributes={"perm": list(order)})


def batch_size(network: Network, x: Value) -> Value:
    """INT64 [1], read from the tensor's shape as exporters do where the batch is free."""
    first = network.one("Gather", network.one("Shape", x), network.constant(np.array(0, np.int64)))
    return network.one("Unsqueeze", first, network.integers(0))


def reshaped(network: Network, x: Value, *shape: int) -> Value:
    """To [batch, *shape], with the batch's size computed in the graph."""
    sizes = [network.integers(size) for size in shape]
    target = network.one("Concat", batch_size(network, x), *sizes, attributes={"axis": 0})
    return network.one("Reshape", x, target)
