"""Layers in a row as one step, in torch operators: the gate of a squeeze-and-excite, and two pointwise layers.

The reference for kernels that do each in one go: every value in between is rounded as it would be by a step of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from penstock.engine.cuda.expressions import activate, epilogue, written
from penstock.engine.cuda.layers import conv
from penstock.engine.cuda.sites import Run, Site


def squeeze_excite(site: Site) -> Run:
    """C numbers for each image of x [N, H, W, C]."""
    gate = _gate(site, "activation", "", 0)

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (gate(operands[0]),)

    return run


def conv_gate(site: Site) -> Run:
    """The convolution, and the gate of what it makes."""
    convolve, gate = conv(site), _gate(site, "outer", "outer_", 1)

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (y,) = convolve(operands)
        return y, gate(y)

    return run


def _gate(site: Site, activation: str, prefix: str, index: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """From the mean over pixels, whose sums are FP32."""
    layers, shape, dtype = _layers(site), site.out_shape(index), site.out_dtype(index)
    name, alpha, beta = (
        site.text(activation, "none"),
        site.number(f"{prefix}alpha"),
        site.number(f"{prefix}beta"),
    )

    def gate(x: torch.Tensor) -> torch.Tensor:
        y = layers(x.mean((1, 2), dtype=torch.float32).to(x.dtype))
        return activate(y, name, alpha, beta).reshape(shape).to(dtype).contiguous()

    return gate


def mlp(site: Site) -> Run:
    """x, times its gate if it has one, through both layers; `skip` adds what went in."""
    layers, shape, gate = _layers(site), site.out_shape(), site.index("gate")
    finish, skip, after = epilogue(site), bool(site.number("skip")), site.text("residual") == "after"
    name, alpha, beta = site.text("activation", "none"), site.number("alpha"), site.number("beta")
    dtype = site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = operands[0]
        if gate is not None:
            x = written(x.float() * operands[gate].float(), x.dtype)
        y = layers(x).reshape(shape)
        if not skip:
            return (finish(y, operands),)
        x = x.reshape(shape)
        y = activate(y, name, alpha, beta) + x if after else activate(y + x, name, alpha, beta)
        return (y.to(dtype).contiguous(),)

    return run


def fork(site: Site) -> Run:
    """A pool beside two convolutions, their windows 2 x 2 and overhanging at the far sides."""
    first, second = site.weight("first"), site.weight("second")
    assert first is not None
    assert second is not None
    biases = site.weight("first_bias"), site.weight("second_bias")
    inner = site.text("inner", "none"), site.number("inner_alpha"), site.number("inner_beta")
    outer = site.text("activation", "none"), site.number("alpha"), site.number("beta")
    dtype = site.out_dtype()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = operands[0].permute(0, 3, 1, 2)
        largest = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=float("-inf")), 2, 1)
        y = x
        for weight, bias, how in ((first, biases[0], inner), (second, biases[1], outer)):
            y = functional.conv2d(functional.pad(y, (0, 1, 0, 1)), weight.permute(0, 3, 1, 2), bias)
            y = activate(y, *how)
        return (torch.cat((largest, y), 1).permute(0, 2, 3, 1).to(dtype).contiguous(),)

    return run


def expand_depthwise(site: Site) -> Run:
    """The layer, rounded, and the convolution behind it."""
    first, bias = site.weight("first"), site.weight("first_bias")
    assert first is not None
    inner = site.text("inner", "none"), site.number("inner_alpha"), site.number("inner_beta")
    convolve = conv(site)

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = operands[0]
        expanded = activate(functional.linear(x, first.flatten(1), bias), *inner).to(x.dtype)
        return convolve([expanded, *operands[1:]])

    return run


def gated_layers(site: Site) -> Run:
    """Pointwise convolutions, gated and side by side, and a smaller map that is added."""
    plus, dtype = site.number("plus"), site.out_dtype()
    times = site.integers("times")
    groups = [_Group.of(site, number, times[2 * number : 2 * number + 2]) for number in range(len(times) // 2)]
    residual = site.index("residual")
    enlarged = site.integers("residual_times") if residual is not None else (1, 1)

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        found = []
        for group in groups:
            y = functional.linear(operands[group.x], group.weight, group.bias).float()
            y = y * (plus + operands[group.gate].float())
            found.append(_repeated(y, group.times))
        y = torch.cat(found, 3)
        if residual is not None:
            y = y + _repeated(operands[residual].float(), enlarged)
        return (written(y, dtype).contiguous(),)

    return run


@dataclass(frozen=True, slots=True)
class _Group:
    """One of the convolutions: which operands are its map and gate."""

    x: int
    gate: int
    weight: torch.Tensor
    bias: torch.Tensor | None
    times: tuple[int, ...]

    @staticmethod
    def of(site: Site, number: int, times: tuple[int, ...]) -> "_Group":
        x, gate, weight = site.index(f"{number}_x"), site.index(f"{number}_gate"), site.weight(f"{number}_weight")
        assert x is not None
        assert gate is not None
        assert weight is not None
        return _Group(x, gate, weight.flatten(1), site.weight(f"{number}_bias"), times)


def _repeated(x: torch.Tensor, times: tuple[int, ...]) -> torch.Tensor:
    return x.repeat_interleave(times[0], 1).repeat_interleave(times[1], 2)


def top_1(site: Site) -> Run:
    """Where the largest of the last axis is, and its softmax; sums in FP32."""
    (places, whole), (scores, number) = ((site.out_shape(at), site.out_dtype(at)) for at in (0, 1))

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        x = operands[0].float()
        index, likely = x.argmax(-1), torch.softmax(x, -1).amax(-1)
        return index.reshape(places).to(whole).contiguous(), likely.reshape(scores).to(number).contiguous()

    return run


def gemm_top_1(site: Site) -> Run:
    weight, bias, top = site.weight("weight"), site.weight("bias"), top_1(site)
    assert weight is not None

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return top([functional.linear(operands[0], weight, bias)])

    return run


def _layers(site: Site) -> "_Layers":
    first, second = site.weight("first"), site.weight("second")
    assert first is not None
    assert second is not None
    inner = site.text("inner", "none"), site.number("inner_alpha"), site.number("inner_beta")
    return _Layers(first, site.weight("first_bias"), second, site.weight("second_bias"), inner)


class _Layers:
    """Both matrices with the activation between."""

    def __init__(
        self,
        first: torch.Tensor,
        first_bias: torch.Tensor | None,
        second: torch.Tensor,
        second_bias: torch.Tensor | None,
        inner: tuple[str, float, float],
    ) -> None:
        self._first, self._first_bias = first, first_bias
        self._second, self._second_bias = second, second_bias
        self._inner = inner

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        hidden = activate(functional.linear(x, self._first, self._first_bias), *self._inner)
        return functional.linear(hidden, self._second, self._second_bias)
