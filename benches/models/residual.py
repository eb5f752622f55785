"""ResNet-34, ResNet-50 (He et al. 2015, as torchvision writes them) and MobileNetV2 (Sandler et al. 2018).

Batch norms are nodes of their own, as an exporter may leave them: folding them is the builder's work. Called by `zoo`.
"""

import onnx

from benches.models.layers import Activation, activated, batch_norm, convolution, readout
from benches.models.network import Network, Value
from benches.models.pictures import IMAGENET, Side, crops, normalised

_CLASSES = 1000
_PICTURES = 16  # with 7 x 7 positions each, 784 values behind a running statistic at the least
# Of the last norm in a residual branch: in trained networks branches refine what passes by, and don't replace it.
_BRANCH_GAIN = 0.4
# In EfficientNet-Lite0 the deviation of a branch is 0.30 to 0.59 of that of what passes by, 0.41 in the middle.
_MOBILE_BRANCH_GAIN = 0.4

# (expansion of the channels, channels, blocks, stride): table 2 of the MobileNetV2 paper.
_INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def resnet34() -> onnx.ModelProto:
    """21.8 M parameters, 3.7 GMAC at 224 x 224."""
    return _resnet("resnet34", 34, bottleneck=False)


def resnet50() -> onnx.ModelProto:
    """25.6 M parameters, 4.1 GMAC at 224 x 224."""
    return _resnet("resnet50", 50, bottleneck=True)


def mobilenetv2() -> onnx.ModelProto:
    """3.5 M parameters, 0.3 GMAC at 224 x 224."""
    network = Network("mobilenetv2", 2)
    x = _pictures(network)
    with network.scope("features.0"):
        x = _norm(network, x, 32, 3, stride=2, activation="relu6")
    number = 1
    for expansion, channels, blocks, first_stride in _INVERTED:
        for block in range(blocks):
            with network.scope(f"features.{number}"):
                x = _inverted(network, x, expansion, channels, first_stride if block == 0 else 1)
            number += 1
    with network.scope(f"features.{number}"):
        x = _norm(network, x, 1280, 1, activation="relu6")
    return _classified(network, x)


def _pictures(network: Network) -> Value:
    return network.input("x", normalised(crops(Side.CALIBRATION, _PICTURES, (224, 224), seed=1), IMAGENET))


def _classified(network: Network, x: Value) -> onnx.ModelProto:
    pooled = network.one("Flatten", network.one("GlobalAveragePool", x), attributes={"axis": 1})
    with network.scope("fc"):
        logits = readout(network, pooled, _CLASSES)
    return network.finish({"logits": logits})


def _norm(
    network: Network,
    x: Value,
    channels: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: Activation = "none",
    gain: float = 1.0,
) -> Value:
    """Convolution, batch norm, activation."""
    with network.scope("conv"):
        x = convolution(network, x, channels, kernel, stride=stride, groups=groups)
    with network.scope("bn"):
        x = batch_norm(network, x, gain)
    return activated(network, x, activation)


def _inverted(network: Network, x: Value, expansion: int, channels: int, stride: int) -> Value:
    kept, wide = x, expansion * x.array.shape[1]
    if expansion > 1:
        with network.scope("expand"):
            x = _norm(network, x, wide, 1, activation="relu6")
    with network.scope("depthwise"):
        x = _norm(network, x, wide, 3, stride=stride, groups=wide, activation="relu6")
    refines = stride == 1 and kept.array.shape[1] == channels
    with network.scope("project"):
        x = _norm(network, x, channels, 1, gain=_MOBILE_BRANCH_GAIN if refines else 1.0)
    return network.one("Add", kept, x) if refines else x


def _resnet(name: str, seed: int, *, bottleneck: bool) -> onnx.ModelProto:
    network = Network(name, seed)
    x = _pictures(network)
    with network.scope("stem"):
        x = _norm(network, x, 64, 7, stride=2, activation="relu")
    x = network.one(
        "MaxPool", x, attributes={"ceil_mode": 0, "kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    )
    for stage, (channels, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            with network.scope(f"layer{stage}.{block}"):
                x = _block(network, x, channels, 2 if stage > 1 and block == 0 else 1, bottleneck=bottleneck)
    return _classified(network, x)


def _block(network: Network, x: Value, channels: int, stride: int, *, bottleneck: bool) -> Value:
    branch, outputs = x, 4 * channels if bottleneck else channels
    if bottleneck:
        with network.scope("1"):
            branch = _norm(network, branch, channels, 1, activation="relu")
        with network.scope("2"):  # torchvision's choice: the stride is in the 3 x 3
            branch = _norm(network, branch, channels, 3, stride=stride, activation="relu")
        with network.scope("3"):
            branch = _norm(network, branch, outputs, 1, gain=_BRANCH_GAIN)
    else:
        with network.scope("1"):
            branch = _norm(network, branch, channels, 3, stride=stride, activation="relu")
        with network.scope("2"):
            branch = _norm(network, branch, channels, 3, gain=_BRANCH_GAIN)
    if stride != 1 or x.array.shape[1] != outputs:
        with network.scope("downsample"):
            x = _norm(network, x, outputs, 1, stride=stride)
    return network.one("Relu", network.one("Add", branch, x))
