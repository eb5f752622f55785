"""Small networks in eight bits: what the tests of steps with a scale have in common."""

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import torch

from penstock.engine.cuda.calibrating import Calibrator
from penstock.engine.cuda.eight_bits import rounded
from penstock.engine.cuda.executor import Executor
from penstock.engine.eight_bits import Grids, in_eight_bits
from penstock.engine.lowered import LoweredGraph
from penstock.graph import optimize
from penstock.graph.lowering import lower
from tests.graph.small import graph, normal

Array = Any
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Network:
    """An ONNX graph of one input x, and what of it is stored in eight bits."""

    name: str
    text: str
    shape: tuple[int, ...]
    weights: dict[str, tuple[int, ...]]
    stored: frozenset[str]
    kernels: tuple[str, ...]
    """Kinds of steps that ours have to execute."""
    datatype: str = "INT8"

    def lowered(self) -> tuple[LoweredGraph, Tensors]:
        made = {name: _drawn(name, shape) for name, shape in self.weights.items()}
        model = graph(self.text, made, 20)
        found, weights = lower(optimize(model, shapes={"x": self.shape}).model, joined=False)
        return found, {name: torch.from_numpy(np.array(each)) for name, each in weights.items()}

    def inputs(self, device: str = "cpu") -> Tensors:
        return {"x": torch.from_numpy(normal(*self.shape, seed=5)).to(device)}

    def narrowed(self, device: str = "cpu") -> tuple[LoweredGraph, Tensors, Grids]:
        found, weights = self.lowered()
        calibrator = Calibrator(Executor(found, weights, device, "fp32"), self.datatype)
        calibrator.see(self.inputs(device))
        grids = calibrator.grids({name: each.to(device) for name, each in weights.items()})
        narrow, tensors = in_eight_bits(
            found, {name: each.to(device) for name, each in weights.items()}, grids, self.datatype, rounded
        )
        return narrow, tensors, grids


def _drawn(name: str, shape: tuple[int, ...]) -> Array:
    if not shape:
        return np.float32({"low": 0.0, "high": 6.0}[name])
    return normal(*shape, seed=crc32(name.encode())) / np.sqrt(np.prod(shape[1:], dtype=np.float32))


NETWORKS = (
    Network(
        "residual",
        """(float[1,3,17,17] x) => (float[1,10] y) {
        s = Conv <kernel_shape=[7,7], strides=[2,2], pads=[3,3,3,3]> (x, stem) t = Relu(s)
        p = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (t)
        a = Conv <pads=[1,1,1,1]> (p, one, b) c = Relu(a)
        d = Conv <pads=[1,1,1,1]> (c, two, b) e = Add(d, p) f = Relu(e)
        g = Conv <strides=[2,2], pads=[1,1,1,1]> (f, wide) h = Relu(g) i = Conv <pads=[1,1,1,1]> (h, wider)
        j = Conv <strides=[2,2]> (f, across) k = Add(i, j) l = Relu(k)
        m = GlobalAveragePool(l) n = Flatten(m) y = Gemm <transB=1> (n, last) }""",
        (1, 3, 17, 17),
        {
            "stem": (32, 3, 7, 7),
            "one": (32, 32, 3, 3),
            "two": (32, 32, 3, 3),
            "b": (32,),
            "wide": (48, 32, 3, 3),
            "wider": (48, 48, 3, 3),
            "across": (48, 32, 1, 1),
            "last": (10, 48),
        },
        frozenset({"n0.pad", "t", "p", "c", "f", "h", "i", "m"}),
        ("pad", "conv", "max_pool", "reduce", "gemm"),
    ),
    Network(
        "a float reader",
        """(float[1,32,5,5] x) => (float[1,32,5,5] y) {
        a = Conv(x, one) b = Relu(a) c = Conv(b, two) d = Tanh(b) e = Mul(c, d) y = Conv(e, one) }""",
        (1, 32, 5, 5),
        {"one": (32, 32, 1, 1), "two": (32, 32, 1, 1)},
        frozenset({"x.int8", "b.int8", "e.int8"}),
        ("conv",),
    ),
    Network(
        "depthwise",
        """(float[1,32,9,8] x) => (float[1,32,9,8] y) {
        a = Conv(x, one) b = Clip(a, low, high)
        c = Conv <group=64, pads=[1,1,1,1]> (b, two, bias) d = Clip(c, low, high)
        e = Conv(d, three) f = Conv(e, one) g = Relu(f) h = Conv <group=64, pads=[1,1,1,1]> (g, two) i = Conv(h, three)
        j = Add(i, e) y = Conv(j, four) }""",
        (1, 32, 9, 8),
        {
            "one": (64, 32, 1, 1),
            "two": (64, 1, 3, 3),
            "bias": (64,),
            "three": (32, 64, 1, 1),
            "four": (32, 32, 1, 1),
            "low": (),
            "high": (),
        },
        frozenset({"b", "d", "e", "g", "h", "j"}),
        ("conv",),
    ),
    Network(
        "transformer",
        """(float[2,5,64] x) => (float[2,5,64] y) {
        n = LayerNormalization <axis=-1> (x, gain, shift) q = MatMul(n, one) g = Gelu(q) r = MatMul(g, two)
        y = Add(r, x) }""",
        (2, 5, 64),
        {"gain": (64,), "shift": (64,), "one": (64, 96), "two": (96, 64)},
        frozenset({"n", "g"}),
        ("gemm", "layer_norm"),
        "FP8",
    ),
    Network(
        "patches of a picture",
        """(float[2,3,16,16] x) => (float[2,32,2,2] y) { p = Conv <strides=[8,8]> (x, cut) y = Conv(p, one) }""",
        (2, 3, 16, 16),
        {"cut": (64, 3, 8, 8), "one": (32, 64, 1, 1)},
        frozenset({"p"}),
        ("conv",),
        "FP8",
    ),
)
