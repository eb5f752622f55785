"""Two layers of few rows in one kernel, in CUDA C++ (`cluster_mlp.cu`): what a batch of one has between its gates.

A block of the other kernels reads all weights, or there are two kernels. Here a cluster of blocks shares them: each
keeps its part in registers, read before the kernel ahead has ended, and sends its sums to the block that adds them up.
"""

from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Final

import torch

from .cpp_launching import CppLaunch
from .epilogue import Epilogue
from .rows import expect_aligned, expect_contiguous, expect_shape
from .tiles import H200_MULTIPROCESSORS

ACTIVATIONS: Final = {"none": 0, "relu": 1, "silu": 4, "gelu": 8}
_ROWS: Final = 16
_WARP: Final = 32
_REGISTERS: Final = 65536  # of a multiprocessor
_MOST_REGISTERS: Final = 250  # of a thread
_LARGEST_CLUSTER: Final = 8
_LEFT_OVER: Final = 10
_WARPS: Final = 6  # of a block, if nothing else counts
_LARGER: Final = 7500  # weights that are loaded in the time that one more block in a cluster costs


@dataclass(frozen=True, slots=True)
class ClusterCut:
    cluster: int
    """Blocks that share the weights."""
    warps: int
    """Of a block."""

    def registers(self, wide: int, hidden: int, out: int, gated: bool = False) -> int:
        """Of a thread, roughly."""
        part, pieces = hidden // self.cluster, ceil(wide / _WARP)
        firsts, seconds = part // 8 // self.warps, out // 8 // self.warps
        rows = pieces * (12 if gated else 8)
        sums = max(8 * firsts, 4 * seconds) + 2 * firsts + 2 * seconds
        return 4 * firsts * pieces + 2 * seconds * (part // 16) + rows + sums + 44


def cluster_cuts(
    rows: int, wide: int, hidden: int, out: int, gated: bool = False, multiprocessors: int = H200_MULTIPROCESSORS
) -> list[ClusterCut]:
    """The cuts worth timing, most promising first; none where the rows take more clusters than fit at once: what blocks
    send each other takes 1.8 microseconds for sixteen rows.
    """
    tiles = ceil(rows / _ROWS)
    found: list[tuple[float, ClusterCut]] = []
    for cluster, warps in product((2, 3, 4, 6, 8), (2, 3, 4, 6, 8, 12)):
        if hidden % (cluster * 8 * warps) or out % (16 * warps) or hidden % (16 * cluster) or out % (8 * cluster):
            continue
        cut = ClusterCut(cluster, warps)
        most = min(_MOST_REGISTERS, _REGISTERS // (_WARP * warps))
        # Some multiprocessors of a group that has no cluster left are not used.
        if tiles * cluster <= multiprocessors - _LEFT_OVER and cut.registers(wide, hidden, out, gated) <= most:
            found.append((_LARGER * cluster + (hidden // cluster) * (wide + out), cut))
    found.sort(key=lambda each: (each[0], abs(each[1].warps - _WARPS)))
    return [cut for _, cut in found[:3]]


def cluster_mlp_launch(
    x: torch.Tensor,
    first: torch.Tensor,
    first_bias: torch.Tensor | None,
    second: torch.Tensor,
    second_bias: torch.Tensor | None,
    *,
    out: torch.Tensor,
    config: ClusterCut,
    inner: Epilogue,
    gate: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    skip: bool = False,
    epilogue: Epilogue | None = None,
    pdl: bool = False,
) -> CppLaunch:
    """x [images, rows, C], first [K, C], second [O, K], gate [images, C], residual and out [images, rows, O]; `skip`
    adds x, gated. Sums are FP32; what is between, and what was gated, are rounded to x's type. Biases are FP32.
    """
    epilogue = epilogue or Epilogue()
    images, rows, wide = x.shape
    hidden, made = first.shape[0], second.shape[0]
    expect_shape(first, "first", hidden, wide)
    expect_shape(second, "second", made, hidden)
    expect_shape(out, "out", images, rows, made)
    tensors = [("x", x), ("first", first), ("second", second), ("out", out)]
    if gate is not None:
        expect_shape(gate, "gate", images, wide)
        tensors.append(("gate", gate))
        if images > 1 and rows % _ROWS:
            raise ValueError(f"gate: expected images of whole tiles of {_ROWS} rows, got {rows}")
    if residual is not None:
        expect_shape(residual, "residual", images, rows, made)
        tensors.append(("residual", residual))
    if skip and (residual is not None or made != wide):
        raise ValueError(f"skip: expected as many numbers out as in and no residual, got {made} for {wide}")
    if x.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"x: expected sixteen bits, got {x.dtype}")
    for name, each in tensors:
        expect_contiguous(each, name, "a dense tensor")
        expect_aligned(each, name, 16)
        if each.dtype != x.dtype:
            raise ValueError(f"{name}: expected {x.dtype} like x, got {each.dtype}")
    for name, bias, size in (("first_bias", first_bias, hidden), ("second_bias", second_bias, made)):
        if bias is not None:
            expect_shape(bias, name, size)
            if bias.dtype != torch.float32:
                raise ValueError(f"{name}: expected FP32, got {bias.dtype}")
    for name in (inner.activation, epilogue.activation):
        if name not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    cluster, warps = config.cluster, config.warps
    cut = hidden % (cluster * 8 * warps) or made % (16 * warps) or hidden % (16 * cluster) or made % (8 * cluster)
    if wide % 8 or cut or not 0 < cluster <= _LARGEST_CLUSTER:
        raise ValueError(f"expected layers that {cluster} blocks of {warps} warps share, got {wide}, {hidden}, {made}")
    constants = {
        "ROWS": images * rows,
        "WIDE": wide,
        "HIDDEN": hidden,
        "OUT": made,
        "CLUSTER": cluster,
        "WARPS": warps,
        "GATED": 0 if gate is None else rows,
        "ADDED": 1 if skip else 2 if residual is not None else 0,
        "ADDED_LAST": int(epilogue.residual_last),
        "HAS_FIRST_BIAS": int(first_bias is not None),
        "HAS_SECOND_BIAS": int(second_bias is not None),
        "INNER": ACTIVATIONS[inner.activation],
        "OUTER": ACTIVATIONS[epilogue.activation],
    }
    if x.dtype == torch.bfloat16:
        constants["BFLOAT16"] = 1
    part = hidden // cluster
    return CppLaunch(
        "cluster_mlp.cu",
        "cluster_mlp",
        (ceil(images * rows / _ROWS) * cluster, 1, 1),
        _WARP * warps,
        (x, gate, first, first_bias, second, second_bias, residual, out),
        constants,
        _ROWS * (2 * part + 16 + 4 * made),
        cluster,
        pdl,
    )
