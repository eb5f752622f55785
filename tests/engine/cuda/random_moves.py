"""Random small graphs of what moves, stacks, multiplies and reduces numbers; for `test_random_moves`."""

import math
from collections.abc import Callable

import numpy as np
import onnx

from tests.engine.cuda.drawing import Drawing, Shape

_MOST = 20_000  # numbers of a value: more takes time and shows nothing


class Drawn(Drawing):
    """A graph that grows by one operator, or a few that belong together, at a time; input `x`."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.shapes: dict[str, Shape] = {
            "x": tuple(self.random.choice((1, 2, 3, 4, 5, 6, 8)) for _ in range(self.pick(2, 4)))
        }
        self.input = self.shapes["x"]
        self.op(self.random.choice(("Relu", "Identity")), ["x"], self.input)
        if self.random.random() < 0.5:
            width = self.random.choice((4, 6, 8, 12))
            self.op("MatMul", ["x", self.floats(self.input[-1], width)], (*self.input[:-1], width))
        for _ in range(self.pick(2, 9)):
            self._grow()
            if max(math.prod(shape) for shape in self.shapes.values()) > _MOST:
                break

    def op(self, kind: str, inputs: list[str], shape: Shape | list[int], **attributes: object) -> str:
        name = self.node(kind, inputs, **attributes)
        self.shapes[name] = tuple(shape)
        return name

    def model(self) -> onnx.ModelProto:
        """What nothing reads is answered, and at times something that is read."""
        read = {name for node in self.nodes for name in node.input}
        answers = [name for name in self.shapes if name not in read and name != "x"]
        if self.random.random() < 0.3:
            answers.append(self.random.choice([name for name in self.shapes if name != "x"]))
        return self.model_of({name: self.shapes[name] for name in answers})

    def _grow(self) -> None:
        x = self.random.choice(list(self.shapes)[-5:])
        shape = self.shapes[x]
        if shape:
            self.random.choice(_GROWTH)(self, x, shape, self.random.randrange(len(shape)))

    def alike(self, shape: Shape) -> str:
        return self.random.choice([name for name, other in self.shapes.items() if other == shape])

    def turned(self, x: str) -> str:
        """With its last two axes exchanged."""
        shape = self.shapes[x]
        order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        return self.op("Transpose", [x], [shape[axis] for axis in order], perm=order)


def _with(shape: Shape, axis: int, *sizes: int) -> Shape:
    return (*shape[:axis], *sizes, *shape[axis + 1 :])


def _gather(drawn: Drawn, x: str, shape: Shape, axis: int) -> None:
    step, first = drawn.random.choice((0, 1, 1, 2, 3, -1)), drawn.random.randrange(shape[axis])
    places = [at for at in range(first, first + 4 * step, step) if 0 <= at < shape[axis]] if step else [first] * 2
    if drawn.random.random() < 0.3:
        places = [at - shape[axis] for at in places]
    drawn.op("Gather", [x, drawn.ints(*places)], _with(shape, axis, len(places)), axis=axis)


def _windows(drawn: Drawn, x: str, shape: Shape, axis: int) -> None:
    if shape[axis] < 3 or len(shape) > 4:
        return
    width, step = drawn.pick(1, shape[axis] - 1), drawn.pick(1, 2)
    places = np.arange((shape[axis] - width) // step + 1)[:, None] * step + np.arange(width)
    drawn.op("Gather", [x, drawn.weight(places)], _with(shape, axis, *places.shape), axis=axis)


def _concat(drawn: Drawn, x: str, shape: Shape, axis: int) -> None:
    names = [
        name
        for name, other in drawn.shapes.items()
        if len(other) == len(shape) and _with(other, axis, 0) == _with(shape, axis, 0)
    ]
    parts = [*(drawn.random.choice(names) for _ in range(drawn.pick(1, 3))), x]
    drawn.op("Concat", parts, _with(shape, axis, sum(drawn.shapes[part][axis] for part in parts)), axis=axis)


def _beside_itself(drawn: Drawn, x: str, shape: Shape, axis: int) -> None:
    y = drawn.op(drawn.random.choice(("Neg", "Relu", "Tanh")), [x], shape)
    twice = _with(shape, axis, 2 * shape[axis])
    z = drawn.op("Concat", drawn.random.choice(([x, y], [y, x], [y, y])), twice, axis=axis)
    drawn.op("Mul", [z, drawn.floats(*twice)], twice)


def _stack(drawn: Drawn, x: str, shape: Shape, axis: int) -> None:
    if len(shape) > 4:
        return
    y = drawn.op("Neg", [drawn.alike(shape)], shape)
    place = drawn.pick(0, len(shape))
    pair = [drawn.op("Unsqueeze", [each, drawn.ints(place)], (*shape[:place], 1, *shape[place:])) for each in (x, y)]
    made = (*shape[:place], 2, *shape[place:])
    z = drawn.op("Concat", pair, made, axis=place)
    at = place - 1 if place == len(shape) else place
    one = (*made[:at], made[at] * made[at + 1], *made[at + 2 :])
    drawn.op("Mul", [drawn.op("Reshape", [z, drawn.ints(*one)], one), drawn.floats(*one)], one)
    del axis


def _rotate(drawn: Drawn, x: str, shape: Shape, _: int) -> None:
    size = shape[-1]
    if size % 2 or len(shape) < 2:
        return
    half, pairs = (*shape[:-1], size // 2), drawn.random.random() < 0.5
    bounds = ((0, size, 2), (1, size, 2)) if pairs else ((0, size // 2, 1), (size // 2, size, 1))
    left, right = (
        drawn.op("Slice", [x, *(drawn.ints(each) for each in (first, last, -1, step))], half)
        for first, last, step in bounds
    )
    parts = [drawn.op("Neg", [right], half), left]
    if pairs:
        apart = [drawn.op("Unsqueeze", [each, drawn.ints(len(shape))], (*half, 1)) for each in parts]
        z = drawn.op("Reshape", [drawn.op("Concat", apart, (*half, 2), axis=-1), drawn.ints(*shape)], shape)
    else:
        z = drawn.op("Concat", parts, shape, axis=-1)
    by_sines = drawn.op("Mul", [z, drawn.floats(*shape[-2:])], shape)
    drawn.op("Add", [drawn.op("Mul", [x, drawn.floats(*shape[-2:])], shape), by_sines], shape)


def _transpose(drawn: Drawn, x: str, shape: Shape, _: int) -> None:
    order = drawn.random.sample(range(len(shape)), len(shape))
    drawn.op("Transpose", [x], [shape[axis] for axis in order], perm=order)


def _reshape(drawn: Drawn, x: str, shape: Shape, _: int) -> None:
    """Neighbours become one axis, or one becomes two."""
    found: list[int] = []
    for size in shape:
        divisors = [each for each in range(2, size) if size % each == 0]
        if divisors and drawn.random.random() < 0.4:
            divisor = drawn.random.choice(divisors)
            found += [divisor, size // divisor]
        elif found and drawn.random.random() < 0.3:
            found[-1] *= size
        else:
            found.append(size)
    if len(found) < 6:
        drawn.op("Reshape", [x, drawn.ints(*found)], found)


def _slice(drawn: Drawn, x: str, shape: Shape, axis: int) -> None:
    first, step = drawn.random.randrange(shape[axis]), drawn.random.choice((1, 1, 2, 3, -1, -2))
    last = drawn.pick(first + 1, shape[axis]) if step > 0 else -shape[axis] - 1
    count = len(range(first, last if step > 0 else -1, step))
    drawn.op("Slice", [x, *(drawn.ints(each) for each in (first, last, axis, step))], _with(shape, axis, count))


def _alone(drawn: Drawn, x: str, shape: Shape, _: int) -> None:
    drawn.op(drawn.random.choice(("Relu", "Tanh", "Neg", "Sigmoid", "Abs", "Erf", "HardSwish")), [x], shape)


def _constant(drawn: Drawn, x: str, shape: Shape, _: int) -> None:
    sizes = [size if drawn.random.random() < 0.6 else 1 for size in shape]
    drawn.op(drawn.random.choice(("Add", "Mul", "Sub")), [drawn.floats(*sizes), x], shape)


def _two(drawn: Drawn, x: str, shape: Shape, _: int) -> None:
    drawn.op(drawn.random.choice(("Mul", "Add", "Sub", "Max")), [x, drawn.alike(shape)], shape)


def _softmax(drawn: Drawn, x: str, shape: Shape, axis: int) -> None:
    drawn.op(drawn.random.choice(("Softmax", "LogSoftmax")), [x], shape, axis=axis - len(shape))


def _reduce(drawn: Drawn, x: str, shape: Shape, _: int) -> None:
    axes, keep = drawn.random.sample(range(len(shape)), drawn.pick(1, len(shape))), drawn.pick(0, 1)
    left = [1 if axis in axes else size for axis, size in enumerate(shape) if keep or axis not in axes]
    if left:
        kind = drawn.random.choice(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"))
        drawn.op(kind, [x, drawn.ints(*axes)], left, keepdims=keep)


def _product(drawn: Drawn, x: str, shape: Shape, _: int) -> None:
    if len(shape) > 1:
        y, last = drawn.turned(x), shape[-1 if drawn.random.random() < 0.5 else -2]
        drawn.op("MatMul", [x, y] if last == shape[-2] else [y, x], (*shape[:-2], last, last))


def _layer(drawn: Drawn, x: str, shape: Shape, _: int) -> None:
    if len(shape) > 1:
        width = drawn.pick(1, 9)
        y = drawn.op("MatMul", [x, drawn.floats(shape[-1], width)], (*shape[:-1], width))
        bias = drawn.floats(*(1,) * drawn.pick(0, len(shape) - 1), width)
        drawn.op("Add", [bias, y], (*shape[:-1], width))


def _attention(drawn: Drawn, x: str, shape: Shape, _: int) -> None:
    if len(shape) not in (3, 4):
        return
    k, whole = drawn.op("Relu", [x], shape), (*shape[:-1], shape[-2])
    scores = drawn.op("MatMul", [x, drawn.turned(k)], whole)
    if drawn.random.random() < 0.5:
        sizes = [size if drawn.random.random() < 0.5 else 1 for size in shape[:-2]]
        scores = drawn.op("Add", [scores, drawn.floats(*sizes, *whole[-2:])], whole)
    drawn.op("MatMul", [drawn.op("Softmax", [scores], whole, axis=-1), k], shape)


def _resize(drawn: Drawn, x: str, shape: Shape, _: int) -> None:
    sizes = [max(1, int(size * drawn.random.choice((1, 1, 0.5, 1.7, 2)))) for size in shape]
    mode, changed = (
        drawn.random.choice(("nearest", "linear", "cubic")),
        [a != b for a, b in zip(sizes, shape, strict=True)],
    )
    if (len(shape) > 4 and mode != "nearest") or (mode == "cubic" and sum(changed) > 2):
        return
    coordinates = drawn.random.choice(("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"))
    more = {"nearest_mode": drawn.random.choice(("floor", "ceil", "round_prefer_ceil"))} if mode == "nearest" else {}
    names = [x, "", "", drawn.ints(*sizes)]
    drawn.op("Resize", names, sizes, mode=mode, coordinate_transformation_mode=coordinates, **more)


def _pad(drawn: Drawn, x: str, shape: Shape, _: int) -> None:
    begin, end = ([drawn.random.choice((0, 0, 1, 2)) for _ in shape] for _ in range(2))
    sizes = [sum(each) for each in zip(begin, shape, end, strict=True)]
    drawn.op("Pad", [x, drawn.ints(*begin, *end)], sizes)


_GROWTH: tuple[Callable[[Drawn, str, Shape, int], None], ...] = (
    *(_gather, _windows, _concat, _beside_itself, _stack, _rotate, _transpose, _reshape, _slice, _alone),
    *(_constant, _two, _softmax, _reduce, _product, _layer, _attention, _resize, _pad),
)
