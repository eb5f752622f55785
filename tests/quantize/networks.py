"""Small networks made by script, with activations like a trained one's, and pictures for them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from penstock.quantize import Calibration
from penstock.quantize.observe import runner

Array = NDArray[Any]


class Builder:
    """Nodes and weights of one graph."""

    def __init__(self, seed: int = 7) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)

    def weight(self, name: str, array: Array) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def conv(
        self, source: str, channels: tuple[int, int], name: str, *, kernel: int = 3, stride: int = 1, group: int = 1
    ) -> str:
        """He-initialised, so that activations keep their size from layer to layer."""
        shape = (channels[1], channels[0] // group, kernel, kernel)
        spread = np.sqrt(2 / np.prod(shape[1:]))
        self.weight(f"{name}_w", (self.rng.standard_normal(shape) * spread).astype(np.float32))
        self.weight(f"{name}_b", (self.rng.standard_normal(channels[1]) * 0.1).astype(np.float32))
        inputs = [source, f"{name}_w", f"{name}_b"]
        return self.node("Conv", inputs, name, strides=[stride] * 2, pads=[kernel // 2] * 4, group=group)

    def relu(self, source: str) -> str:
        return self.node("Relu", [source], f"{source}_relu")

    def linear(self, source: str, sizes: tuple[int, int], name: str) -> str:
        spread = np.sqrt(1 / sizes[0])
        self.weight(f"{name}_w", (self.rng.standard_normal(sizes) * spread).astype(np.float32))
        return self.node("MatMul", [source, f"{name}_w"], name)

    def model(
        self, shape: Sequence[int | str], output: str, out_shape: Sequence[int | str], opset: int = 17
    ) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, out_shape)],
            self.weights,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        onnx.checker.check_model(proto)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def residual(opset: int = 17) -> ir.Model:
    """Stem, pool, a residual block, depthwise and pointwise, two branches joined, a float activation, a classifier."""
    b = Builder()
    stem = b.relu(b.conv("x", (3, 16), "stem", stride=2))
    pool = b.node("MaxPool", [stem], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    first = b.relu(b.conv(pool, (16, 16), "first"))
    total = b.relu(b.node("Add", [b.conv(first, (16, 16), "second"), pool], "sum"))
    deep = b.relu(b.conv(total, (16, 16), "depthwise", group=16))
    left = b.relu(b.conv(deep, (16, 32), "pointwise", kernel=1))
    right = b.relu(b.conv(total, (16, 32), "side", kernel=1))
    mixed = b.conv(b.node("Concat", [left, right], "joined", axis=1), (64, 32), "mixed", kernel=1)
    gate = b.node("Mul", [mixed, b.node("Sigmoid", [mixed], "gate")], "swish")
    last = b.relu(b.conv(gate, (32, 32), "last", stride=2))
    pooled = b.node("GlobalAveragePool", [last], "average")
    b.weight("fc_w", (b.rng.standard_normal((10, 32)) * 0.2).astype(np.float32))
    b.weight("fc_b", (b.rng.standard_normal(10) * 0.1).astype(np.float32))
    flat = b.node("Flatten", [pooled], "flat", axis=1)
    return b.model(["n", 3, 64, 64], b.node("Gemm", [flat, "fc_w", "fc_b"], "fc", transB=1), ["n", 10], opset)


def transformer() -> ir.Model:
    """Normalisation, a product, GELU, a product, and the residual: [n, 12, 32]. Two input channels are outliers."""
    b = Builder()
    scale = np.ones(32, np.float32)
    scale[[3, 17]] = 40.0
    b.weight("scale", scale)
    b.weight("shift", (b.rng.standard_normal(32) * 0.1).astype(np.float32))
    b.node("LayerNormalization", ["x", "scale", "shift"], "normal", axis=-1)
    wide = b.linear("normal", (32, 64), "up")
    b.weight("root", np.float32(np.sqrt(2)))
    b.weight("one", np.float32(1))
    b.weight("half", np.float32(0.5))
    erf = b.node("Erf", [b.node("Div", [wide, "root"], "scaled")], "erf")
    gelu = b.node("Mul", [b.node("Mul", [wide, b.node("Add", [erf, "one"], "shifted")], "product"), "half"], "gelu")
    narrow = b.linear(gelu, (64, 32), "down")
    return b.model(["n", 12, 32], b.node("Add", [narrow, "x"], "y"), ["n", 12, 32])


def recurrent() -> ir.Model:
    """Three convolutions over a picture, columns to an LSTM without a state of its own at the start: [n, 4, 16].

    With a free batch OpenVINO 2026.4.1 computes it wrongly in eight bits, bound it does not.
    """
    b = Builder()
    stem = b.relu(b.conv("x", (3, 16), "stem", stride=2))
    pool = b.node("MaxPool", [stem], "pool", kernel_shape=[2, 2], strides=[2, 2])
    second = b.relu(b.conv(pool, (16, 32), "second", stride=2))
    third = b.relu(b.conv(second, (32, 32), "third", stride=2))
    row = b.node("MaxPool", [third], "row", kernel_shape=[4, 1], strides=[4, 1])
    flat = b.node("Squeeze", [row, b.weight("two", np.array([2]))], "flat")
    columns = b.node("Transpose", [flat], "columns", perm=[2, 0, 1])
    sizes = {"W": (1, 64, 32), "R": (1, 64, 16), "B": (1, 128)}
    weights = [b.weight(name, (b.rng.standard_normal(size) * 0.2).astype(np.float32)) for name, size in sizes.items()]
    lstm = b.node("LSTM", [columns, *weights], "lstm", hidden_size=16)
    answers = b.node("Squeeze", [lstm, b.weight("one", np.array([1]))], "answers")
    return b.model(["n", 3, 64, 64], b.node("Transpose", [answers], "y", perm=[1, 0, 2]), ["n", 4, 16])


def pictures(count: int, size: int = 64, seed: int = 0) -> Calibration:
    """Sums of a few soft blobs and a gradient, a little noise on top: smooth as photographs are."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size] / size
    samples: list[Mapping[str, Array]] = []
    for _ in range(count):
        picture = np.zeros((3, size, size))
        for channel in range(3):
            picture[channel] += rng.normal() * rows + rng.normal() * columns
            for _blob in range(4):
                y, x, width = rng.random(), rng.random(), 0.05 + 0.2 * rng.random()
                picture[channel] += rng.normal() * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / width**2)
        picture += rng.normal(size=picture.shape) * 0.02
        samples.append({"x": picture[None].astype(np.float32)})
    return Calibration(tuple(samples))


def sequences(count: int, seed: int = 0) -> Calibration:
    """Random walks: [1, 12, 32]."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(count, 1, 12, 32))
    return Calibration(tuple({"x": walk.cumsum(axis=1).astype(np.float32)} for walk in steps))


def answers(model: ir.Model, data: Calibration) -> list[Array]:
    """The only output, on every sample."""
    name = model.graph.outputs[0].name or ""
    with runner(model, [name]) as run:
        return [run(sample)[name] for sample in data]


def cosine(first: Sequence[Array], second: Sequence[Array]) -> float:
    """Least over the samples."""
    pairs = [(a.astype(np.float64).ravel(), b.astype(np.float64).ravel()) for a, b in zip(first, second, strict=True)]
    return min(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) for a, b in pairs)
