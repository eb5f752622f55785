"""Joined layers of residual blocks and stems in INT8, in torch's own operators: what our kernels of them are judged by.

As `eight_bits.layer` does each of the layers: integers are multiplied exactly, everything behind is FP32, and what lies
between two layers is rounded to its own steps, as if it were written.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from penstock.engine.cuda.eight_bits import convolution, dequantized, exact_arithmetic, quantized
from penstock.engine.cuda.expressions import activate
from penstock.engine.cuda.sites import Run, Site

_TO_TORCH = (0, 3, 1, 2)
_TO_OURS = (0, 2, 3, 1)

_Product = Callable[[torch.Tensor], torch.Tensor]


def block(site: Site) -> Run:
    """A `bottleneck`, or with the layer behind it."""
    first, second = _window(site), _matrix(site, "second")
    third, shortcut = _maybe(site, "third"), _maybe(site, "shortcut")
    residual, source = site.index("residual"), site.index("source")
    added_scale = None if residual is None else site.scale(residual)
    high, wide = site.integers("shortcut_strides") if "shortcut_strides" in site.step.attributes else (1, 1)
    inner, activation, outer = (_activation(site, name) for name in ("inner", "activation", "outer"))
    step = site.number("inner_step")

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        middle = quantized(inner(first(operands[0])), torch.int8, step)
        y = second(middle)
        if residual is not None:
            y = y + dequantized(operands[residual], added_scale)
        if source is not None and shortcut is not None:
            y = y + shortcut(operands[source][:, ::high, ::wide])
        found = [_written(activation(y), site, 0)]
        if third is not None:
            found.append(_written(outer(third(found[0])), site, 1))
        return tuple(found)

    return run


def pooled(site: Site) -> Run:
    """A `conv_pool`. What comes behind sums keeps their order, so the largest may be taken last."""
    sums, ending = _window(site), _activation(site, "activation")
    kernel, strides, pads = (site.integers(f"pool_{name}") for name in ("kernel", "strides", "pads"))
    top, left, bottom, right = pads

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        y = ending(sums(operands[0])).permute(_TO_TORCH)
        y = functional.pad(y, (left, right, top, bottom), value=float("-inf"))
        return (_written(functional.max_pool2d(y, kernel, strides).permute(_TO_OURS), site, 0),)

    return run


def _window(site: Site) -> _Product:
    """FP32 of the step's convolution and its bias."""
    weight, finish = site.weight("weight"), _worth(site, "")
    assert weight is not None
    arithmetic = exact_arithmetic(site.device)
    multiply = convolution(site, weight.to(arithmetic.dtype))

    def run(x: torch.Tensor) -> torch.Tensor:
        with arithmetic.flags():
            return finish(multiply(x.to(arithmetic.dtype)))

    return run


def _matrix(site: Site, role: str) -> _Product:
    weight, finish = site.weight(role), _worth(site, f"{role}_")
    assert weight is not None
    arithmetic = exact_arithmetic(site.device)
    wide = weight.to(arithmetic.dtype)[:, :, None, None]

    def run(x: torch.Tensor) -> torch.Tensor:
        with arithmetic.flags():
            y = functional.conv2d(x.permute(_TO_TORCH).to(arithmetic.dtype), wide)
        return finish(y.permute(_TO_OURS))

    return run


def _maybe(site: Site, role: str) -> _Product | None:
    return None if site.step.operand(role) is None else _matrix(site, role)


def _worth(site: Site, prefix: str) -> _Product:
    scale, bias = site.weight(f"{prefix}scale"), site.weight(f"{prefix}bias")
    assert scale is not None
    columns = scale.float()

    def finish(sums: torch.Tensor) -> torch.Tensor:
        y = sums.float() * columns
        return y if bias is None else y + bias.float()

    return finish


def _activation(site: Site, name: str) -> _Product:
    prefix = "" if name == "activation" else f"{name}_"
    kind, alpha, beta = site.text(name, "none"), site.number(f"{prefix}alpha"), site.number(f"{prefix}beta")

    def run(y: torch.Tensor) -> torch.Tensor:
        return activate(y, kind, alpha, beta)

    return run


def _written(y: torch.Tensor, site: Site, index: int) -> torch.Tensor:
    scale, dtype = site.out_scale(index), site.out_dtype(index)
    return (y.to(dtype) if scale is None else quantized(y, dtype, scale)).contiguous()
