"""The device side of `implicit_gemm`: one block makes one tile of the result, or its share of the sums of one."""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .epilogue import store_tile

MOST_IMPRECISE: tl.constexpr = tl.constexpr(128)
"""Of e4m3: products of a step of the loop that are added at the units' own precision."""

MOST_STEPS_AHEAD: tl.constexpr = tl.constexpr(4)
"""Of the loop, for the residual to be loaded before it: longer ones hide the load behind their own."""


@triton.jit
def _prefetch_weights(w, columns, columns_inside, first, count, W_N: tl.constexpr):
    """Ask for `count` weights from `first` on of every column to be brought to L2, a line of 128 bytes at a time."""
    LINE: tl.constexpr = 1024 // w.dtype.element_ty.primitive_bitwidth
    LINES: tl.constexpr = 16
    starts = tl.where(columns_inside, columns, 0) * W_N
    for step in range(0, count, LINES * LINE):
        lines = first + tl.minimum(step + tl.arange(0, LINES) * LINE, count - 1)
        addresses = (w + starts[:, None] + lines[None, :]).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [addresses], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def implicit_gemm_kernel(
    x,
    w,
    bias,
    residual,
    scale,
    out,
    partial_sums,
    counters,
    residual_scale,
    out_inverse_scale,
    M: tl.constexpr,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    TAPS_HIGH: tl.constexpr,
    TAPS_WIDE: tl.constexpr,
    STRIDE_HIGH: tl.constexpr,
    STRIDE_WIDE: tl.constexpr,
    PAD_TOP: tl.constexpr,
    PAD_LEFT: tl.constexpr,
    DILATION_HIGH: tl.constexpr,
    DILATION_WIDE: tl.constexpr,
    POINTWISE: tl.constexpr,
    X_PITCH: tl.constexpr,
    X_ROW: tl.constexpr,
    X_IMAGE: tl.constexpr,
    RESIDUAL_PITCH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
    W_N: tl.constexpr,
    W_K: tl.constexpr,
    X_BATCH: tl.constexpr,
    W_BATCH: tl.constexpr,
    RESIDUAL_BATCH: tl.constexpr,
    OUT_BATCH: tl.constexpr,
    COLUMNS_BATCH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    RESIDUAL_LAST: tl.constexpr,
    PREFOLDED: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid: (tiles, splits, batch, which groups of channels are, too). FP32 operands multiply exactly, not as TF32."""
    TILES_M: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    REDUCED: tl.constexpr = CHANNELS * TAPS_HIGH * TAPS_WIDE
    CHUNKS: tl.constexpr = (CHANNELS + BLOCK_K - 1) // BLOCK_K
    STEPS: tl.constexpr = (REDUCED + BLOCK_K - 1) // BLOCK_K if FLAT else TAPS_HIGH * TAPS_WIDE * CHUNKS
    STEPS_EACH: tl.constexpr = (STEPS + SPLIT_K - 1) // SPLIT_K
    SUM: tl.constexpr = tl.int32 if x.dtype.element_ty == tl.int8 else tl.float32

    tile = tl.program_id(0)
    split = tl.program_id(1)
    batch = tl.program_id(2)
    x += batch * X_BATCH
    w += batch * W_BATCH
    out += batch * OUT_BATCH
    if residual is not None:
        residual += batch * RESIDUAL_BATCH
    if COLUMNS_BATCH > 0 and bias is not None:
        bias += batch * COLUMNS_BATCH
    if COLUMNS_BATCH > 0 and scale is not None:
        scale += batch * COLUMNS_BATCH

    group = tile // (GROUP_M * TILES_N)
    group_rows = tl.minimum(TILES_M - group * GROUP_M, GROUP_M)
    within = tile % (GROUP_M * TILES_N)
    tile_m = group * GROUP_M + within % group_rows
    tile_n = within // group_rows

    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    rows_inside = rows < M
    columns_inside = columns < N
    if POINTWISE:
        top = rows * 0
        left = rows * 0
        first = rows * X_PITCH
    else:
        above = rows // OUT_WIDTH
        top = (above % OUT_HEIGHT) * STRIDE_HIGH - PAD_TOP
        left = (rows % OUT_WIDTH) * STRIDE_WIDE - PAD_LEFT
        first = (above // OUT_HEIGHT) * X_IMAGE + top * X_ROW + left * X_PITCH
        # Rows past the end are as far outside the picture as the padding is: one comparison serves both.
        top = tl.where(rows_inside, top, -(1 << 20))

    if PDL:
        # Nobody writes weights, so they may be fetched while the kernel ahead still runs.
        if W_K == 1 and tile_m == 0:
            _prefetch_weights(w, columns, columns_inside, REDUCED * split // SPLIT_K, REDUCED // SPLIT_K, W_N)
        gdc_wait()
        gdc_launch_dependents()

    # A short product waits for its operands once or twice and then for the residual: all may come at the same time.
    AHEAD: tl.constexpr = (
        residual is not None and SPLIT_K == 1 and STEPS <= MOST_STEPS_AHEAD and BLOCK_M * BLOCK_N <= 128 * 128
    )
    ahead = None
    if AHEAD:
        ahead = tl.load(
            residual + rows[:, None] * RESIDUAL_PITCH + columns[None, :],
            mask=rows_inside[:, None] & columns_inside[None, :],
            other=0.0,
        )

    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=SUM)
    first_step = 0 if SPLIT_K == 1 else split * STEPS_EACH
    last_step = STEPS if SPLIT_K == 1 else tl.minimum((split + 1) * STEPS_EACH, STEPS)
    for step in range(first_step, last_step):
        if FLAT:
            k = step * BLOCK_K + ks
            tap = k // CHANNELS
            down = (tap // TAPS_WIDE) * DILATION_HIGH
            right = (tap % TAPS_WIDE) * DILATION_WIDE
            moved = down * X_ROW + right * X_PITCH + k % CHANNELS
            # As unsigned numbers what is negative is large.
            seen = ((top[:, None] + down[None, :]).to(tl.uint32, bitcast=True) < HEIGHT) & (
                (left[:, None] + right[None, :]).to(tl.uint32, bitcast=True) < WIDTH
            )
            pixels = tl.load(x + first[:, None] + moved[None, :], mask=seen & (k < REDUCED)[None, :], other=0.0)
            k_inside = k < REDUCED
        else:
            tap = step // CHUNKS
            c = (step % CHUNKS) * BLOCK_K + ks
            k = tap * CHANNELS + c
            k_inside = c < CHANNELS
            if POINTWISE:
                seen = rows_inside
                moved = c
            else:
                down = (tap // TAPS_WIDE) * DILATION_HIGH
                right = (tap % TAPS_WIDE) * DILATION_WIDE
                moved = down * X_ROW + right * X_PITCH + c
                seen = ((top + down).to(tl.uint32, bitcast=True) < HEIGHT) & (
                    (left + right).to(tl.uint32, bitcast=True) < WIDTH
                )
            if CHANNELS % BLOCK_K == 0:
                pixels = tl.load(x + first[:, None] + moved[None, :], mask=seen[:, None], other=0.0)
            else:
                pixels = tl.load(x + first[:, None] + moved[None, :], mask=seen[:, None] & k_inside[None, :], other=0.0)
        if CHANNELS % BLOCK_K == 0 and N % BLOCK_N == 0:
            weights = tl.load(w + k[:, None] * W_K + columns[None, :] * W_N)
        else:
            weights = tl.load(
                w + k[:, None] * W_K + columns[None, :] * W_N,
                mask=k_inside[:, None] & columns_inside[None, :],
                other=0.0,
            )
        if x.dtype.element_ty == tl.float8e4nv:
            # The units keep 14 bits of a sum of e4m3 products; so many of them are added before they go to FP32.
            IMPRECISE: tl.constexpr = BLOCK_K if BLOCK_K < MOST_IMPRECISE else MOST_IMPRECISE
            total = tl.dot(pixels, weights, total, max_num_imprecise_acc=IMPRECISE, out_dtype=SUM)
        else:
            total = tl.dot(pixels, weights, total, input_precision="ieee", out_dtype=SUM)

    if SPLIT_K == 1:
        store_tile(
            total, rows, columns, bias, residual, scale, out, residual_scale, out_inverse_scale, M, N,
            RESIDUAL_PITCH, OUT_PITCH, ACTIVATION, ALPHA, BETA, RESIDUAL_LAST, ahead, REDUCED * 128 * 128,
            PREFOLDED,
        )  # fmt: skip
    else:
        # INT32 sums beyond 2**24 lose their last bits here, far below what INT8 results can show.
        tile += batch * (TILES_M * TILES_N)
        within = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        parts = partial_sums + tile * (SPLIT_K * BLOCK_M * BLOCK_N) + within
        tl.store(parts + split * (BLOCK_M * BLOCK_N), total.to(tl.float32))
        # All threads have stored before one of them says so, and none reads before that one has seen the others.
        tl.debug_barrier()
        arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel")
        if arrived == SPLIT_K - 1:
            tl.store(counters + tile, 0)
            everything = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
            for part in range(SPLIT_K):
                everything += tl.load(parts + part * (BLOCK_M * BLOCK_N), cache_modifier=".cg")
            store_tile(
                everything, rows, columns, bias, residual, scale, out, residual_scale, out_inverse_scale, M, N,
                RESIDUAL_PITCH, OUT_PITCH, ACTIVATION, ALPHA, BETA, RESIDUAL_LAST, None, 2147483647, PREFOLDED,
            )  # fmt: skip
