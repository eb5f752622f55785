"""Steps that read or write values with a scale, in torch's own operators: what our kernels are judged by.

A layer with a `scale` multiplies integers, or e4m3, exactly: in FP64 on a CPU, on a GPU in TF32, which holds either to
the last bit and sums in FP32. Every other step is its float reference between dequantized operands and a quantized
result. Used by the table of implementations, and by benches for the scales of what they calibrate.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch.nn import functional

from penstock.engine.cuda.expressions import activate
from penstock.engine.cuda.layers import padding_of
from penstock.engine.cuda.sites import Run, Site, narrow
from penstock.engine.eight_bits import TOP

TYPES: Final[Mapping[torch.dtype, str]] = {torch.int8: "INT8", torch.float8_e4m3fn: "FP8"}

_TO_TORCH = (0, 3, 1, 2)
_TO_OURS = (0, 2, 3, 1)


def quantized(x: torch.Tensor, dtype: torch.dtype, scale: float) -> torch.Tensor:
    """To the nearest of the type's numbers, ties to even, saturating; what is not finite is not looked after."""
    steps = x.float() * (1.0 / scale)
    if dtype == torch.int8:
        return steps.round().clamp(-128.0, 127.0).to(dtype)
    top = TOP[TYPES[dtype]]
    return steps.clamp(-top, top).to(dtype)


def layer(site: Site) -> Run:
    """A convolution or a matrix product of eight bits, and its epilogue in FP32."""
    weight, scale, bias = site.weight("weight"), site.weight("scale"), site.weight("bias")
    assert weight is not None
    assert scale is not None
    exact = exact_arithmetic(site.device)
    wide = weight.to(exact.dtype)
    product = convolution(site, wide) if site.step.kind == "conv" else _matrix(wide)
    finish, columns = _epilogue(site), scale.float()

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with exact.flags():
            sums = product(operands[0].to(exact.dtype))
        y = sums.float() * columns
        return (finish(y if bias is None else y + bias.float(), operands),)

    return run


@dataclass(frozen=True, slots=True)
class Exact:
    """What multiplies numbers of eight bits without rounding."""

    dtype: torch.dtype

    def flags(self) -> AbstractContextManager[None]:
        flags: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=True)
        return flags


def exact_arithmetic(device: torch.device) -> Exact:
    return Exact(torch.float64 if device.type == "cpu" else torch.float32)


def convolution(site: Site, weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Of the step's own window, weights as lowered; maps with channels last."""
    strides, dilations, groups = site.integers("strides"), site.integers("dilations"), site.integer("groups")
    around, padding = padding_of(site)
    filters = weight.permute(_TO_TORCH)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        x = functional.pad(x.contiguous(), around) if around else x.contiguous()
        y = functional.conv2d(x.permute(_TO_TORCH), filters, None, strides, padding, dilations, groups)
        return y.permute(_TO_OURS)

    return multiply


def _matrix(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def multiply(x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, weight)

    return multiply


def _epilogue(site: Site) -> Callable[[torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]:
    name, alpha, beta = site.text("activation", "none"), site.number("alpha"), site.number("beta")
    residual, dtype, after = site.index("residual"), site.out_dtype(), site.text("residual") == "after"
    out_scale = site.out_scale()
    added_scale = None if residual is None else site.scale(residual)

    def apply(y: torch.Tensor, operands: Sequence[torch.Tensor]) -> torch.Tensor:
        added = None if residual is None else dequantized(operands[residual], added_scale)
        if added is not None and not after:
            y = y + added
        y = activate(y, name, alpha, beta)
        if added is not None and after:
            y = y + added
        return (y.to(dtype) if out_scale is None else quantized(y, dtype, out_scale)).contiguous()

    return apply


def dequantized(x: torch.Tensor, scale: float | None) -> torch.Tensor:
    """In FP32."""
    return x.float() if scale is None else x.float() * scale


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x.float() if narrow(x.dtype) else x


def between(bind: Callable[[Site], Run]) -> Callable[[Site], Run]:
    """A float step that reads dequantized operands, and whose results are quantized."""

    def bound(site: Site) -> Run:
        values = dict(site.graph.values)
        for name, value in values.items():
            if value.scale is not None:
                values[name] = replace(value, datatype="FP32", scale=None)
        weights = {
            each.value: _widened(site.weights[each.value]) for each in site.step.inputs if each.value in site.weights
        }
        run = bind(replace(site, graph=replace(site.graph, values=values), weights=weights))
        scales = [site.scale(index) for index in range(len(site.step.inputs))]
        results = [(site.out_dtype(index), site.out_scale(index)) for index in range(len(site.step.outputs))]

        def quantizing(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            wide = [
                _widened(each) if scale is None else dequantized(each, scale)
                for each, scale in zip(operands, scales, strict=True)
            ]
            return tuple(
                each.to(dtype) if scale is None else quantized(each, dtype, scale)
                for each, (dtype, scale) in zip(run(wide), results, strict=True)
            )

        return quantizing

    return bound


def rounded(weight: torch.Tensor, scales: torch.Tensor, datatype: str) -> torch.Tensor:
    """`engine.eight_bits.rounded_array` of a tensor, where it lies."""
    steps = weight.double() / scales.double().reshape(-1, *(1,) * (weight.dim() - 1))
    steps = steps.clamp(-TOP[datatype], TOP[datatype])
    return steps.round().to(torch.int8) if datatype == "INT8" else steps.float().to(torch.float8_e4m3fn)
