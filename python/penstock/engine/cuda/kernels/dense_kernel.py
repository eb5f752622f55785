"""The device side of `dense`: one block makes one tile of a product, or its share of the sums of one."""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import activate


@triton.jit
def moments_of_parts(moments, rows, M: tl.constexpr, PARTS: tl.constexpr, PARTS_ROOM: tl.constexpr):
    """Means and sums of squared distances as they were written; 0 without any."""
    means = 0.0
    squares = 0.0
    if moments is not None:
        parts = tl.arange(0, PARTS_ROOM)
        inside = (rows < M)[:, None] & (parts < PARTS)[None, :]
        at = moments + (rows[:, None] * PARTS + parts[None, :]) * 2
        means = tl.load(at, mask=inside, other=0.0)
        squares = tl.load(at + 1, mask=inside, other=0.0)
    return means, squares


@triton.jit
def row_moments(means, squares, SIZE: tl.constexpr, PARTS: tl.constexpr, PARTS_ROOM: tl.constexpr):
    """Mean of each row, and the sum of its squared distances from it, out of those of its parts (Chan's formula)."""
    mean = tl.sum(means, axis=1) / PARTS
    there = (tl.arange(0, PARTS_ROOM) < PARTS)[None, :]
    apart = tl.where(there, means - mean[:, None], 0.0)
    return mean, tl.sum(squares + apart * apart * (SIZE // PARTS), axis=1)


@triton.jit
def _columns(
    y,
    rows,
    first_column,
    bias,
    residual,
    column_sums,
    residual_scale,
    residual_shift,
    out,
    out_moments,
    x_mean,
    x_scale,
    residual_mean,
    residual_deviation,
    M: tl.constexpr,
    N: tl.constexpr,
    RESIDUAL_PITCH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    OUT_PART: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    RESIDUAL_LAST: tl.constexpr,
):
    """From sums to what is stored, for some columns of a tile."""
    WIDE: tl.constexpr = y.shape[1]
    columns = first_column + tl.arange(0, WIDE)
    rows_inside = rows < M
    columns_inside = columns < N
    inside = rows_inside[:, None] & columns_inside[None, :]
    if column_sums is not None:
        sums = tl.load(column_sums + columns, mask=columns_inside, other=0.0)
        y = (y - x_mean[:, None] * sums[None, :]) * x_scale[:, None]
    if bias is not None:
        y += tl.load(bias + columns, mask=columns_inside, other=0.0)[None, :]
    if residual is None:
        y = activate(y, ACTIVATION, ALPHA, BETA)
    else:
        added = tl.load(residual + rows[:, None] * RESIDUAL_PITCH + columns[None, :], mask=inside, other=0.0)
        added = added.to(tl.float32)
        if residual_scale is not None:
            added = (added - residual_mean[:, None]) * residual_deviation[:, None]
            added *= tl.load(residual_scale + columns, mask=columns_inside, other=0.0)[None, :]
            added += tl.load(residual_shift + columns, mask=columns_inside, other=0.0)[None, :]
        if RESIDUAL_LAST:
            y = activate(y, ACTIVATION, ALPHA, BETA) + added
        else:
            y = activate(y + added, ACTIVATION, ALPHA, BETA)
    stored = y.to(out.dtype.element_ty)
    tl.store(out + rows[:, None] * OUT_PITCH + columns[None, :], stored, mask=inside)
    if out_moments is not None:
        # Of what is stored: whoever subtracts the mean does so from the rounded numbers.
        PARTS: tl.constexpr = WIDE // OUT_PART
        parted = tl.reshape(stored.to(tl.float32), (y.shape[0], PARTS, OUT_PART))
        means = tl.sum(parted, axis=2) / OUT_PART
        apart = parted - means[:, :, None]
        squares = tl.sum(apart * apart, axis=2)
        parts = first_column // OUT_PART + tl.arange(0, PARTS)
        at = out_moments + (rows[:, None] * (N // OUT_PART) + parts[None, :]) * 2
        exists = rows_inside[:, None] & (parts < N // OUT_PART)[None, :]
        tl.store(at, means, mask=exists)
        tl.store(at + 1, squares, mask=exists)


@triton.jit
def _halves(y):
    """The left columns and the right ones; nothing moves, since a thread has its share of both."""
    return tl.split(tl.permute(tl.reshape(y, (y.shape[0], 2, y.shape[1] // 2)), (0, 2, 1)))


@triton.jit
def _finish(
    y,
    rows,
    first_column,
    bias,
    residual,
    x_moments,
    x_means,
    x_squares,
    column_sums,
    residual_moments,
    residual_means,
    residual_squares,
    residual_scale,
    residual_shift,
    out,
    out_moments,
    x_epsilon,
    residual_epsilon,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    RESIDUAL_PITCH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    X_PARTS: tl.constexpr,
    X_PARTS_ROOM: tl.constexpr,
    RESIDUAL_PARTS: tl.constexpr,
    RESIDUAL_PARTS_ROOM: tl.constexpr,
    OUT_PART: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    RESIDUAL_LAST: tl.constexpr,
    CUTS: tl.constexpr,
):
    """A tile in 2 ** CUTS runs of columns, so that what one needs besides its sums is there but once."""
    QUARTER: tl.constexpr = y.shape[1] // 4
    HALF: tl.constexpr = y.shape[1] // 2
    x_mean = 0.0
    x_scale = 0.0
    residual_mean = 0.0
    residual_deviation = 0.0
    if x_moments is not None:
        x_mean, squares = row_moments(x_means, x_squares, K, X_PARTS, X_PARTS_ROOM)
        x_scale = tl.rsqrt(squares / K + x_epsilon)
    if residual_moments is not None:
        residual_mean, squares = row_moments(residual_means, residual_squares, N, RESIDUAL_PARTS, RESIDUAL_PARTS_ROOM)
        residual_deviation = tl.rsqrt(squares / N + residual_epsilon)
    if CUTS == 0:
        _columns(
            y, rows, first_column, bias, residual, column_sums, residual_scale, residual_shift, out, out_moments,
            x_mean, x_scale, residual_mean, residual_deviation, M, N, RESIDUAL_PITCH, OUT_PITCH, OUT_PART,
            ACTIVATION, ALPHA, BETA, RESIDUAL_LAST,
        )  # fmt: skip
    else:
        halves = _halves(y)
        for half in tl.static_range(2):
            if CUTS == 1:
                _columns(
                    halves[half], rows, first_column + half * HALF, bias, residual, column_sums, residual_scale,
                    residual_shift, out, out_moments, x_mean, x_scale, residual_mean, residual_deviation, M, N,
                    RESIDUAL_PITCH, OUT_PITCH, OUT_PART, ACTIVATION, ALPHA, BETA, RESIDUAL_LAST,
                )  # fmt: skip
            else:
                quarters = _halves(halves[half])
                for quarter in tl.static_range(2):
                    _columns(
                        quarters[quarter], rows, first_column + half * HALF + quarter * QUARTER, bias, residual,
                        column_sums, residual_scale, residual_shift, out, out_moments, x_mean, x_scale, residual_mean,
                        residual_deviation, M, N, RESIDUAL_PITCH, OUT_PITCH, OUT_PART, ACTIVATION, ALPHA, BETA,
                        RESIDUAL_LAST,
                    )  # fmt: skip


@triton.jit
def dense_kernel(
    x,
    w,
    bias,
    residual,
    x_moments,
    column_sums,
    residual_moments,
    residual_scale,
    residual_shift,
    out,
    out_moments,
    partial_sums,
    counters,
    x_epsilon,
    residual_epsilon,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    RESIDUAL_PITCH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    X_PARTS: tl.constexpr,
    X_PARTS_ROOM: tl.constexpr,
    RESIDUAL_PARTS: tl.constexpr,
    RESIDUAL_PARTS_ROOM: tl.constexpr,
    OUT_PART: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    RESIDUAL_LAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    CUTS: tl.constexpr,
    GROUP_M: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (tiles, splits). x and w are read by blocks, [BLOCK_M, BLOCK_K] and [BLOCK_N, BLOCK_K]."""
    TILES_M: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    STEPS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    STEPS_EACH: tl.constexpr = (STEPS + SPLIT_K - 1) // SPLIT_K

    tile = tl.program_id(0)
    split = tl.program_id(1)
    group = tile // (GROUP_M * TILES_N)
    group_rows = tl.minimum(TILES_M - group * GROUP_M, GROUP_M)
    within = tile % (GROUP_M * TILES_N)
    first_row = (group * GROUP_M + within % group_rows) * BLOCK_M
    first_column = (within // group_rows) * BLOCK_N
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    rows = first_row + tl.arange(0, BLOCK_M)
    if SPLIT_K == 1:  # asked for now, there when the sums are
        x_means, x_squares = moments_of_parts(x_moments, rows, M, X_PARTS, X_PARTS_ROOM)
        residual_means, residual_squares = moments_of_parts(
            residual_moments, rows, M, RESIDUAL_PARTS, RESIDUAL_PARTS_ROOM
        )  # fmt: skip
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    first_step = 0 if SPLIT_K == 1 else split * STEPS_EACH
    last_step = STEPS if SPLIT_K == 1 else tl.minimum((split + 1) * STEPS_EACH, STEPS)
    for step in range(first_step, last_step):
        pixels = x.load([first_row, step * BLOCK_K])
        weights = w.load([first_column, step * BLOCK_K])
        total = tl.dot(pixels, weights.T, total)

    if SPLIT_K == 1:
        _finish(
            total, rows, first_column, bias, residual, x_moments, x_means, x_squares, column_sums, residual_moments,
            residual_means, residual_squares, residual_scale, residual_shift, out, out_moments, x_epsilon,
            residual_epsilon, M, N, K, RESIDUAL_PITCH, OUT_PITCH,
            X_PARTS, X_PARTS_ROOM, RESIDUAL_PARTS, RESIDUAL_PARTS_ROOM, OUT_PART, ACTIVATION, ALPHA, BETA,
            RESIDUAL_LAST, CUTS,
        )  # fmt: skip
    else:
        within = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        parts = partial_sums + tile * (SPLIT_K * BLOCK_M * BLOCK_N) + within
        tl.store(parts + split * (BLOCK_M * BLOCK_N), total)
        # All threads have stored before one of them says so, and none reads before that one has seen the others.
        tl.debug_barrier()
        arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel")
        if arrived == SPLIT_K - 1:
            tl.store(counters + tile, 0)
            x_means, x_squares = moments_of_parts(x_moments, rows, M, X_PARTS, X_PARTS_ROOM)
            residual_means, residual_squares = moments_of_parts(
                residual_moments, rows, M, RESIDUAL_PARTS, RESIDUAL_PARTS_ROOM
            )  # fmt: skip
            everything = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
            for part in range(SPLIT_K):
                everything += tl.load(parts + part * (BLOCK_M * BLOCK_N), cache_modifier=".cg")
            _finish(
                everything, rows, first_column, bias, residual, x_moments, x_means, x_squares, column_sums,
                residual_moments, residual_means, residual_squares, residual_scale, residual_shift, out, out_moments,
                x_epsilon, residual_epsilon, M, N, K, RESIDUAL_PITCH, OUT_PITCH,
                X_PARTS, X_PARTS_ROOM, RESIDUAL_PARTS, RESIDUAL_PARTS_ROOM, OUT_PART, ACTIVATION, ALPHA, BETA,
                RESIDUAL_LAST, CUTS,
            )  # fmt: skip
