"""The recurrence of an LSTM layer as one kernel: clusters of blocks that keep their weights from the first step on.

Both directions and any batch at once. `lstm_launch` takes what the inputs add to the gates, a matrix product made
before; `packed` and `by_unit` lay weights out for both. CUDA C++ (`cpp/lstm.cu`): Triton has no clusters. FP16 and
BF16; gates and cell are FP32, h is rounded from step to step. Needs compute capability 9.0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Final

import torch

from .cpp_launching import CppLaunch
from .rows import expect_shape

_MOST_SHARED: Final = 226 * 1024  # of a block, whose barriers are not counted
_REGISTERS: Final = 65536  # of a multiprocessor
_MOST_REGISTERS: Final = 255  # of a thread
_MOST_THREADS: Final = 1024
_IN_A_CLUSTER: Final = (1, 2, 4, 8, 16)
_SPLITS: Final = (1, 2)
_TILES: Final = (1, 2, 4)
_ROWS: Final = 8  # of a tile; as many units are a warp's

# Clocks of a multiprocessor, for ranking.
_PRODUCT: Final = 7.0  # of one instruction of a warp that multiplies 16 x 16 by 16 x 8
_EXCHANGE: Final = 450.0  # h on its way, and what waits for it
_PER_BLOCK: Final = 8.0  # of a cluster, to be told
_GATES: Final = 100.0  # of eight units and rows
_GATHER: Final = 80.0  # parts of sums


@dataclass(frozen=True, slots=True)
class LstmCut:
    """How a layer is shared out."""

    cluster: int
    """Blocks that share the units of one direction."""
    split: int
    """Warps that share the depth of eight units' products."""
    tiles: int
    """Batch rows of a cluster, in eights."""

    def threads(self, hidden: int) -> int:
        return 32 * self.split * (hidden // _ROWS // self.cluster)

    def registers(self, hidden: int) -> int:
        """Of a thread, about: weights first of all."""
        return hidden // (2 * self.split) + 70 + 10 * self.tiles

    def clusters(self, batch: int, directions: int) -> int:
        return directions * ceil(batch / (_ROWS * self.tiles))

    def shared_bytes(self, hidden: int) -> int:
        """Two buffers of h, and two of the parts of sums."""
        groups = hidden // _ROWS // self.cluster
        return 2 * (hidden * _ROWS * self.tiles * 2 + groups * (self.split - 1) * 2 * self.tiles * 512)

    def fits(self, hidden: int) -> bool:
        if hidden % 32 or hidden // _ROWS % self.cluster or hidden // 32 % self.split:
            return False
        if self.shared_bytes(hidden) > _MOST_SHARED:
            return False
        threads = self.threads(hidden)
        most = min(_MOST_REGISTERS, _REGISTERS // threads // 8 * 8) if threads <= _MOST_THREADS else 0
        return self.registers(hidden) <= most

    def clocks(self, hidden: int, batch: int, directions: int, multiprocessors: int) -> float:
        """Of one step, roughly: for telling cuts apart."""
        threads = self.threads(hidden)
        resident = max(1, _REGISTERS // (threads * self.registers(hidden)))
        # Clusters lie within groups of 16 or 18 multiprocessors, of which some are not whole.
        at_once = max(1, multiprocessors // 16 * (16 // self.cluster) - (self.cluster == 16)) * resident
        waves = ceil(self.clusters(batch, directions) / at_once)
        warps = ceil(threads / 32 / 4)
        product = warps * (hidden // 8 // self.split) * self.tiles * _PRODUCT
        gates = ceil(warps / self.split) * self.tiles * _GATES + (self.split - 1) * _GATHER
        return waves * (product + gates + _EXCHANGE + _PER_BLOCK * self.cluster)


def lstm_cuts(hidden: int, batch: int, directions: int, multiprocessors: int) -> list[LstmCut]:
    """Those worth timing, most promising first; none for a layer that no cluster can hold."""
    found = [cut for cut in _all() if cut.fits(hidden) and (cut.tiles == 1 or _ROWS * cut.tiles < 2 * batch)]
    return sorted(found, key=lambda cut: cut.clocks(hidden, batch, directions, multiprocessors))


def _all() -> Iterator[LstmCut]:
    for cluster in _IN_A_CLUSTER:
        for split in _SPLITS:
            for tiles in _TILES:
                yield LstmCut(cluster, split, tiles)


def by_unit(weight: torch.Tensor) -> torch.Tensor:
    """[directions, 4 hidden, ...] with gate after gate -> [directions x hidden x 4, ...], a unit's gates together."""
    directions, rows = weight.shape[:2]
    gates = weight.reshape(directions, 4, rows // 4, *weight.shape[2:]).transpose(1, 2)
    return gates.reshape(directions * rows, *weight.shape[2:]).contiguous()


def packed(recurrence: torch.Tensor) -> torch.Tensor:
    """[directions, 4 hidden, hidden] -> [directions, units / 8, depth / 16, two gates, lane, 8]: what each lane of a
    warp holds of each matrix that it multiplies, sixteen bytes in a row.
    """
    directions, _, hidden = recurrence.shape
    parts = recurrence.reshape(directions, 2, 2, hidden // 8, 8, hidden // 16, 2, 4, 2)
    # direction, gates (i f, c o), which of them, units, row of eight, depth, half of sixteen, lane's fourth, pair
    lanes = parts.permute(0, 3, 5, 1, 4, 7, 6, 2, 8)
    return lanes.reshape(directions, hidden // 8, hidden // 16, 2, 32, 8).contiguous()


def lstm_launch(
    products: torch.Tensor,
    recurrence: torch.Tensor,
    *,
    out: torch.Tensor,
    last_hidden: torch.Tensor,
    last_cell: torch.Tensor,
    config: LstmCut,
    hidden: torch.Tensor | None = None,
    cell: torch.Tensor | None = None,
    rough: bool = False,
    pdl: bool = False,
) -> CppLaunch:
    """products     [time, batch, directions x hidden x 4] of `by_unit` weights, biases added; batch may come first.
    recurrence   of `packed`.
    out          [time, batch, directions, hidden]; last_hidden, last_cell: [directions, batch, hidden].
    hidden, cell  where to begin; None: zero. Of recurrence's type, like `out` and both states unless those are FP32.
    rough        activations right to 2^-11 only.
    """
    time, batch, directions, units = out.shape
    expect_shape(products, "products", time, batch, directions * units * 4)
    expect_shape(recurrence, "recurrence", directions, units // 8, units // 16, 2, 32, 8)
    if not config.fits(units):
        raise ValueError(f"{config}: expected one that fits {units} units")
    if products.stride(2) != 1 or products.stride(0) % 4 or products.stride(1) % 4:
        raise ValueError(f"products: expected whole units in a row, got strides {products.stride()}")
    narrow = recurrence.dtype
    if narrow not in (torch.float16, torch.bfloat16):
        raise ValueError(f"recurrence: expected sixteen bits, got {narrow}")
    states = (("hidden", hidden), ("cell", cell), ("last_hidden", last_hidden), ("last_cell", last_cell))
    for name, state in states:
        if state is not None:
            expect_shape(state, name, directions, batch, units)
    for name, tensor in (*states, ("recurrence", recurrence), ("out", out)):
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name}: expected a dense tensor, got strides {tensor.stride()}")
    for name, tensor in (("hidden", hidden), ("cell", cell)):
        if tensor is not None and tensor.dtype != narrow:
            raise ValueError(f"{name}: expected {narrow}, got {tensor.dtype}")
    if last_hidden.dtype != last_cell.dtype:
        raise ValueError(f"last_cell: expected {last_hidden.dtype} like last_hidden, got {last_cell.dtype}")
    constants = {
        "TIME": time,
        "BATCH": batch,
        "HIDDEN": units,
        "DIRECTIONS": directions,
        "CLUSTER": config.cluster,
        "SPLIT": config.split,
        "TILES": config.tiles,
        "PRODUCT_TIME": products.stride(0),
        "PRODUCT_BATCH": products.stride(1),
        "HAS_HIDDEN": int(hidden is not None),
        "HAS_CELL": int(cell is not None),
        "WIDE_PRODUCTS": _wide(products, "products", narrow),
        "WIDE_OUTPUT": _wide(out, "out", narrow),
        "WIDE_STATES": _wide(last_hidden, "last_hidden", narrow),
        "ROUGH": int(rough),
    }
    if narrow == torch.bfloat16:
        constants["BFLOAT16"] = 1
    return CppLaunch(
        "lstm.cu",
        "lstm_recurrence",
        (config.clusters(batch, directions) * config.cluster, 1, 1),
        config.threads(units),
        (recurrence, products, hidden, cell, out, last_hidden, last_cell),
        constants,
        config.shared_bytes(units),
        config.cluster,
        pdl,
    )


def _wide(tensor: torch.Tensor, name: str, narrow: torch.dtype) -> int:
    if tensor.dtype not in (narrow, torch.float32):
        raise ValueError(f"{name}: expected {narrow} or FP32, got {tensor.dtype}")
    return int(tensor.dtype == torch.float32)
