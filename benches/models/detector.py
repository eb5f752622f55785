"""A detector of the YOLOv5s kind: cross-stage blocks with SiLU, a pyramid of three scales, boxes decoded in the graph.

Batch norms are folded, as exporters of this family do before they export. Called by `zoo`.
"""

import numpy as np
import onnx

from benches.models.layers import activated, channel_statistics, convolution, filters, reshaped, transposed
from benches.models.network import Attributes, Network, Value
from benches.models.pictures import PHOTOGRAPHS, Side, crops

SIZE = 640
_CLASSES = 80
# All photographs: four, two of which are grey, gave norms to which a colourful picture was twenty deviations wide.
_PICTURES = len(PHOTOGRAPHS)
# Anchor boxes (width, height) in pixels by stride: the family's defaults for COCO.
_ANCHORS = {
    8: ((10, 13), (16, 30), (33, 23)),
    16: ((30, 61), (62, 45), (59, 119)),
    32: ((116, 90), (156, 198), (373, 326)),
}
_PER_ANCHOR = 5 + _CLASSES
# Logits of box, objectness and classes. Hardly anything is an object, and what is is of one class.
_OBJECTNESS, _CLASS = -4.0, -3.0
# Of the logits of boxes. Most of an answer is where the grid is: two trained detectors' answers to unlike pictures
# differ by 0.07 to 0.15 of their norm; with this 0.07 to 0.13, with 1 half as much.
_BOX_DEVIATION = 2.0


def yolo() -> onnx.ModelProto:
    """7.2 M parameters, 8.2 GMAC at 640 x 640; [batch, 25200, 85]: centre, size, objectness, classes."""
    network = Network("yolo", 5)
    pictures = crops(Side.CALIBRATION, _PICTURES, (SIZE, SIZE), seed=4)
    x = network.input("x", np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 255)
    network_scales = _pyramid(network, *_backbone(network, x))
    boxes = []
    for stride, scale in zip(_ANCHORS, network_scales, strict=True):
        with network.scope(f"detect.{stride}"):
            boxes.append(_boxes(network, scale, stride))
    return network.finish({"boxes": network.one("Concat", *boxes, attributes={"axis": 1})})


def _backbone(network: Network, x: Value) -> tuple[Value, Value, Value]:
    """Features at strides 8, 16 and 32."""
    with network.scope("stem"):
        x = _conv(network, x, 32, 6, stride=2, padding=2)
    found = []
    for stage, (channels, blocks) in enumerate(((64, 1), (128, 2), (256, 3), (512, 1)), 1):
        with network.scope(f"stage{stage}"):
            with network.scope("down"):
                x = _conv(network, x, channels, 3, stride=2, padding=1)
            x = _cross_stage(network, x, channels, blocks, shortcut=True)
        found.append(x)
    with network.scope("sppf"):
        found[-1] = _pooled(network, x, 512)
    return found[1], found[2], found[3]


def _pyramid(network: Network, fine: Value, middle: Value, coarse: Value) -> tuple[Value, Value, Value]:
    """Top-down, then bottom-up (PANet, Liu et al. 2018)."""
    with network.scope("top"):
        coarse = _conv(network, coarse, 256, 1)
        middle = _cross_stage(network, _joined(network, _twice(network, coarse), middle), 256, 1)
    with network.scope("down1"):
        middle = _conv(network, middle, 128, 1)
        fine = _cross_stage(network, _joined(network, _twice(network, middle), fine), 128, 1)
    with network.scope("up1"):
        lifted = _conv(network, fine, 128, 3, stride=2, padding=1)
        middle = _cross_stage(network, _joined(network, lifted, middle), 256, 1)
    with network.scope("up2"):
        lifted = _conv(network, middle, 256, 3, stride=2, padding=1)
        coarse = _cross_stage(network, _joined(network, lifted, coarse), 512, 1)
    return fine, middle, coarse


def _conv(
    network: Network, x: Value, channels: int, kernel: int, *, stride: int = 1, padding: int | None = None
) -> Value:
    x = convolution(network, x, channels, kernel, stride=stride, padding=padding, folded_norm=True)
    return activated(network, x, "silu")


def _cross_stage(network: Network, x: Value, channels: int, blocks: int, *, shortcut: bool = False) -> Value:
    """Half of the channels pass blocks of 1 x 1 and 3 x 3, half don't (CSPNet, Wang et al. 2020)."""
    half = channels // 2
    with network.scope("cv1"):
        deep = _conv(network, x, half, 1)
    for block in range(blocks):
        with network.scope(f"m.{block}"):
            with network.scope("cv1"):
                inner = _conv(network, deep, half, 1)
            with network.scope("cv2"):
                inner = _conv(network, inner, half, 3)
            deep = network.one("Add", deep, inner) if shortcut else inner
    with network.scope("cv2"):
        shallow = _conv(network, x, half, 1)
    with network.scope("cv3"):
        return _conv(network, _joined(network, deep, shallow), channels, 1)


def _pooled(network: Network, x: Value, channels: int) -> Value:
    """Three 5 x 5 maxima after each other, all kept: spatial pyramid pooling, the fast form."""
    with network.scope("cv1"):
        x = _conv(network, x, channels // 2, 1)
    seen = [x]
    attributes: Attributes = {
        "ceil_mode": 0, "kernel_shape": [5, 5], "pads": [2, 2, 2, 2], "strides": [1, 1],
    }  # fmt: skip
    for _ in range(3):
        seen.append(network.one("MaxPool", seen[-1], attributes=attributes))
    with network.scope("cv2"):
        return _conv(network, _joined(network, *seen), channels, 1)


def _joined(network: Network, *values: Value) -> Value:
    return network.one("Concat", *values, attributes={"axis": 1})


def _twice(network: Network, x: Value) -> Value:
    factors = network.constant(np.array([1, 1, 2, 2], np.float32))
    attributes: Attributes = {
        "coordinate_transformation_mode": "asymmetric",
        "mode": "nearest",
        "nearest_mode": "floor",
    }
    return network.one("Resize", x, None, factors, attributes=attributes)


def _boxes(network: Network, x: Value, stride: int) -> Value:
    """[batch, 3 x height x width, 85], in pixels and probabilities."""
    height, width = x.array.shape[2:]
    raw = reshaped(network, _logits(network, x), len(_ANCHORS[stride]), _PER_ANCHOR, height, width)
    chances = network.one("Sigmoid", transposed(network, raw, 0, 1, 3, 4, 2))
    centre, size, rest = network.add(
        "Split", chances, network.integers(2, 2, _PER_ANCHOR - 4), attributes={"axis": 4}, outputs=3
    )
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    grid = np.stack((columns, rows), -1)[None, None].astype(np.float32) - 0.5
    anchors = np.array(_ANCHORS[stride], np.float32).reshape(1, -1, 1, 1, 2)

    def number(value: float) -> Value:
        return network.constant(np.array(value, np.float32))

    centre = network.one("Add", network.one("Mul", centre, number(2)), network.weight("grid", grid))
    centre = network.one("Mul", centre, number(stride))
    size = network.one("Pow", network.one("Mul", size, number(2)), number(2))
    size = network.one("Mul", size, network.weight("anchors", anchors))
    boxes = network.one("Concat", centre, size, rest, attributes={"axis": 4})
    return reshaped(network, boxes, -1, _PER_ANCHOR)


def _logits(network: Network, x: Value) -> Value:
    """The last 1 x 1 convolution, fitted so that boxes move, few places hold an object and classes differ."""
    count = len(_ANCHORS) * _PER_ANCHOR
    wanted_mean = np.tile(np.array([0.0] * 4 + [_OBJECTNESS] + [_CLASS] * _CLASSES), len(_ANCHORS))
    wanted_deviation = np.tile(np.array([_BOX_DEVIATION] * 4 + [2.0] + [1.5] * _CLASSES), len(_ANCHORS))
    weights = filters(network, x, count, (1, 1))
    mean, deviation = channel_statistics(np.einsum("nchw,oc->nohw", x.array, weights[:, :, 0, 0], optimize=True))
    fitted = weights * (wanted_deviation / deviation)[:, None, None, None]
    bias = wanted_mean - wanted_deviation * mean / deviation
    attributes: Attributes = {
        "dilations": [1, 1],
        "group": 1,
        "kernel_shape": [1, 1],
        "pads": [0] * 4,
        "strides": [1, 1],
    }
    named = (network.weight(name, each.astype(np.float32)) for name, each in (("weight", fitted), ("bias", bias)))
    return network.one("Conv", x, *named, attributes=attributes)
