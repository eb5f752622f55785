"""Convolutions that take all taps of a few channels before the next channels, maybe with a shortcut's layer.

out = activation(w * x + shortcut · source + biases + residual). A window's taps read the same pixels, a few of a row
further: taken one after the other they find them near, where `implicit_gemm`, which takes all channels of a tap first,
asks for each again when the others have pushed it out. Copies go past the first cache: through it they were slower at
five of six shapes on an H200, and level at the sixth. A shortcut, the 1 x 1 convolution of another map that is added,
goes on with the same sums, so that what it makes is neither written nor read. Tiles are `implicit_gemm`'s.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .activations import expect_activation
from .epilogue import Epilogue, Scratch, store_tile
from .launching import Launch
from .rows import expect_shape, picture_strides, pitch
from .tiles import Product, Tile


def window_product(rows: int, filters: int, channels: int, taps: int, source: int = 0) -> Product:
    """The product that both are, for `tiles`: a tap is the largest number of channels that is whole in either."""
    unit = channels
    while source % unit or channels % unit:
        unit //= 2
    return Product(rows, filters, unit, (channels * taps + source) // unit)


def window_conv_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    source: torch.Tensor | None = None,
    shortcut: torch.Tensor | None = None,
    *,
    out: torch.Tensor,
    config: Tile,
    bias: torch.Tensor | None = None,
    shortcut_bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    source_stride: tuple[int, int] = (1, 1),
    scratch: Scratch | None = None,
    pdl: bool = False,
) -> Launch:
    """x [N, H, W, C] with w [K, R, S, C], and every source_stride-th pixel of source [N, ., ., D] with shortcut [K, D].

    ValueError unless the tile's steps divide C and D.
    """
    images, height, width, channels = x.shape
    filters, taps_high, taps_wide, _ = w.shape
    out_high, out_wide = out.shape[1:3]
    others = 0 if source is None else source.shape[3]
    expect_shape(w, "w", filters, taps_high, taps_wide, channels)
    expect_shape(out, "out", images, out_high, out_wide, filters)
    if residual is not None:
        expect_shape(residual, "residual", *out.shape)
    if not w.is_contiguous() or w.dtype != x.dtype:
        raise ValueError(f"w: expected contiguous {x.dtype}")
    far = (0, 0, 0)
    if source is not None and shortcut is not None:
        expect_shape(shortcut, "shortcut", filters, others)
        far = picture_strides(source, "source")
        reached = [-(-size // step) for size, step in zip(source.shape[1:3], source_stride, strict=True)]
        if (source.shape[0], *reached) != (images, out_high, out_wide):
            raise ValueError(f"source: expected {images} x {out_high} x {out_wide} pixels, got {tuple(source.shape)}")
        if not shortcut.is_contiguous() or {source.dtype, shortcut.dtype} != {x.dtype}:
            raise ValueError(f"shortcut: expected contiguous {x.dtype}")
    if (source is None) != (shortcut is None):
        raise ValueError("source, shortcut: expected both or neither")
    if channels % config.block_k or others % config.block_k:
        raise ValueError(f"config: expected steps that divide {channels} and {others} channels, got {config.block_k}")
    for name, each in (("bias", bias), ("shortcut_bias", shortcut_bias)):
        if each is not None:
            expect_shape(each, name, filters)
    product = window_product(images * out_high * out_wide, filters, channels, taps_high * taps_wide, others)
    split = config.split_k > 1
    if split and (
        scratch is None
        or scratch.partial_sums.numel() < config.partial_sums(product)
        or scratch.counters.numel() < config.counters(product)
    ):
        raise ValueError(f"scratch: expected {config.partial_sums(product)} floats for {config}")
    epilogue = epilogue or Epilogue()
    expect_activation(epilogue.activation)
    near = picture_strides(x, "x")
    tiles = triton.cdiv(product.m, config.block_m) * triton.cdiv(filters, config.block_n)
    return Launch(
        window_conv_kernel,
        (tiles, config.split_k, 1),
        (
            x,
            w,
            source,
            shortcut,
            bias,
            shortcut_bias,
            residual,
            out,
            scratch.partial_sums if split and scratch else None,
            scratch.counters if split and scratch else None,
        ),
        {
            "M": product.m,
            "N": filters,
            "CHANNELS": channels,
            "OTHERS": others,
            "HEIGHT": height,
            "WIDTH": width,
            "OUT_HEIGHT": out_high,
            "OUT_WIDTH": out_wide,
            "TAPS_HIGH": taps_high,
            "TAPS_WIDE": taps_wide,
            "STRIDE_HIGH": stride[0],
            "STRIDE_WIDE": stride[1],
            "PAD_TOP": padding[0],
            "PAD_LEFT": padding[1],
            "DILATION_HIGH": dilation[0],
            "DILATION_WIDE": dilation[1],
            "X_PITCH": near[0],
            "X_ROW": near[1],
            "X_IMAGE": near[2],
            "SOURCE_PITCH": far[0] * source_stride[1],
            "SOURCE_ROW": far[1] * source_stride[0],
            "SOURCE_IMAGE": far[2],
            "RESIDUAL_PITCH": 0 if residual is None else pitch(residual, "residual"),
            "OUT_PITCH": pitch(out, "out"),
            "ACTIVATION": epilogue.activation,
            "ALPHA": epilogue.alpha,
            "BETA": epilogue.beta,
            "RESIDUAL_LAST": epilogue.residual_last,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_K": config.block_k,
            "SPLIT_K": config.split_k,
            "GROUP_M": config.group_m,
            "PDL": pdl,
        },
        config.num_warps,
        config.num_stages,
        pdl,
    )


@triton.jit
def window_conv_kernel(
    x,
    w,
    source,
    shortcut,
    bias,
    shortcut_bias,
    residual,
    out,
    partial_sums,
    counters,
    M: tl.constexpr,
    N: tl.constexpr,
    CHANNELS: tl.constexpr,
    OTHERS: tl.constexpr,
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
    X_PITCH: tl.constexpr,
    X_ROW: tl.constexpr,
    X_IMAGE: tl.constexpr,
    SOURCE_PITCH: tl.constexpr,
    SOURCE_ROW: tl.constexpr,
    SOURCE_IMAGE: tl.constexpr,
    RESIDUAL_PITCH: tl.constexpr,
    OUT_PITCH: tl.constexpr,
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
    """Grid: (tiles, splits)."""
    TILES_M: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    REDUCED: tl.constexpr = CHANNELS * TAPS_HIGH * TAPS_WIDE
    CHUNKS: tl.constexpr = CHANNELS // BLOCK_K
    TAPS: tl.constexpr = TAPS_HIGH * TAPS_WIDE
    OWN: tl.constexpr = TAPS * CHUNKS
    STEPS: tl.constexpr = OWN + OTHERS // BLOCK_K
    STEPS_EACH: tl.constexpr = (STEPS + SPLIT_K - 1) // SPLIT_K

    tile = tl.program_id(0)
    split = tl.program_id(1)
    group = tile // (GROUP_M * TILES_N)
    group_rows = tl.minimum(TILES_M - group * GROUP_M, GROUP_M)
    within = tile % (GROUP_M * TILES_N)
    rows = (group * GROUP_M + within % group_rows) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = within // group_rows * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    rows_inside = rows < M
    columns_inside = columns < N
    above = rows // OUT_WIDTH
    image = above // OUT_HEIGHT
    down_out = above % OUT_HEIGHT
    right_out = rows % OUT_WIDTH
    top = down_out * STRIDE_HIGH - PAD_TOP
    left = right_out * STRIDE_WIDE - PAD_LEFT
    corner = image * X_IMAGE + top * X_ROW + left * X_PITCH
    # Rows past the end are as far outside the picture as the padding is: one comparison serves both.
    top = tl.where(rows_inside, top, -(1 << 20))
    if source is not None:
        place = image * SOURCE_IMAGE + down_out * SOURCE_ROW + right_out * SOURCE_PITCH
    if PDL:
        gdc_wait()
        gdc_launch_dependents()

    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    first_step = 0 if SPLIT_K == 1 else split * STEPS_EACH
    last_step = STEPS if SPLIT_K == 1 else tl.minimum((split + 1) * STEPS_EACH, STEPS)
    for step in range(first_step, last_step):
        tap = step % TAPS
        c = (step // TAPS) * BLOCK_K
        down = (tap // TAPS_WIDE) * DILATION_HIGH
        right = (tap % TAPS_WIDE) * DILATION_WIDE
        # As unsigned numbers what is negative is large.
        seen = ((top + down).to(tl.uint32, bitcast=True) < HEIGHT) & (
            (left + right).to(tl.uint32, bitcast=True) < WIDTH
        )
        pixel = corner + (down * X_ROW + right * X_PITCH + c)
        k = tap * CHANNELS + c
        if source is None:
            pixels = tl.load(x + pixel[:, None] + ks[None, :], mask=seen[:, None], other=0)
            addresses = w + (columns * REDUCED + k)[None, :] + ks[:, None]
        else:
            # The other map has no window, so that nothing is outside.
            own = step < OWN
            rest = (step - OWN) * BLOCK_K
            pixel = tl.where(own, pixel, place + rest)
            pixels = tl.load(
                tl.where(own, x, source) + pixel[:, None] + ks[None, :],
                mask=(rows_inside & (seen | (step >= OWN)))[:, None],
                other=0,
            )
            first = columns * tl.where(own, REDUCED, OTHERS) + tl.where(own, k, rest)
            addresses = tl.where(own, w, shortcut) + first[None, :] + ks[:, None]
        if N % BLOCK_N == 0:  # noqa: SIM108 (decided when it is compiled)
            weights = tl.load(addresses)
        else:
            weights = tl.load(addresses, mask=columns_inside[None, :], other=0)
        total = tl.dot(pixels, weights, total, input_precision="ieee")

    finished = True
    if SPLIT_K > 1:
        inner = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        parts = partial_sums + tile * (SPLIT_K * BLOCK_M * BLOCK_N) + inner
        tl.store(parts + split * (BLOCK_M * BLOCK_N), total)
        # All threads have stored before one of them says so, and none reads before that one has seen the others.
        tl.debug_barrier()
        arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel")
        finished = arrived == SPLIT_K - 1
        if finished:
            tl.store(counters + tile, 0)
            total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
            for part in range(SPLIT_K):
                total += tl.load(parts + part * (BLOCK_M * BLOCK_N), cache_modifier=".cg")
    if finished:
        if shortcut_bias is not None:
            total += tl.load(shortcut_bias + columns, mask=columns_inside, other=0.0).to(tl.float32)[None, :]
        store_tile(
            total,
            rows,
            columns,
            bias,
            residual,
            None,
            out,
            1.0,
            1.0,
            M,
            N,
            RESIDUAL_PITCH,
            OUT_PITCH,
            ACTIVATION,
            ALPHA,
            BETA,
            RESIDUAL_LAST,
        )
