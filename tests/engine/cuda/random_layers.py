"""Random small networks of convolutions, pools, norms and gates; for `test_random_layers`."""

import math
from collections.abc import Callable

import numpy as np
import onnx

from tests.engine.cuda.drawing import Drawing

_WIDEST = 64


class Layers(Drawing):
    """A network that grows by one layer at a time; input `x` of shape `input`, [N, C, H, W]."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.channels = self.random.choice((1, 2, 3, 4, 6, 8, 12, 16))
        self.input = (self.pick(1, 3), self.channels, self.pick(3, 14), self.pick(3, 14))
        self.last, self.answers = "x", list[str]()
        for _ in range(self.pick(1, 5)):
            self.random.choice(_GROWTH)(self)
            if self.random.random() < 0.15:
                self.answers.append(self.last)
            if self.channels > _WIDEST:
                break
        self.answers.append(self.last)

    def then(self, kind: str, *others: str, **attributes: object) -> None:
        self.last = self.node(kind, [self.last, *others], **attributes)

    def scaled(self, *shape: int) -> str:
        """Weights that keep numbers of the size they have."""
        scale = max(1, math.prod(shape[1:])) ** -0.5
        return self.weight((self.numbers.standard_normal(shape) * scale).astype(np.float32))

    def kernel(self) -> list[int]:
        return [self.pick(1, 5), self.pick(1, 5)]

    def strides(self) -> list[int]:
        return [self.pick(1, 3)] * 2

    def pads(self, kernel: list[int]) -> list[int]:
        return [self.pick(0, size - 1) for size in (*kernel, *kernel)]

    def groups(self, *of: int) -> int:
        return self.random.choice([each for each in of if self.channels % each == 0])

    def model(self) -> onnx.ModelProto:
        return self.model_of(dict.fromkeys(self.answers))


def _conv(drawn: Layers) -> None:
    kernel, dilation, groups = drawn.kernel(), drawn.random.choice((1, 1, 2)), drawn.groups(1, 1, 2, 3, 4, 8)
    width = groups * drawn.pick(1, 6)
    weights = [drawn.scaled(width, drawn.channels // groups, *kernel)]
    if drawn.random.random() < 0.6:
        weights.append(drawn.scaled(width))
    attributes: dict[str, object] = {"pads": [pad * dilation for pad in drawn.pads(kernel)]}
    if dilation == 1 and drawn.random.random() < 0.3:
        attributes = {"auto_pad": drawn.random.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))}
    steps = {"strides": drawn.strides(), "dilations": [dilation] * 2}
    drawn.then("Conv", *weights, kernel_shape=kernel, group=groups, **steps, **attributes)
    drawn.channels = width


def _depthwise(drawn: Layers) -> None:
    kernel = drawn.kernel()
    weights = drawn.scaled(drawn.channels, 1, *kernel)
    drawn.then(
        "Conv", weights, kernel_shape=kernel, strides=drawn.strides(), pads=drawn.pads(kernel), group=drawn.channels
    )


def _transposed(drawn: Layers) -> None:
    kernel, groups, width = drawn.kernel(), drawn.groups(1, 1, 2), drawn.pick(1, 5)
    weights = drawn.scaled(drawn.channels, width, *kernel)
    drawn.then("ConvTranspose", weights, kernel_shape=kernel, strides=drawn.strides(), group=groups)
    drawn.channels = width * groups


def _pool(drawn: Layers) -> None:
    kernel, kind = drawn.kernel(), drawn.random.choice(("MaxPool", "AveragePool"))
    more = {"count_include_pad": drawn.pick(0, 1)} if kind == "AveragePool" else {}
    sizes = {"kernel_shape": kernel, "strides": drawn.strides(), "pads": drawn.pads(kernel)}
    drawn.then(kind, ceil_mode=drawn.pick(0, 1), **sizes, **more)


def _gate(drawn: Layers) -> None:
    """Squeeze and excite: with a layer between, or without."""
    x = drawn.last
    if drawn.random.random() < 0.5:
        drawn.then("GlobalAveragePool")
        drawn.then("Conv", drawn.scaled(drawn.channels, drawn.channels, 1, 1), kernel_shape=[1, 1])
    else:
        drawn.then("ReduceMean", drawn.ints(2, 3), keepdims=1)
    drawn.then("Sigmoid")
    drawn.then("Mul", x)


def _activation(drawn: Layers) -> None:
    drawn.then(drawn.random.choice(("Relu", "HardSwish", "Sigmoid", "LeakyRelu", "Elu", "Tanh")))


def _residual(drawn: Layers) -> None:
    x = drawn.last
    drawn.then("Conv", drawn.scaled(drawn.channels, drawn.channels, 1, 1), kernel_shape=[1, 1])
    drawn.then("Add", x)


def _batch_norm(drawn: Layers) -> None:
    variance = np.abs(drawn.numbers.standard_normal(drawn.channels)).astype(np.float32) + 0.5
    weights = [drawn.floats(drawn.channels) for _ in range(3)]
    drawn.then("BatchNormalization", *weights, drawn.weight(variance))


def _beside_itself(drawn: Layers) -> None:
    x = drawn.last
    drawn.then(drawn.random.choice(("Relu", "Neg")))
    drawn.then("Concat", x, axis=1)
    drawn.channels *= 2


def _channels_last(drawn: Layers) -> None:
    drawn.then("Transpose", perm=[0, 2, 3, 1])
    drawn.then("MatMul", drawn.scaled(drawn.channels, 7))
    drawn.then("Transpose", perm=[0, 3, 1, 2])
    drawn.channels = 7


_GROWTH: tuple[Callable[[Layers], None], ...] = (
    *(_conv, _conv, _conv, _depthwise, _transposed, _pool, _pool, _gate, _gate),
    *(_activation, _residual, _batch_norm, _beside_itself, _channels_last),
)
