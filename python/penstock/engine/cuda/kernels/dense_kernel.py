"""The device side of `dense`: one block makes one tile of a product, or its share of the sums of one."""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import activate


@triton.jit
def row_moments(moments, rows, rows_inside, SIZE: tl.constexpr, PARTS: tl.constexpr, PARTS_ROOM: tl.constexpr):
    """Mean of each row, and the sum of its squared distances from it, out of those of its parts (Chan's formula)."""
    PART: tl.constexpr = SIZE // PARTS
    parts = tl.arange(0, PARTS_ROOM)
    inside = rows_inside[:, None] & (parts < PARTS)[None, :]
    at = moments + (rows[:, None] * PARTS + parts[None, :]) * 2
    means = tl.load(at, mask=inside, other=0.0)
    mean = tl.sum(means, axis=1) / PARTS
    apart = tl.where(inside, means - mean[:, None], 0.0)
    squares = tl.load(at + 1, mask=inside, other=0.0) + apart * apart * PART
    return mean, tl.sum(squares, axis=1)


@triton.jit
def _finish(
    total,
    rows,
    columns,
    bias,
    residual,
    x_moments,
    column_sums,
    residual_moments,
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
):
    rows_inside = rows < M
    columns_inside = columns < N
    inside = rows_inside[:, None] & columns_inside[None, :]
    y = total
    if x_moments is not None:
        mean, squares = row_moments(x_moments, rows, rows_inside, K, X_PARTS, X_PARTS_ROOM)
        scale = tl.rsqrt(squares / K + x_epsilon)
        sums = tl.load(column_sums + columns, mask=columns_inside, other=0.0)
        y = (y - mean[:, None] * sums[None, :]) * scale[:, None]
    if bias is not None:
        y += tl.load(bias + columns, mask=columns_inside, other=0.0)[None, :]
    if residual is None:
        y = activate(y, ACTIVATION, ALPHA, BETA)
    else:
        added = tl.load(residual + rows[:, None] * RESIDUAL_PITCH + columns[None, :], mask=inside, other=0.0)
        added = added.to(tl.float32)
        if residual_moments is not None:
            mean, squares = row_moments(residual_moments, rows, rows_inside, N, RESIDUAL_PARTS, RESIDUAL_PARTS_ROOM)
            scale = tl.rsqrt(squares / N + residual_epsilon)
            added = (added - mean[:, None]) * scale[:, None]
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
        parted = tl.reshape(stored.to(tl.float32), (total.shape[0], total.shape[1] // OUT_PART, OUT_PART))
        means = tl.sum(parted, axis=2) / OUT_PART
        apart = parted - means[:, :, None]
        squares = tl.sum(apart * apart, axis=2)
        FIRST: tl.constexpr = total.shape[1] // OUT_PART
        parts = tl.min(columns, axis=0) // OUT_PART + tl.arange(0, FIRST)
        at = out_moments + (rows[:, None] * (N // OUT_PART) + parts[None, :]) * 2
        exists = rows_inside[:, None] & (parts < N // OUT_PART)[None, :]
        tl.store(at, means, mask=exists)
        tl.store(at + 1, squares, mask=exists)


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
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    first_step = 0 if SPLIT_K == 1 else split * STEPS_EACH
    last_step = STEPS if SPLIT_K == 1 else tl.minimum((split + 1) * STEPS_EACH, STEPS)
    for step in range(first_step, last_step):
        pixels = x.load([first_row, step * BLOCK_K])
        weights = w.load([first_column, step * BLOCK_K])
        total = tl.dot(pixels, weights.T, total)

    rows = first_row + tl.arange(0, BLOCK_M)
    columns = first_column + tl.arange(0, BLOCK_N)
    if SPLIT_K == 1:
        _finish(
            total, rows, columns, bias, residual, x_moments, column_sums, residual_moments, residual_scale,
            residual_shift, out, out_moments, x_epsilon, residual_epsilon, M, N, K, RESIDUAL_PITCH, OUT_PITCH,
            X_PARTS, X_PARTS_ROOM, RESIDUAL_PARTS, RESIDUAL_PARTS_ROOM, OUT_PART, ACTIVATION, ALPHA, BETA,
            RESIDUAL_LAST,
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
            everything = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
            for part in range(SPLIT_K):
                everything += tl.load(parts + part * (BLOCK_M * BLOCK_N), cache_modifier=".cg")
            _finish(
                everything, rows, columns, bias, residual, x_moments, column_sums, residual_moments, residual_scale,
                residual_shift, out, out_moments, x_epsilon, residual_epsilon, M, N, K, RESIDUAL_PITCH, OUT_PITCH,
                X_PARTS, X_PARTS_ROOM, RESIDUAL_PARTS, RESIDUAL_PARTS_ROOM, OUT_PART, ACTIVATION, ALPHA, BETA,
                RESIDUAL_LAST,
            )  # fmt: skip
