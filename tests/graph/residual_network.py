"""ResNet-34 (He et al. 2016, table 1) as an exporter writes it: 36 convolutions, each followed by its normalization."""

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

# Blocks and channels of the four stages.
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))


class _Writer:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(34)

    def add(self, operator: str, *inputs: str, output: str, attributes: dict[str, object] | None = None) -> str:
        node = helper.make_node(operator, list(inputs), [output], f"{operator}_{len(self.nodes)}")
        for name, value in (attributes or {}).items():
            node.attribute.append(helper.make_attribute(name, value))
        self.nodes.append(node)
        return output

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(self, x: str, name: str, into: int, out: int, size: int, stride: int) -> str:
        """Convolution and normalization."""
        array = self.random.standard_normal((out, into, size, size)) * (2 / (into * size * size)) ** 0.5
        made = self.add(
            "Conv",
            x,
            self.weight(f"{name}.weight", array),
            output=f"{name}.conv",
            attributes={"kernel_shape": [size, size], "pads": [size // 2] * 4, "strides": [stride, stride]},
        )
        parameters = (np.ones(out), np.zeros(out), np.zeros(out), np.ones(out))
        names = [self.weight(f"{name}.bn.{number}", each) for number, each in enumerate(parameters)]
        return self.add("BatchNormalization", made, *names, output=f"{name}.bn")

    def block(self, x: str, name: str, into: int, out: int, stride: int) -> str:
        """Basic block: two convolutions of 3x3 and the way around them, by a 1x1 convolution where sizes change."""
        inner = self.add("Relu", self.conv(x, f"{name}.1", into, out, 3, stride), output=f"{name}.relu")
        inner = self.conv(inner, f"{name}.2", out, out, 3, 1)
        around = x if stride == 1 and into == out else self.conv(x, f"{name}.down", into, out, 1, stride)
        return self.add("Relu", self.add("Add", inner, around, output=f"{name}.add"), output=f"{name}.out")


def resnet34(size: int = 64) -> ir.Model:
    writer = _Writer()
    value = writer.add("Relu", writer.conv("x", "stem", 3, 64, 7, 2), output="stem.relu")
    value = writer.add(
        "MaxPool",
        value,
        output="stem.pool",
        attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]},
    )
    into = 64
    for stage, (blocks, out) in enumerate(STAGES):
        for number in range(blocks):
            stride = 2 if stage > 0 and number == 0 else 1
            value = writer.block(value, f"stage{stage}.{number}", into, out, stride)
            into = out
    value = writer.add("Flatten", writer.add("GlobalAveragePool", value, output="pool"), output="flat")
    classes = writer.weight("classes.weight", writer.random.standard_normal((512, 10)) * 0.05)
    writer.add("Gemm", value, classes, writer.weight("classes.bias", np.zeros(10)), output="y")
    graph = helper.make_graph(
        writer.nodes,
        "resnet34",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        writer.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))
