"""Every operator that can be lowered, alone, against ONNX Runtime in FP32 on the CPU."""

from zlib import crc32

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from penstock.graph.lowering import SUPPORTED
from tests.engine.cuda.cases import RESIZING, X4, Case, ints
from tests.engine.cuda.reference import Array, Arrays, assert_agrees
from tests.graph.small import graph

pytestmark = pytest.mark.torch

# Sums of a few thousand products in another order; transcendental functions of two libraries.
TOLERANCE = 2e-6


CASES = [
    # convolutions
    Case("y = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w, b)", X4, (2, 8, 9, 7), {"w": (8, 6, 3, 3), "b": (8,)}),
    Case("y = Conv <strides=[2,3]> (x, w)", X4, (2, 8, 4, 2), {"w": (8, 6, 3, 2)}),
    Case("y = Conv <pads=[0,1,2,0]> (x, w, b)", X4, (2, 4, 9, 7), {"w": (4, 6, 3, 2), "b": (4,)}),
    Case("y = Conv <dilations=[2,1], pads=[2,0,2,0]> (x, w)", X4, (2, 4, 9, 7), {"w": (4, 6, 3, 1)}),
    Case("y = Conv <group=6, pads=[1,1,1,1]> (x, w, b)", X4, (2, 6, 9, 7), {"w": (6, 1, 3, 3), "b": (6,)}),
    Case("y = Conv <group=2> (x, w, b)", X4, (2, 8, 7, 5), {"w": (8, 3, 3, 3), "b": (8,)}),
    Case("y = Conv <group=6> (x, w)", X4, (2, 12, 8, 6), {"w": (12, 1, 2, 2)}),
    Case("y = Conv (x, w)", {"x": (2, 1, 9, 7)}, (2, 4, 7, 5), {"w": (4, 1, 3, 3)}, kinds=("pad", "conv", "copy")),
    Case("y = Conv <pads=[1,1]> (x, w, b)", {"x": (2, 6, 9)}, (2, 4, 9), {"w": (4, 6, 3), "b": (4,)}),
    Case("y = ConvTranspose <strides=[2,2]> (x, w, b)", X4, (2, 5, 18, 14), {"w": (6, 5, 2, 2), "b": (5,)}),
    Case(
        "y = ConvTranspose <strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]> (x, w)",
        X4,
        (2, 5, 18, 14),
        {"w": (6, 5, 3, 3)},
    ),
    Case("y = ConvTranspose <pads=[1,0,0,2], group=2> (x, w)", X4, (2, 6, 10, 7), {"w": (6, 3, 3, 3)}),
    # products
    Case("y = Gemm <transB=1> (x, w, b)", {"x": (3, 10)}, (3, 7), {"w": (7, 10), "b": (7,)}, kinds=("gemm",)),
    Case("y = Gemm <alpha=0.5, beta=2.0> (x, w, b)", {"x": (3, 10)}, (3, 7), {"w": (10, 7), "b": (1, 7)}),
    Case("y = Gemm <transA=1> (x, w)", {"x": (10, 3)}, (3, 7), {"w": (10, 7)}),
    Case("y = Gemm <beta=3.0> (x, w, b)", {"x": (3, 10)}, (3, 7), {"w": (10, 7), "b": (3, 1)}),
    Case("y = Gemm (x, w, b)", {"x": (3, 10)}, (3, 7), {"w": (10, 7), "b": (3, 7)}),
    Case("y = Gemm (x, w, b)", {"x": (1, 10)}, (1, 7), {"w": (10, 7), "b": (1, 7)}, kinds=("gemm",)),
    Case(
        "a = Gemm (x, w, b) c = Gemm (a, v, b) y = Relu (c)",
        {"x": (3, 10)},
        (3, 5),
        {"w": (10, 7), "v": (7, 5), "b": ()},
    ),
    Case("y = Gemm <beta=0.5> (x, w, z)", {"x": (3, 10), "z": (3, 7)}, (3, 7), {"w": (10, 7)}),
    Case("a = MatMul (x, w) y = Add (a, z)", {"x": (3, 10), "z": (3, 7)}, (3, 7), {"w": (10, 7)}, kinds=("gemm",)),
    Case("a = MatMul (x, z) y = Add (a, b)", {"x": (3, 10), "z": (10, 7)}, (3, 7), {"b": (7,)}),
    Case("y = Gemm <alpha=0.5, transA=1, transB=1> (x, z, b)", {"x": (10, 3), "z": (7, 10)}, (3, 7), {"b": (7,)}),
    Case("y = MatMul (x, w)", {"x": (2, 5, 10)}, (2, 5, 7), {"w": (10, 7)}, kinds=("gemm",)),
    Case("y = MatMul (x, w)", {"x": (2, 3, 5, 10)}, (2, 3, 5, 7), {"w": (10, 7)}),
    Case("y = MatMul (x, z)", {"x": (2, 3, 5, 10), "z": (2, 3, 10, 4)}, (2, 3, 5, 4), kinds=("matmul",)),
    Case("y = MatMul (x, z)", {"x": (2, 3, 5, 10), "z": (10, 4)}, (2, 3, 5, 4)),
    Case("y = MatMul (w, x)", {"x": (2, 10, 5)}, (2, 4, 5), {"w": (4, 10)}),
    # elementwise, with broadcasting
    *(Case(f"y = {name} (x, z)", {"x": (2, 3, 4), "z": (3, 1)}, (2, 3, 4)) for name in ("Add", "Sub", "Mul", "Div")),
    *(
        Case(f"y = {name} (x, z)", {"x": (2, 3, 4), "z": (2, 1, 4)}, (2, 3, 4))
        for name in ("Min", "Max", "Sum", "Mean")
    ),
    *(
        Case(f"y = {name} (x)", {"x": (2, 3, 40)}, (2, 3, 40))
        for name in (
            *(
                "Relu",
                "Sigmoid",
                "HardSwish",
                "Tanh",
                "Erf",
                "Exp",
                "Neg",
                "Abs",
                "Reciprocal",
                "Sign",
                "Floor",
                "Ceil",
            ),
            *("Round", "Softplus", "Sin", "Cos", "Gelu", "HardSigmoid", "LeakyRelu", "Elu", "Mish", "Identity"),
            *("Dropout",),
        )
    ),
    Case('y = Gelu <approximate="tanh"> (x)', {"x": (2, 3, 40)}, (2, 3, 40)),
    Case("y = Swish (x)", {"x": (2, 3, 40)}, (2, 3, 40), opset=24),
    Case("y = HardSigmoid <alpha=0.3, beta=0.6> (x)", {"x": (2, 3, 40)}, (2, 3, 40)),
    Case("y = PRelu (x, w)", {"x": (2, 3, 4)}, (2, 3, 4), {"w": (3, 1)}),
    Case("y = Clip (x, l, h)", {"x": (2, 30)}, (2, 30), {"l": np.float32(-0.5), "h": np.float32(0.25)}),
    Case("y = Clip (x, l)", {"x": (2, 30)}, (2, 30), {"l": np.float32(0.1)}),
    Case("a = Abs(x) y = Sqrt (a)", {"x": (2, 30)}, (2, 30)),
    Case("a = Abs(x) y = Log (a)", {"x": (2, 30)}, (2, 30)),
    Case("a = Abs(x) y = Pow (a, w)", {"x": (2, 30)}, (2, 30), {"w": np.float32(1.7)}),
    Case(
        "y = BatchNormalization (x, s, o, m, v)",
        X4,
        (2, 6, 9, 7),
        {"s": (6,), "o": (6,), "m": (6,), "v": np.linspace(0.5, 2, 6, dtype=np.float32)},
    ),
    # masks
    *(
        Case(f"c = {name} (x, z) y = Where (c, x, z)", {"x": (2, 3, 4), "z": (3, 4)}, (2, 3, 4))
        for name in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
    ),
    Case(
        "a = Less(x, z) b = Greater(x, w) c = And(a, b) d = Not(c) e = Or(d, b) y = Where(e, w, x)",
        {"x": (2, 3), "z": (3,)},
        (2, 3),
        {"w": np.float32(0.1)},
    ),
    Case("a = Log(x) c = IsNaN(a) y = Where(c, w, a)", {"x": (2, 30)}, (2, 30), {"w": np.float32(0.0)}),
    Case(
        "i = Cast <to=7> (x) j = Mul(i, w) y = Cast <to=1> (j)",
        {"x": np.linspace(-9, 9, 20, dtype=np.float32)},
        (20,),
        {"w": ints(3)},
    ),
    Case(
        "i = Cast <to=2> (x) y = Cast <to=1> (i)",
        {"x": ints(300, 5, -1, 256)},
        (4,),
    ),
    Case(
        "i = Cast <to=7> (x) y = Div(i, w)",
        {"x": np.linspace(-9, 9, 20, dtype=np.float32)},
        (20,),
        {"w": ints(4)},
        "int64[{}] y",
    ),
    # over axes
    *(
        Case(f"y = {name} <axis={axis}> (x)", {"x": (2, 5, 7)}, (2, 5, 7))
        for name in ("Softmax", "LogSoftmax")
        for axis in (-1, 1)
    ),
    Case(
        "y = LayerNormalization <axis=-1, epsilon=0.001> (x, w, b)",
        {"x": (2, 5, 16)},
        (2, 5, 16),
        {"w": (16,), "b": (16,)},
        kinds=("layer_norm",),
    ),
    Case("y = LayerNormalization <axis=1> (x, w)", {"x": (2, 5, 16)}, (2, 5, 16), {"w": (5, 16)}),
    *(
        Case(f"y = {name} <keepdims={keep}> (x, w)", {"x": (2, 5, 7)}, (2, 1, 7) if keep else (2, 7), {"w": ints(1)})
        for name in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
        for keep in (0, 1)
    ),
    Case("y = ReduceMean (x)", {"x": (2, 5, 7)}, (1, 1, 1)),
    Case("y = ArgMax <axis=1, keepdims=0> (x)", {"x": (2, 5, 7)}, (2, 7), outputs="int64[{}] y"),
    Case("y = ArgMin <axis=-1> (x)", {"x": (2, 5, 7)}, (2, 5, 1), outputs="int64[{}] y"),
    Case("y = GlobalAveragePool (x)", X4, (2, 6, 1, 1)),
    Case("y = GlobalMaxPool (x)", X4, (2, 6, 1, 1)),
    Case("y = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (x)", X4, (2, 6, 5, 4)),
    Case("y = MaxPool <kernel_shape=[2,2], strides=[2,1], pads=[0,1,0,1]> (x)", X4, (2, 6, 4, 8)),
    Case("y = MaxPool <kernel_shape=[2,2], pads=[0,0,1,1]> (x)", X4, (2, 6, 9, 7)),
    Case("y = MaxPool <kernel_shape=[2,2], strides=[2,2], ceil_mode=1> (x)", X4, (2, 6, 5, 4)),
    Case("y = MaxPool <kernel_shape=[2,2], dilations=[2,2]> (x)", X4, (2, 6, 7, 5)),
    Case("y = AveragePool <kernel_shape=[3,2], strides=[3,2]> (x)", X4, (2, 6, 3, 3)),
    Case("y = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]> (x)", X4, (2, 6, 9, 7)),
    Case("y = AveragePool <kernel_shape=[3,3], pads=[1,0,1,1], count_include_pad=1> (x)", X4, (2, 6, 9, 6)),
    # moves
    Case("y = Transpose <perm=[2,0,1]> (x)", {"x": (2, 3, 4)}, (4, 2, 3), kinds=("copy",)),
    Case("y = Reshape (x, w)", {"x": (2, 3, 4)}, (6, 4), {"w": ints(-1, 4)}),
    Case("t = Transpose <perm=[0,2,1]> (x) y = Reshape (t, w)", {"x": (2, 3, 4)}, (2, 12), {"w": ints(2, -1)}),
    Case("y = Flatten <axis=2> (x)", {"x": (2, 3, 4, 5)}, (6, 20)),
    Case("y = Squeeze (x, w)", {"x": (2, 1, 4)}, (2, 4), {"w": ints(1)}),
    Case("y = Unsqueeze (x, w)", {"x": (2, 4)}, (1, 2, 1, 4), {"w": ints(0, 2)}),
    Case("y = Expand (x, w)", {"x": (3, 1)}, (2, 3, 4), {"w": ints(2, 1, 4)}),
    Case("y = Tile (x, w)", {"x": (3, 2)}, (6, 6), {"w": ints(2, 3)}),
    Case("y = Slice (x, a, b, c, d)", {"x": (4, 9)}, (4, 3), {"a": ints(1), "b": ints(-2), "c": ints(1), "d": ints(2)}),
    Case("y = Slice (x, a, b)", {"x": (4, 9)}, (2, 4), {"a": ints(-3, 5), "b": ints(-1, 1000)}),
    Case("y, z = Split <axis=1> (x, w)", {"x": (2, 7)}, (2, 3), {"w": ints(3, 4)}, "float[{}] y, float[2,4] z"),
    Case("y = Concat <axis=1> (x, z)", {"x": (2, 3, 4), "z": (2, 2, 4)}, (2, 5, 4), kinds=("pieces",)),
    *(
        Case(
            f"a = {before} b = Slice (a, at, end, one) c = Slice (a, zero, at, one) d = Concat <axis=1> (b, c) "
            "e = Slice (d, cut, end, two) f = Slice (d, zero, cut, two) y = Concat <axis=2> (e, f)",
            {"x": (2, 5, 7, 3)},
            (2, 5, 7, 3),
            {
                name: ints(number)
                for name, number in {"at": 2, "end": 99, "one": 1, "zero": 0, "cut": cut, "two": 2}.items()
            },
            kinds=("pieces",),
        )
        for cut in (4, 1)
        for before in ("Identity (x)", "Exp (x)")
    ),
    Case("y = Concat <axis=-1> (x, w)", {"x": (2, 3)}, (2, 5), {"w": (2, 2)}),
    Case("y = Gather <axis=1> (x, w)", {"x": (2, 3, 4)}, (2, 4), {"w": np.array(-1, np.int64)}),
    Case("y = Gather <axis=1> (x, w)", {"x": (2, 3, 4)}, (2, 2, 2, 4), {"w": np.array([[0, 2], [1, -1]])}),
    Case("y = Gather <axis=1> (x, w)", {"x": (2, 9, 4)}, (2, 3, 4), {"w": np.array([1, 4, 7])}, kinds=("copy",)),
    Case("y = Gather <axis=1> (x, w)", {"x": (2, 9, 4)}, (2, 3, 4), {"w": np.array([7, 4, 1])}, kinds=("gather",)),
    Case("y = Gather <axis=1> (x, w)", {"x": (2, 9, 4)}, (2, 2, 4), {"w": np.array([-3, -3])}, kinds=("copy",)),
    Case(
        "y = Gather <axis=2> (x, w)",
        {"x": (2, 3, 9)},
        (2, 3, 3, 5),
        {"w": np.arange(3)[:, None] * 2 + np.arange(5)},
        kinds=("copy",),
    ),
    Case(
        "a = Gather <axis=2> (x, w) b = Gather <axis=4> (a, w) y = Relu (b)",
        {"x": (1, 2, 6, 6)},
        (1, 2, 2, 4, 2, 4),
        {"w": np.array([[0, 1, 2, 3], [2, 3, 4, 5]])},
        kinds=("pointwise",),
    ),
    Case("a = MatMul (x, w) y = Add (b, a)", {"x": (2, 5, 4)}, (2, 5, 3), {"w": (4, 3), "b": (1, 1, 3)}),
    Case(
        "y = Slice (x, s, e, a, t)",
        {"x": (2, 5, 4)},
        (2, 3, 4),
        {"s": ints(-1), "e": ints(-9), "a": ints(1), "t": ints(-2)},
    ),
    Case(
        "y = Slice (x, s, e, a, t)",
        {"x": (2, 5, 4)},
        (2, 1, 4),
        {"s": ints(0), "e": ints(-9), "a": ints(1), "t": ints(-1)},
    ),
    Case(
        "y = Slice (x, s, e, a, t)",
        {"x": (2, 5, 4)},
        (2, 5, 2),
        {"s": ints(4, 1), "e": ints(-9, 3), "a": ints(1, 2), "t": ints(-1, 1)},
    ),
    Case("y = Gather (w, i)", {"i": np.array([[3, 0], [-1, 2]])}, (2, 2, 5), {"w": (4, 5)}, kinds=("gather",)),
    Case("y = Pad (x, w)", X4, (2, 6, 12, 8), {"w": ints(0, 0, 1, 0, 0, 0, 2, 1)}, kinds=("pad",)),
    Case("y = Pad (x, w, v)", {"x": (2, 5)}, (3, 4), {"w": ints(1, -2, 0, 1), "v": np.float32(0.5)}),
    *RESIZING,
    # recurrent
    *(
        Case(
            f'y, h, c = LSTM <hidden_size=4, direction="{direction}"> (x, w, r, b)',
            {"x": (5, 2, 3)},
            (5, count, 2, 4),
            {"w": (count, 16, 3), "r": (count, 16, 4), "b": (count, 32)},
            f"float[{{}}] y, float[{count},2,4] h, float[{count},2,4] c",
            kinds=("lstm", "copy") if count == 2 else ("lstm",),
        )
        for direction, count in (("forward", 1), ("bidirectional", 2))
    ),
    Case(
        "t = Transpose <perm=[1,0,2]> (x) y = LSTM <hidden_size=4> (t, w, r)",
        {"x": (2, 5, 3)},
        (5, 1, 2, 4),
        {"w": (1, 16, 3), "r": (1, 16, 4)},
        kinds=("lstm",),
    ),
    Case(
        "t = Transpose <perm=[2,0,1]> (x) y = LSTM <hidden_size=4> (t, w, r)",
        {"x": (2, 3, 5)},
        (5, 1, 2, 4),
        {"w": (1, 16, 3), "r": (1, 16, 4)},
        kinds=("copy", "lstm"),
    ),
    Case(
        "y = LSTM <hidden_size=4> (x, w, r, , , h, c)",
        {"x": (5, 2, 3), "h": (1, 2, 4), "c": (1, 2, 4)},
        (5, 1, 2, 4),
        {"w": (1, 16, 3), "r": (1, 16, 4)},
    ),
    *(
        Case(
            f'y, h = GRU <hidden_size=4, linear_before_reset=1, direction="{direction}"> (x, w, r, b)',
            {"x": (5, 2, 3)},
            (5, count, 2, 4),
            {"w": (count, 12, 3), "r": (count, 12, 4), "b": (count, 24)},
            f"float[{{}}] y, float[{count},2,4] h",
            kinds=("gru", "copy") if count == 2 else ("gru",),
        )
        for direction, count in (("forward", 1), ("bidirectional", 2))
    ),
    Case(
        "y = GRU <hidden_size=4, linear_before_reset=1> (x, w, r, , , h)",
        {"x": (5, 2, 3), "h": (1, 2, 4)},
        (5, 1, 2, 4),
        {"w": (1, 12, 3), "r": (1, 12, 4)},
    ),
    # norms of images
    Case("y = InstanceNormalization (x, w, b)", X4, (2, 6, 9, 7), {"w": (6,), "b": (6,)}),
    Case("y = InstanceNormalization <epsilon=0.1> (x, w, b)", {"x": (2, 6, 9)}, (2, 6, 9), {"w": (6,), "b": (6,)}),
    Case(
        "c = Conv (x, v) y = InstanceNormalization (c, w, b)",
        X4,
        (2, 8, 9, 7),
        {"v": (8, 6, 1, 1), "w": (8,), "b": (8,)},
        kinds=("copy", "conv", "norm_factors", "pointwise", "copy"),
    ),
    Case(
        "c = Conv (x, v) r = Reshape (c, cut) n = InstanceNormalization (r, w, b) d = Reshape (n, whole) y = Relu (d)",
        X4,
        (2, 8, 9, 7),
        {"v": (8, 6, 1, 1), "w": (2,), "b": (2,), "cut": ints(0, 2, -1), "whole": ints(2, 8, 9, 7)},
        kinds=("copy", "conv", "norm_factors", "pointwise", "copy"),
    ),
    Case(
        "c = Conv (x, v) r = Reshape (c, p) n = InstanceNormalization (r, w, b) s = Softmax (n) y = Reshape (s, whole)",
        X4,
        (2, 8, 9, 7),
        {"v": (8, 6, 1, 1), "w": (2,), "b": (2,), "p": ints(0, 2, -1), "whole": ints(2, 8, 9, 7)},
    ),
    Case(
        "r = Reshape (x, p) n = InstanceNormalization (r, w, b) y = Reshape (n, q)",
        {"x": (40,)},
        (40,),
        {"w": (4,), "b": (4,), "p": ints(2, 4, 5), "q": ints(40)},
    ),
    Case(
        "c = Conv (x, v) y = GroupNormalization <num_groups=2> (c, w, b)",
        X4,
        (2, 8, 9, 7),
        {"v": (8, 6, 1, 1), "w": (8,), "b": (8,)},
        opset=21,
        kinds=("copy", "conv", "norm_factors", "pointwise", "copy"),
    ),
    Case("y = GroupNormalization <num_groups=3> (x, w, b)", X4, (2, 6, 9, 7), {"w": (6,), "b": (6,)}, opset=21),
    # blocks of pixels
    *(
        Case(f'y = DepthToSpace <blocksize=2, mode="{mode}"> (x)', {"x": (2, 12, 3, 5)}, (2, 3, 6, 10))
        for mode in ("DCR", "CRD")
    ),
    Case("c = Conv (x, w) y = DepthToSpace <blocksize=2> (c)", X4, (2, 2, 18, 14), {"w": (8, 6, 1, 1)}),
    Case("y = SpaceToDepth <blocksize=3> (x)", {"x": (2, 2, 6, 9)}, (2, 18, 2, 3)),
    Case('y = Resize <mode="cubic"> (x, , w)', X4, (2, 6, 9, 7), {"w": np.ones(4, np.float32)}),
    *(
        Case(
            f'y = GridSample <mode="{mode}", padding_mode="{padding}", align_corners={align}> (x, g)',
            {"x": (2, 3, 6, 5), "g": (2, 4, 7, 2)},
            (2, 3, 4, 7),
        )
        for mode, padding, align in (("linear", "zeros", 0), ("linear", "border", 1), ("cubic", "reflection", 0))
    ),
    # elements by number, in order, summed up
    *(
        Case(
            f"y = GatherElements <axis={axis}> (x, i)",
            {"x": (3, 4, 2), "i": np.array([[[0, 1]], [[-1, 1]]], np.int64)},
            (2, 1, 2),
        )
        for axis in (0, 1, -1)
    ),
    Case("y = GatherElements <axis=1> (x, i)", {"x": (2, 4)}, (2, 3), {"i": np.array([[0, -1, 2], [3, 3, 0]])}),
    Case("y = GatherND (x, i)", {"x": (3, 4, 2), "i": np.array([[0, 1], [-1, -2]], np.int64)}, (2, 2)),
    Case("y = GatherND <batch_dims=1> (x, i)", {"x": (2, 4, 3), "i": np.array([[[1]], [[-1]]], np.int64)}, (2, 1, 3)),
    Case("y = GatherND (x, i)", {"x": (3, 4, 2)}, (2, 2), {"i": np.array([[0, 1], [-1, -2]])}),
    Case("y = GatherND <batch_dims=1> (x, i)", {"x": (2, 4, 3)}, (2, 2), {"i": np.array([[[1, 0], [2, 1]]] * 2)}),
    *(
        Case(
            f"y, i = TopK <axis={axis}, largest={largest}> (x, k)",
            {"x": np.random.default_rng(axis + 1).permutation(105).reshape(3, 7, 5).astype(np.float32)},
            (3, 4, 5) if axis == 1 else (3, 7, 4),
            {"k": ints(4)},
            f"float[{{}}] y, int64[{'3,4,5' if axis == 1 else '3,7,4'}] i",
        )
        for axis, largest in ((1, 1), (-1, 0))
    ),
    Case(  # of equal ones the first
        "y, i = TopK (x, k)",
        {"x": np.array([[1, 3, 3, 0, 3, 1]], np.float32)},
        (1, 4),
        {"k": ints(4)},
        "float[{}] y, int64[1,4] i",
    ),
    *(
        Case(f"y = CumSum <exclusive={exclusive}, reverse={reverse}> (x, k)", {"x": (3, 5)}, (3, 5), {"k": ints(1)[0]})
        for exclusive in (0, 1)
        for reverse in (0, 1)
    ),
    Case("y = CumSum (x, k)", {"x": np.array([[1, 0, 2], [5, -3, 1]])}, (2, 3), {"k": ints(-1)[0]}, "int64[{}] y"),
    Case(
        "y = ScatterElements <axis=1> (x, i, u)", {"x": (3, 5), "u": (2, 2)}, (3, 5), {"i": np.array([[0, -1], [2, 1]])}
    ),
    Case("y = ScatterND (x, i, u)", {"x": (4, 3, 2), "u": (2, 3, 2)}, (4, 3, 2), {"i": np.array([[-1], [1]])}),
    Case("y = ScatterND (x, i, u)", {"x": (4, 3, 2), "u": (2, 2)}, (4, 3, 2), {"i": np.array([[0, 2], [3, -3]])}),
    Case("y = ScatterND (x, i, u)", {"x": (4, 3), "u": (1, 2)}, (4, 3), {"i": np.array([[[0, 2], [3, 1]]])}),
    *(
        Case(f'y = Pad <mode="{mode}"> (x, p)', X4, (2, 6, 12, 7), {"p": ints(0, 0, 2, 1, 0, 0, 1, -1)})
        for mode in ("reflect", "edge", "wrap")
    ),
    Case(
        'c = Conv (x, w) y = Pad <mode="reflect"> (c, p)',
        X4,
        (2, 4, 11, 8),
        {"w": (4, 6, 1, 1), "p": ints(0, 0, 2, 0, 0, 0, 0, 1)},
    ),
    # one dimension
    Case("y = MaxPool <kernel_shape=[3], strides=[2], pads=[1,0]> (x)", {"x": (2, 6, 9)}, (2, 6, 4)),
    Case("y = AveragePool <kernel_shape=[3], pads=[1,1], ceil_mode=1, strides=[2]> (x)", {"x": (2, 6, 8)}, (2, 6, 5)),
    Case(
        "y = ConvTranspose <strides=[2], pads=[1,0], output_padding=[1]> (x, w, b)",
        {"x": (2, 6, 5)},
        (2, 4, 11),
        {"w": (6, 4, 3), "b": (4,)},
    ),
    # activations of the past, and triangles
    *(Case(f"y = {name} (x)", {"x": (2, 5, 6)}, (2, 5, 6)) for name in ("Selu", "Softsign", "Celu", "ThresholdedRelu")),
    Case("y = Celu <alpha=0.3> (x)", {"x": (2, 5)}, (2, 5)),
    Case(
        "a = Less(x, z) b = Greater(x, w) c = Xor (a, b) y = Cast<to=1>(c)",
        {"x": (2, 5), "z": (2, 5)},
        (2, 5),
        {"w": (5,)},
    ),
    Case("y = Trilu (x)", {"x": (2, 5, 6)}, (2, 5, 6)),
    Case("y = Trilu <upper=0> (x, k)", {"x": (5, 6)}, (5, 6), {"k": ints(-1)[0]}),
    # products by letters
    *(
        Case(f'y = Einsum <equation="{equation}"> (a, b)', {"a": a, "b": b}, out)
        for equation, a, b, out in (
            ("bhid,bhjd->bhij", (2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 4, 6)),
            ("bhwc,hkc->bhwk", (2, 3, 4, 5), (3, 6, 5), (2, 3, 4, 6)),
            ("bchw,bkc->bkhw", (2, 5, 3, 4), (2, 6, 5), (2, 6, 3, 4)),
            ("ij,jk", (3, 4), (4, 5), (3, 5)),
            ("i,j->ij", (3,), (4,), (3, 4)),
            ("...ij,...jk->...ik", (2, 3, 4, 5), (1, 3, 5, 2), (2, 3, 4, 2)),
            ("bij,bj->bi", (2, 3, 4), (2, 4), (2, 3)),
            ("ijk,il->kl", (2, 3, 4), (2, 5), (4, 5)),
        )
    ),
    Case('y = Einsum <equation="ijk->ki"> (a)', {"a": (2, 3, 4)}, (4, 2)),
    Case('y = Einsum <equation="bii->bi"> (a)', {"a": (2, 3, 3)}, (2, 3)),
]


def drawn(name: str, given: tuple[int, ...] | Array) -> Array:
    if not isinstance(given, tuple):
        return np.asarray(given)
    return np.random.default_rng(crc32(name.encode())).standard_normal(given).astype(np.float32)


def declared(name: str, array: Array) -> str:
    kind = {"float32": "float", "int64": "int64"}[array.dtype.name]
    return f"{kind}[{','.join(map(str, array.shape))}] {name}"


def model_of(case: Case) -> tuple[ir.Model, Arrays]:
    inputs = {name: drawn(name, given) for name, given in case.inputs.items()}
    weights = {name: drawn(name, given) for name, given in case.weights.items()}
    outputs = case.outputs.format(",".join(map(str, case.out or ())))
    given = ", ".join(declared(name, array) for name, array in inputs.items())
    return graph(f"({given}) => ({outputs}) {{ {case.text} }}", weights, case.opset), inputs


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.text} {next(iter(case.inputs.values()))}"[:90])
def test_an_operator_agrees_with_onnx_runtime(case: Case) -> None:
    model, inputs = model_of(case)
    lowered = assert_agrees(model, model, inputs, TOLERANCE)
    if case.kinds:
        assert tuple(step.kind for step in lowered.steps) == case.kinds


def test_every_supported_operator_has_a_case() -> None:
    tested = " ".join(case.text for case in CASES)
    missing = {name for name in SUPPORTED if f"= {name} " not in tested and f"= {name}(" not in tested}
    assert not missing
