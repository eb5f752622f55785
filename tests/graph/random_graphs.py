"""Random small graphs of four dimensions, made of the steps that a pass looks for, as a hypothesis strategy.

A graph is a chain with side branches: each step takes the newest tensor, and now and then an older one is answered as
well, or added. Shapes are tracked here, so every graph is valid; some of the input's dimensions are declared free.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.graph.small import Array

Shape = tuple[int, ...]
Draw = Callable[[st.SearchStrategy], object]


@dataclass
class Chain:
    """The graph so far."""

    draw: Draw
    opset: int
    random: np.random.Generator
    shape: Shape
    last: str = "x"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    older: list[tuple[str, Shape]] = field(default_factory=list)

    def pick(self, *choices: object) -> object:
        return self.draw(st.sampled_from(choices))

    def weight(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, *shape: int) -> str:
        return self.weight(self.random.standard_normal(shape).astype(np.float32))

    def add(self, operator: str, inputs: Sequence[str], shape: Shape, outputs: int = 1, **attributes: object) -> None:
        index = len(self.nodes)
        names = [f"t{index}"] + [f"t{index}_{extra}" for extra in range(1, outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, name=f"n{index}", **attributes))
        self.older.append((self.last, self.shape))
        self.last, self.shape = names[0], shape


def conv(chain: Chain) -> None:
    n, channels, *sizes = chain.shape
    kernel = [chain.pick(1, 2, 3) for _ in sizes]
    stride, dilation = chain.pick(1, 1, 2), chain.pick(1, 1, 2)
    reach = [(k - 1) * dilation + 1 for k in kernel]
    groups = chain.pick(1, channels)
    out = groups * chain.pick(1, 2)
    mode = chain.pick("NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
    if mode.startswith("SAME"):  # ONNX Runtime has no dilation there
        dilation, reach = 1, kernel
    attributes: dict[str, object] = {"strides": [stride] * 2, "dilations": [dilation] * 2, "group": groups}
    pads = [chain.pick(0, 0, 1) for _ in range(4)] if mode == "NOTSET" else [0] * 4
    if mode == "NOTSET":
        attributes["pads"] = pads
    else:
        attributes["auto_pad"] = mode
    if mode.startswith("SAME"):
        result = [-(-size // stride) for size in sizes]
    else:
        result = [(s + pads[i] + pads[i + 2] - reach[i]) // stride + 1 for i, s in enumerate(sizes)]
        if any(s + pads[i] + pads[i + 2] < reach[i] for i, s in enumerate(sizes)):
            return
    inputs = [chain.last, chain.normal(out, channels // groups, *kernel)]
    if chain.pick(True, False):
        inputs.append(chain.normal(out))
    chain.add("Conv", inputs, (n, out, *result), **attributes)


def parallel(chain: Chain) -> None:
    """Convolutions of one map, the map itself and its norm or multiple, added and subtracted in any order."""
    start, shape = chain.last, chain.shape
    n, channels, height, width = shape
    stride, dilation, groups = chain.pick(1, 1, 2), chain.pick(1, 1, 2), chain.pick(1, channels)
    result = (n, channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
    terms: list[str] = []
    for _ in range(chain.pick(2, 2, 3, 4)):
        chain.last, chain.shape = start, shape
        kind = chain.pick("Conv", "Conv", "Conv", "norm", "factor", "x") if stride == 1 else "Conv"
        if kind == "Conv":
            kernel = [chain.pick(1, 3), chain.pick(1, 3, 5)]
            reach = [(k - 1) * dilation for k in kernel]
            begin = [chain.pick(r // 2, r // 2, r // 2, 0) for r in reach]
            pads = [*begin, *(r - b for r, b in zip(reach, begin, strict=True))]
            inputs = [start, chain.normal(channels, channels // groups, *kernel)]
            if chain.pick(True, False):
                inputs.append(chain.normal(channels))
            chain.add("Conv", inputs, result, strides=[stride] * 2, dilations=[dilation] * 2, group=groups, pads=pads)
        elif kind == "norm":
            batch_norm(chain)
        elif kind == "factor":
            chain.add(chain.pick("Mul", "Div"), [start, chain.normal(channels, 1, 1)], shape)
        terms.append(chain.last)
    while len(terms) > 1:
        operator = chain.pick("Add", "Add", "Sub", "Sum")
        count = min(len(terms), chain.pick(2, 3)) if operator == "Sum" else 2
        taken = [terms.pop(chain.pick(*range(len(terms)))) for _ in range(count)]
        chain.add(operator, taken, result)
        terms.append(chain.last)


def conv_transpose(chain: Chain) -> None:
    n, channels, height, width = chain.shape
    groups = chain.pick(1, channels)
    each, kernel, stride = chain.pick(1, 2), chain.pick(1, 2, 3), chain.pick(1, 2)
    if max(height, width) > 16:
        return
    inputs = [chain.last, chain.normal(channels, each, kernel, kernel)]
    if chain.pick(True, False):
        inputs.append(chain.normal(groups * each))
    sizes = [(size - 1) * stride + kernel for size in (height, width)]
    chain.add("ConvTranspose", inputs, (n, groups * each, *sizes), group=groups, strides=[stride] * 2)


def spread(chain: Chain) -> None:
    """A 1 x 1 convolution and perhaps DepthToSpace, which it makes the channels for; once and again."""
    for _ in range(chain.pick(1, 2, 3)):
        n, channels, height, width = chain.shape
        block, left = chain.pick(1, 2, 3), chain.pick(1, 2, 4)
        if max(height, width) > 16:
            return
        inputs = [chain.last, chain.normal(left * block**2, channels, 1, 1)]
        if chain.pick(True, False):
            inputs.append(chain.normal(left * block**2))
        chain.add("Conv", inputs, (n, left * block**2, height, width), kernel_shape=[1, 1])
        if chain.pick(True, False):
            chain.add(chain.pick("Relu", "Sigmoid"), [chain.last], chain.shape)
        if chain.pick(True, True, False):
            shape = (n, left, height * block, width * block)
            mode = chain.pick("CRD", "CRD", "CRD", "DCR")
            chain.add("DepthToSpace", [chain.last], shape, blocksize=block, mode=mode)


def gated(chain: Chain) -> None:
    """A map times a number for each channel, or for each of a row, and perhaps the map again."""
    start, shape = chain.last, chain.shape
    axes = chain.pick([2, 3], [3], [1])
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    if chain.opset >= 18:
        inputs, given = [start, chain.weight(np.array(axes, np.int64))], {}
    else:
        inputs, given = [start], {"axes": axes}
    chain.add("ReduceMean", inputs, kept, **given, keepdims=1)
    chain.add(chain.pick("Sigmoid", "Tanh"), [chain.last], kept)
    order = [start, chain.last]
    chain.add("Mul", chain.pick(order, order[::-1]), shape)
    if chain.pick(True, True, False):
        order = [start, chain.last]
        chain.add("Add", chain.pick(order, order[::-1]), shape)


def batch_norm(chain: Chain) -> None:
    channels = chain.shape[1]
    variance = chain.weight(chain.random.uniform(0.2, 2, channels).astype(np.float32))
    parameters = [chain.normal(channels) for _ in range(3)]
    chain.add("BatchNormalization", [chain.last, *parameters, variance], chain.shape, epsilon=chain.pick(1e-5, 1e-2))


def arithmetic(chain: Chain) -> None:
    operator = chain.pick("Add", "Sub", "Mul", "Div")
    rank = len(chain.shape)
    axis = chain.pick(1, 1, rank - 1) if rank > 1 else 0
    along = [1] * rank
    along[axis] = chain.shape[axis]
    kinds = [(), (1,), tuple(along), tuple(along[axis:]), chain.shape[-2:]]
    if chain.shape[0] == 1 and axis:  # the constant enlarges the tensor
        kinds.append((2, *along[1:]))
    shape = chain.pick(*kinds)
    values = chain.random.uniform(0.5, 2, shape) * chain.random.choice([-1, 1], shape)
    if chain.pick(False, False, False, True):
        values = np.full(shape, 0.0 if operator in ("Add", "Sub") else 1.0)
    name = chain.weight(np.asarray(values, np.float32))
    inputs = [chain.last, name]
    if chain.pick(False, False, True) and operator != "Div":
        inputs.reverse()
    chain.add(operator, inputs, np.broadcast_shapes(chain.shape, shape))


def pad(chain: Chain) -> None:
    n, channels, *sizes = chain.shape
    if not sizes:
        return
    pads = [chain.pick(0, 1, 2) for _ in range(2 * len(sizes))]
    value = chain.pick(0.0, 0.0, 1.5)
    rank = len(chain.shape)
    every = [0] * (rank - len(sizes)) + pads[: len(sizes)] + [0] * (rank - len(sizes)) + pads[len(sizes) :]
    inputs = [chain.last, chain.weight(np.array(every, np.int64)), chain.weight(np.array(value, np.float32))]
    result = [size + pads[i] + pads[i + len(sizes)] for i, size in enumerate(sizes)]
    if max(result) <= 24:
        chain.add("Pad", inputs, (n, channels, *result))


def lowest_pad(chain: Chain) -> None:
    """What exporters write for a padded MaxPool: the lowest number around, then the pool."""
    n, channels, height, width = chain.shape
    begin, end = chain.pick(0, 1), chain.pick(0, 1)
    if min(height, width) < 2:
        return
    pads = chain.weight(np.array([0, 0, begin, begin, 0, 0, end, end], np.int64))
    value = chain.weight(np.array(chain.pick(-np.inf, np.finfo(np.float32).min), np.float32))
    height, width = height + begin + end, width + begin + end
    chain.add("Pad", [chain.last, pads, value], (n, channels, height, width))
    chain.add("MaxPool", [chain.last], (n, channels, height - 1, width - 1), kernel_shape=[2, 2])
    chain.older.pop()  # too large to be used otherwise


def pool(chain: Chain) -> None:
    n, channels, *sizes = chain.shape
    kernel, stride, mode = (
        chain.pick(2, 3),
        chain.pick(1, 2),
        chain.pick("NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER"),
    )
    kind, pads = chain.pick("MaxPool", "AveragePool"), [chain.pick(0, 1) for _ in range(4)]
    attributes: dict[str, object] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
    if kind == "AveragePool" and chain.pick(True, False):
        attributes["count_include_pad"] = 1
    if mode == "NOTSET":
        attributes["pads"] = pads
        result = [(size + pads[i] + pads[i + 2] - kernel) // stride + 1 for i, size in enumerate(sizes)]
        if min(result) < 1:
            return
    else:
        attributes["auto_pad"] = mode
        result = [-(-size // stride) for size in sizes]
    chain.add(kind, [chain.last], (n, channels, *result), **attributes)


def unary(chain: Chain) -> None:
    chain.add(chain.pick("Relu", "Relu", "Sigmoid", "Identity", "Tanh"), [chain.last], chain.shape)


def no_op(chain: Chain) -> None:
    kind = chain.pick("Dropout", "Cast", "Expand", "Slice", "Concat")
    if kind == "Dropout":
        chain.add("Dropout", [chain.last], chain.shape, outputs=chain.pick(1, 2))
    elif kind == "Cast":
        chain.add("Cast", [chain.last], chain.shape, to=TensorProto.DOUBLE)
        chain.add("Cast", [chain.last], chain.shape, to=TensorProto.FLOAT)
        chain.older.pop()  # not of the type that everything else has
    elif kind == "Expand":
        sizes = chain.pick((1,), (1,) * len(chain.shape), chain.shape)
        chain.add("Expand", [chain.last, chain.weight(np.array(sizes, np.int64))], chain.shape)
    elif kind == "Slice":
        end = chain.pick(2**62, chain.shape[-1])
        limits = [chain.weight(np.array([number], np.int64)) for number in (0, end, -1)]
        chain.add("Slice", [chain.last, *limits], chain.shape)
    else:
        chain.add("Concat", [chain.last], chain.shape, axis=0)


def transpose(chain: Chain) -> None:
    order = list(chain.draw(st.permutations(range(len(chain.shape)))))
    back = [order.index(axis) for axis in range(len(order))]
    chain.add("Transpose", [chain.last], tuple(chain.shape[axis] for axis in order), perm=order)
    again = back if chain.pick(True, False) else list(chain.draw(st.permutations(range(len(chain.shape)))))
    chain.add("Transpose", [chain.last], tuple(chain.shape[axis] for axis in again), perm=again)


def reshape(chain: Chain) -> None:
    """To two dimensions and back, with a shape that is constant, has a wildcard, or is computed from the tensor."""
    n, *rest = chain.shape
    kind = chain.pick("constant", "wildcard", "copied", "computed", "flatten", "squeeze")
    flat, shape = int(np.prod(rest)), chain.shape
    if kind == "squeeze":
        axis = chain.weight(np.array([1], np.int64))
        chain.add("Unsqueeze", [chain.last, axis], (n, 1, *rest))
        chain.add("Squeeze", [chain.last, axis], shape)
        return
    if kind == "flatten":
        chain.add("Flatten", [chain.last], (n, flat), axis=1)
    else:
        chain.add("Reshape", [chain.last, _target(chain, kind, (n, flat))], (n, flat))
    chain.add("Reshape", [chain.last, _target(chain, chain.pick("constant", "wildcard", "computed"), shape)], shape)


def _target(chain: Chain, kind: object, shape: Shape) -> str:
    if kind == "constant":
        return chain.weight(np.array(shape, np.int64))
    if kind == "wildcard":
        return chain.weight(np.array([-1, *shape[1:]], np.int64))
    if kind == "copied":
        return chain.weight(np.array([0, -1], np.int64))
    index = len(chain.nodes)
    zero, one = chain.weight(np.array([0], np.int64)), chain.weight(np.array([1], np.int64))
    rest = chain.weight(np.array(shape[1:], np.int64))
    chain.nodes += [
        helper.make_node("Shape", [chain.last], [f"s{index}"], name=f"shape{index}"),
        helper.make_node("Slice", [f"s{index}", zero, one], [f"b{index}"], name=f"slice{index}"),
        helper.make_node("Concat", [f"b{index}", rest], [f"c{index}"], name=f"concat{index}", axis=0),
    ]
    return f"c{index}"


def residual(chain: Chain) -> None:
    same = [name for name, shape in chain.older if shape == chain.shape and name != chain.last]
    if same:
        chain.add("Add", [chain.last, chain.pick(*same)], chain.shape)


def repeated(chain: Chain) -> None:
    """The same node twice, and their product."""
    kind = chain.pick("Tanh", "Softplus")
    start, shape = chain.last, chain.shape
    chain.add(kind, [start], shape)
    first = chain.last
    chain.last = start
    chain.add(kind, [start], shape)
    chain.add("Mul", [first, chain.last], shape)


def product(chain: Chain) -> None:
    """A matrix product over the last dimension."""
    width, out = chain.shape[-1], chain.pick(1, 3, 4)
    if len(chain.shape) == 2 and chain.pick(True, False):
        transposed = chain.pick(0, 1)
        weights = chain.normal(*((out, width) if transposed else (width, out)))
        inputs = [chain.last, weights]
        if chain.pick(True, False):
            inputs.append(chain.normal(*chain.pick((out,), (1, out), (1,), ())))
        attributes = {"transB": transposed, "alpha": chain.pick(1.0, 0.5), "beta": chain.pick(1.0, 2.0)}
        chain.add("Gemm", inputs, (chain.shape[0], out), **attributes)
    else:
        chain.add("MatMul", [chain.last, chain.normal(width, out)], (*chain.shape[:-1], out))
    if chain.pick(True, False):
        chain.add("Add", [chain.last, chain.normal(*chain.pick((out,), (1,), (1, out)))], chain.shape)


def constants(chain: Chain) -> None:
    """Something computed from constants alone, added."""
    channels = chain.shape[-1]
    index = len(chain.nodes)
    value = numpy_helper.from_array(chain.random.standard_normal(channels).astype(np.float32))
    chain.nodes.append(helper.make_node("Constant", [], [f"k{index}"], name=f"constant{index}", value=value))
    kind = chain.pick("Neg", "Exp", "Abs")
    chain.nodes.append(helper.make_node(kind, [f"k{index}"], [f"m{index}"], name=f"made{index}"))
    chain.add("Add", [chain.last, f"m{index}"], chain.shape)


@st.composite
def graphs(draw: Draw, *steps: Callable[[Chain], None], rank: int = 4) -> tuple[ir.Model, dict[str, Array]]:
    """A graph of these steps, and inputs for it."""
    opset = draw(st.sampled_from([13, 17, 18, 21]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(draw(st.sampled_from([1, 2, 3, 4] if axis < 2 else [4, 5, 6, 8])) for axis in range(rank))
    chain = Chain(draw, opset, random, shape)
    for step in draw(st.lists(st.sampled_from(steps), min_size=1, max_size=6)):
        if step in (conv, conv_transpose, spread, gated, pool, lowest_pad) and len(chain.shape) != 4:
            continue
        if np.prod(chain.shape) <= 20000:
            step(chain)
    outputs = [chain.last] if chain.last != "x" else []
    middle = [name for name, _ in chain.older if name not in ("x", chain.last)]
    if middle and draw(st.integers(0, 3)) == 0:
        outputs.append(draw(st.sampled_from(middle)))
    if not outputs:
        chain.add("Relu", ["x"], chain.shape)
        outputs = [chain.last]
    shapes = {**dict(chain.older), chain.last: chain.shape}
    declared = [f"d{axis}" if draw(st.booleans()) else size for axis, size in enumerate(shape)]
    made = helper.make_graph(
        chain.nodes,
        "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, declared)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * len(shapes[name])) for name in outputs],
        chain.weights,
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(proto)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto)), {
        "x": random.standard_normal(shape).astype(np.float32)
    }
