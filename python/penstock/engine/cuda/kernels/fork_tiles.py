"""The fork of a text model's stem in CUDA C++ (`fork.cu`): a block keeps a tile of the map in shared memory, and makes
each number between the two convolutions once, where `fork` makes it for each of the four pixels that look at it.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final

import torch

from .cpp_launching import CppLaunch
from .epilogue import Epilogue, unfilled
from .rows import expect_aligned, expect_contiguous, expect_shape, pitch

ACTIVATIONS: Final = {"none": 0, "relu": 1}
_WARP: Final = 32
_GROUP: Final = 8  # channels
_WIDEST: Final = 64
_BYTES: Final = 227 * 1024  # of a multiprocessor


@dataclass(frozen=True, slots=True)
class ForkCut:
    high: int
    wide: int
    """Pixels of the result, of one block."""
    warps: int

    def shared_bytes(self, channels: int, between: int) -> int:
        seen, middle = (self.high + 2) * (self.wide + 2), (self.high + 1) * (self.wide + 1)
        return seen * _row_bytes(channels) + middle * _row_bytes(between)


def fork_cuts(
    images: int, height: int, width: int, channels: int, between: int, made: int, multiprocessors: int = 132
) -> list[ForkCut]:
    """The cuts worth timing, most promising first; none for maps with channels that are no groups of eight."""
    if channels % _GROUP or made % _GROUP or max(channels, between, made) > _WIDEST:
        return []
    found: list[tuple[tuple[int, float], ForkCut]] = []
    for high, wide, warps in ((8, 16, 4), (4, 16, 4), (6, 20, 4)):
        cut = ForkCut(high, wide, warps)
        blocks = images * ceil(height / high) * ceil(width / wide)
        if cut.shared_bytes(channels, between) <= _BYTES:
            waste = blocks * high * wide / (images * height * width)
            found.append(((-min(blocks, multiprocessors), round(waste, 1)), cut))
    return [cut for _, cut in sorted(found, key=lambda each: each[0])]


def packed(weight: torch.Tensor) -> torch.Tensor:
    """[out, 2, 2, in] as lanes multiply by it: [tile of eight out][pair of sixteens of the depth][lane][2][2][2]."""
    out, _, _, channels = weight.shape
    tiles, groups = ceil(out / _GROUP), ceil(channels / _GROUP)
    shape = (tiles, groups, _WARP, 8)
    if weight.is_meta:
        return unfilled(weight, shape, weight.dtype)
    whole = weight.new_zeros(tiles * _GROUP, 4, groups * _GROUP)
    whole[:out, :, :channels] = weight.reshape(out, 4, channels)
    # Depth: pairs of steps, steps, halves of eight, four lanes, two numbers.
    cut = whole.reshape(tiles, _GROUP, groups, 2, 2, 4, 2)
    return cut.permute(0, 2, 1, 5, 3, 4, 6).reshape(shape).contiguous()


def fork_tiles_launch(
    x: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    second: torch.Tensor,
    second_bias: torch.Tensor | None,
    *,
    between: int,
    out: torch.Tensor,
    config: ForkCut,
    inner: Epilogue,
    outer: Epilogue,
    pdl: bool = False,
) -> CppLaunch:
    """x [N, H, W, C]; first and second `packed` from [between, 2, 2, C] and [O, 2, 2, between]; out [N, H, W, C + O].

    Sums are FP32, biases too; what is between is rounded to x's type.
    """
    images, height, width, channels = x.shape
    made = out.shape[3] - channels
    expect_shape(out, "out", images, height, width, channels + made)
    if channels % _GROUP or made % _GROUP or not 0 < max(channels, between, made) <= _WIDEST:
        raise ValueError(
            f"expected groups of {_GROUP} channels, at most {_WIDEST}, got {channels}, {between} and {made}"
        )
    expect_shape(first, "first", ceil(between / _GROUP), channels // _GROUP, _WARP, 8)
    expect_shape(second, "second", made // _GROUP, ceil(between / _GROUP), _WARP, 8)
    for name, each in (("first", first), ("second", second)):
        expect_contiguous(each, name, "packed weights")
    for name, each in (("x", x), ("first", first), ("second", second), ("out", out)):
        expect_aligned(each, name, 16)
        if each.dtype != x.dtype or x.dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(f"{name}: expected sixteen bits like x, got {each.dtype}")
    for name, bias, size in (("first_bias", first_bias, between), ("second_bias", second_bias, made)):
        if bias is not None:
            expect_shape(bias, name, size)
            if bias.dtype != torch.float32:
                raise ValueError(f"{name}: expected FP32, got {bias.dtype}")
    for epilogue in (inner, outer):
        if epilogue.activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {epilogue.activation!r}")
    x_pitch, out_pitch = pitch(x, "x"), pitch(out, "out")
    if x_pitch % _GROUP or out_pitch % _GROUP:
        raise ValueError(f"expected pixels of whole groups of {_GROUP}, got {x_pitch} and {out_pitch}")
    constants = {
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS": channels,
        "BETWEEN": between,
        "MADE": made,
        "X_PITCH": x_pitch,
        "OUT_PITCH": out_pitch,
        "HIGH": config.high,
        "WIDE": config.wide,
        "WARPS": config.warps,
        "INNER": ACTIVATIONS[inner.activation],
        "OUTER": ACTIVATIONS[outer.activation],
        "HAS_FIRST_BIAS": int(first_bias is not None),
        "HAS_SECOND_BIAS": int(second_bias is not None),
    }
    if x.dtype == torch.bfloat16:
        constants["BFLOAT16"] = 1
    return CppLaunch(
        "fork.cu",
        "fork_maps",
        (images * ceil(height / config.high) * ceil(width / config.wide), 1, 1),
        _WARP * config.warps,
        (x, first, first_bias, second, second_bias, out),
        constants,
        config.shared_bytes(channels, between),
        pdl=pdl,
    )


def _row_bytes(channels: int) -> int:
    """Of a pixel in shared memory: an odd number of pieces of sixteen, so that eight of them lie in all banks."""
    return 16 * (ceil(channels / _GROUP) | 1)
