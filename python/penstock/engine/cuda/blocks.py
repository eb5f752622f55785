"""The layers of a residual block as one step, in torch operators and by cuDNN's fused convolutions.

The reference for the kernels that do them in one go: every value in between is rounded as it would be by a step of its
own. `conv_shortcut` is a convolution and the 1 x 1 convolution of another map that is added to it, `bottleneck` a
convolution and a 1 x 1 convolution with what is added to that, `bottleneck_next` the same and a 1 x 1 convolution more.
`conv_pool` is a stem and the max pool behind it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional

from penstock.engine.cuda.expressions import activate
from penstock.engine.cuda.sites import Run, Site, narrow

_TO_TORCH = (0, 3, 1, 2)
_TO_OURS = (0, 2, 3, 1)

_Activation = tuple[str, float, float]


def _activation(site: Site, name: str) -> _Activation:
    prefix = "" if name == "activation" else f"{name}_"
    return site.text(name, "none"), site.number(f"{prefix}alpha"), site.number(f"{prefix}beta")


@dataclass(frozen=True, slots=True)
class _Layer:
    """A convolution in torch's layout."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    strides: tuple[int, ...] = (1, 1)
    dilations: tuple[int, ...] = (1, 1)
    pads: tuple[int, ...] = (0, 0, 0, 0)
    """Top, left, bottom, right."""

    @staticmethod
    def window(site: Site) -> "_Layer":
        """The step's first, of any window."""
        weight = site.weight("weight")
        assert weight is not None
        strides, dilations, pads = (site.integers(name) for name in ("strides", "dilations", "pads"))
        return _Layer(weight.permute(_TO_TORCH), site.weight("bias"), strides, dilations, pads)

    @staticmethod
    def matrix(site: Site, role: str) -> "_Layer | None":
        """Of one pixel; the role's weight is [out, in]."""
        weight = site.weight(role) if site.step.operand(role) is not None else None
        if weight is None:
            return None
        apart = role == "shortcut" and "shortcut_strides" in site.step.attributes
        strides = site.integers("shortcut_strides") if apart else (1, 1)
        return _Layer(weight[:, :, None, None], site.weight(f"{role}_bias"), strides)

    def padded(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """x with what cuDNN can't pad, and what it can."""
        top, left, bottom, right = self.pads
        if (top, left) == (bottom, right):
            return x, (top, left)
        return functional.pad(x, (left, right, top, bottom)), (0, 0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x, around = self.padded(x)
        return functional.conv2d(x, self.weight, self.bias, self.strides, around, self.dilations)

    def fused(self, x: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """With what is added and ReLU, by cuDNN."""
        x, around = self.padded(x)
        if added is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, self.strides, around, self.dilations, 1)
        return torch.cudnn_convolution_add_relu(
            x, self.weight, added, 1.0, self.bias, self.strides, around, self.dilations, 1
        )


def conv_pool(site: Site) -> Run:
    """A convolution and the largest of each window of what it makes."""
    convolve, ending = _Layer.window(site), _activation(site, "activation")
    kernel, strides, pads = (site.integers(f"pool_{name}") for name in ("kernel", "strides", "pads"))
    top, left, bottom, right = pads

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        # Windows of a picture overlap in memory, which libraries don't take.
        y = activate(convolve(operands[0].contiguous().permute(_TO_TORCH)), *ending)
        y = functional.pad(y, (left, right, top, bottom), value=float("-inf"))
        return (_ours(functional.max_pool2d(y, kernel, strides), site),)

    return run


def conv_shortcut(site: Site) -> Run:
    first, second, last, source = _Layer.window(site), _shortcut(site), _activation(site, "activation"), _source(site)

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        y = first(operands[0].permute(_TO_TORCH)) + second(operands[source].permute(_TO_TORCH))
        return (_ours(activate(y, *last), site),)

    return run


def conv_shortcut_fused(site: Site) -> Run:
    """The shortcut, and the convolution that adds it."""
    first, second, source = _Layer.window(site), _shortcut(site), _source(site)

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        added = second(operands[source].permute(_TO_TORCH))
        return (_ours(first.fused(operands[0].permute(_TO_TORCH), added), site),)

    return run


def bottleneck(site: Site) -> Run:
    first, rest = _Layer.window(site), _rest(site, _plain)
    inner = _activation(site, "inner")

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return rest(activate(first(operands[0].permute(_TO_TORCH)), *inner), operands)

    return run


def bottleneck_fused(site: Site) -> Run:
    first, rest = _Layer.window(site), _rest(site, _Layer.fused)

    def run(operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return rest(first.fused(operands[0].permute(_TO_TORCH)), operands)

    return run


_BEHIND: Final = {
    "conv_shortcut": ("activation",),
    "bottleneck": ("inner", "activation"),
    "bottleneck_next": ("inner", "activation", "outer"),
}


def fits_fused(site: Site) -> bool:
    """On a GPU, in 16 bits from end to end, with ReLU behind each layer."""
    relus = all(site.text(name, "none") == "relu" for name in _BEHIND[site.step.kind])
    weight = site.weight("weight")
    outputs = range(len(site.step.outputs))
    same = weight is not None and all(weight.dtype == site.out_dtype(index) for index in outputs)
    return site.device.type == "cuda" and relus and same and narrow(site.out_dtype())


def _plain(layer: _Layer, x: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
    y = layer(x)
    return y if added is None else y + added


def _rest(
    site: Site, convolve: Callable[[_Layer, torch.Tensor, torch.Tensor | None], torch.Tensor]
) -> Callable[[torch.Tensor, Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]:
    """What comes behind the first layer; a `convolve` that is cuDNN's has its ReLU already."""
    second, third, shortcut = (_Layer.matrix(site, role) for role in ("second", "third", "shortcut"))
    assert second is not None
    residual, source = site.index("residual"), site.index("source")
    middle, last = _activation(site, "activation"), _activation(site, "outer")

    def run(x: torch.Tensor, operands: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        added = None if residual is None else operands[residual].permute(_TO_TORCH)
        if shortcut is not None and source is not None:
            added = shortcut(operands[source].permute(_TO_TORCH))
        wide = activate(convolve(second, x, added), *middle)
        if third is None:
            return (_ours(wide, site),)
        return _ours(wide, site), _ours(activate(convolve(third, wide, None), *last), site, 1)

    return run


def _ours(y: torch.Tensor, site: Site, index: int = 0) -> torch.Tensor:
    return y.permute(_TO_OURS).to(site.out_dtype(index)).contiguous()


def _shortcut(site: Site) -> _Layer:
    layer = _Layer.matrix(site, "shortcut")
    assert layer is not None
    return layer


def _source(site: Site) -> int:
    index = site.index("source")
    assert index is not None
    return index
