"""How a matrix product is cut into blocks, and the few cuts worth timing for a shape. Pure arithmetic.

A convolution is the product of its m = N·P·Q output pixels with k = taps · channels. `tiles` orders every sensible cut
by a rough model of the chip and keeps a varied dozen: the model only decides what is timed, never what wins.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Final

H200_MULTIPROCESSORS: Final = 132

# Of one Hopper multiprocessor (NVIDIA H100 whitepaper, and tuning guide): registers, threads and shared memory that
# its blocks share, 1 KB of which the system keeps per block.
_REGISTERS: Final = 65536
_THREADS: Final = 2048
_SHARED: Final = 227 * 1024
_SHARED_KEPT: Final = 1024
_BLOCKS: Final = 32

# The model's rates, per multiprocessor and clock at 1.75 GHz. Peak of wgmma on 16-bit operands; L2 to one
# multiprocessor, and device memory to all of them (4.28 TB/s measured).
_MACS: Final = 2048
_L2_BYTES: Final = 48
_DEVICE_BYTES: Final = 2450
# Clocks: start of a block until its first data, latency of one load from L2, the exchange of partial sums, what a step
# of the loop costs besides (barriers, addresses).
_START: Final = 1200
_LATENCY: Final = 700
_EXCHANGE: Final = 1800
_STEP: Final = 150

_BLOCK_M: Final = (16, 32, 64, 128, 256)
_BLOCK_N: Final = (16, 32, 64, 128, 256)
_BLOCK_K: Final = (16, 32, 64, 128, 256)
_SPLITS: Final = (1, 2, 3, 4, 6, 8, 12, 16)
_STAGES: Final = (2, 3, 4, 6)
_WARPS: Final = (4, 8)
_SMALLEST_K: Final = 32  # bytes in the reduction dimension of one matrix instruction
_LARGEST_TILE: Final = 128 * 256  # accumulators of 256 threads: 128 registers each
_FEW_ROWS: Final = 64  # of a product: one tile high
# Up to here one warpgroup does, from here on two: more than 64 accumulators a thread beside a convolution's addresses
# has been seen to spill.
_TWO_GROUPS: Final = 64 * 128
_SMALL: Final = ((64, 128), (128, 64))


@dataclass(frozen=True, slots=True)
class Product:
    """[m, k] times [k, n], `batch` times over, k being `taps` runs of `channels`."""

    m: int
    n: int
    channels: int
    taps: int = 1
    batch: int = 1
    itemsize: int = 2

    @property
    def k(self) -> int:
        return self.channels * self.taps

    @property
    def bytes(self) -> int:
        """Moved at least: both operands and the result once; a tap reads the same pixels again, mostly from cache."""
        return self.batch * self.itemsize * (self.m * self.channels + self.n * self.k + self.m * self.n)


@dataclass(frozen=True, slots=True)
class Tile:
    """One cut. `split_k` blocks share the reduction of one tile and the last to end adds up, in a fixed order."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    split_k: int = 1
    group_m: int = 8
    """Tiles of this many rows are done column by column, so that neighbours in time share weights in L2."""
    registers: int = 0
    """The most that a thread may have; 0: as many as the compiler likes."""

    def flat(self, product: Product) -> bool:
        """Whether k runs through taps and channels as one: no step of the loop straddles two taps otherwise, which
        wastes multiplications unless channels is a multiple of block_k."""
        return product.taps > 1 and product.channels % self.block_k != 0

    def steps(self, product: Product) -> int:
        if self.flat(product):
            return ceil(product.k / self.block_k)
        return product.taps * ceil(product.channels / self.block_k)

    def count(self, product: Product) -> int:
        """Tiles of the result."""
        return product.batch * ceil(product.m / self.block_m) * ceil(product.n / self.block_n)

    def partial_sums(self, product: Product) -> int:
        """Floats of scratch that a launch needs."""
        if self.split_k == 1:
            return 0
        return self.count(product) * self.split_k * self.block_m * self.block_n

    def counters(self, product: Product) -> int:
        """Integers of scratch that a launch needs, zero before and after it."""
        return 0 if self.split_k == 1 else self.count(product)

    def shared_bytes(self, itemsize: int) -> int:
        return self.num_stages * (self.block_m + self.block_n) * self.block_k * itemsize


def tiles(product: Product, multiprocessors: int = H200_MULTIPROCESSORS, limit: int = 12) -> list[Tile]:
    """The cuts worth timing, most promising first, at most `limit` and no two of a kind."""
    ranked = sorted(_sensible(product, multiprocessors), key=lambda tile: clocks(product, tile, multiprocessors))
    kept: list[Tile] = []
    shapes: Counter[tuple[int, ...]] = Counter()
    for tile in ranked:
        # A variant of what is kept already (other depth, split or warps) is worth less than another shape; of eight
        # bits a shape with fewer warps is another one, but where a few rows leave few shapes.
        narrow = product.itemsize == 1
        shape = (tile.block_m, tile.block_n, tile.num_warps if narrow else 0)
        exact = (*shape, tile.block_k, tile.split_k)
        if shapes[shape] < (1 if narrow and product.m > _FEW_ROWS else 2) and shapes[exact] < 1:
            kept.append(tile)
            shapes[shape] += 1
            shapes[exact] += 1
        if len(kept) == limit:
            break
    return kept


def _sensible(product: Product, multiprocessors: int) -> Iterator[Tile]:
    for block_m in _BLOCK_M:
        if block_m > 16 and block_m >= 2 * product.m:
            continue
        for block_n in _BLOCK_N:
            if (block_n > 16 and block_n >= 2 * product.n) or block_m * block_n > _LARGEST_TILE:
                continue
            for block_k in _BLOCK_K:
                if block_k * product.itemsize < _SMALLEST_K or block_k >= max(2 * product.k, 2 * _SMALLEST_K):
                    continue
                if block_k > 128 and (product.itemsize > 1 or product.channels % block_k):
                    continue
                if block_k == 16 and product.channels % 32 == 0:
                    continue  # half of a 64-byte row of shared memory, for nothing
                yield from _variants(product, multiprocessors, block_m, block_n, block_k)


def _variants(product: Product, multiprocessors: int, block_m: int, block_n: int, block_k: int) -> Iterator[Tile]:
    for split_k in _SPLITS:
        for num_stages in _STAGES:
            for num_warps in _WARPS:
                area = block_m * block_n
                # Integers leave more registers: one warpgroup may have twice as many sums.
                one_group = _TWO_GROUPS * (2 if product.itemsize == 1 else 1)
                if (num_warps == 8 and area < _TWO_GROUPS) or (num_warps == 4 and area > one_group):
                    continue
                tile = Tile(block_m, block_n, block_k, num_warps, num_stages, split_k)
                steps = tile.steps(product)
                if split_k > 1 and (
                    steps < 2 * split_k
                    or tile.count(product) * split_k > 2 * multiprocessors
                    or (split_k - 1) * ceil(steps / split_k) >= steps
                ):
                    continue
                deep_enough = num_stages <= max(2, ceil(steps / split_k))
                if deep_enough and tile.shared_bytes(product.itemsize) <= _SHARED - _SHARED_KEPT:
                    yield tile


def clocks(product: Product, tile: Tile, multiprocessors: int) -> float:
    """Roughly how long the product takes so cut. Good to a factor, better at telling cuts of one product apart."""
    threads = 32 * tile.num_warps
    # Accumulators, and about as many for addresses and operands as the compiler has been seen to take.
    registers = min(255, tile.block_m * tile.block_n // threads + (96 if product.itemsize == 1 else 64))
    resident = max(
        1,
        min(
            _SHARED // (tile.shared_bytes(product.itemsize) + _SHARED_KEPT),
            _REGISTERS // (registers * threads),
            _THREADS // threads,
            _BLOCKS,
        ),
    )
    blocks = tile.count(product) * tile.split_k
    waves = ceil(blocks / (multiprocessors * resident))
    sharing = min(resident, ceil(blocks / multiprocessors))

    rate = _MACS * 2 / product.itemsize
    if tile.block_m < 64:
        rate /= 2  # below 64 rows the compiler takes the older instruction
    # Narrow tiles read the other operand from shared memory more often than the units can be kept busy with.
    rate *= min(1.0, tile.block_n / 64, tile.block_m / 32)
    multiply = sharing * tile.block_m * tile.block_n * tile.block_k / rate
    load = sharing * (tile.block_m + tile.block_n) * tile.block_k * product.itemsize / _L2_BYTES
    wait = _LATENCY / (tile.num_stages - 1)
    # The shallower the pipeline, the less of the smaller part hides behind the larger one.
    exposed = min(multiply, load) / (2 * (tile.num_stages - 1))
    steps = ceil(tile.steps(product) / tile.split_k)
    store = sharing * tile.block_m * tile.block_n * product.itemsize / (_L2_BYTES / 2)
    exchange = 0.0
    if tile.split_k > 1:
        exchange = _EXCHANGE + (sharing + tile.split_k) * tile.block_m * tile.block_n * 4 / _L2_BYTES
    busy = waves * (_START + steps * (max(multiply, load, wait) + exposed + _STEP) + store + exchange)
    # Small blocks of integers hide more of each other's waiting than the model knows: 14 to 18 microseconds where
    # 128 x 256 takes 20 to 22, of four 3 x 3 and 1 x 1 layers.
    small = (tile.block_m, tile.block_n) in _SMALL and tile.num_warps == 4 and not tile.flat(product)
    if small and product.itemsize == 1 and tile.block_k == 128:
        busy *= 0.65
    # Where memory bounds all of them, the one that keeps a multiprocessor least busy has the most to spare.
    return max(busy, product.bytes / _DEVICE_BYTES) + busy / 16
