"""Convolutions and matrix products as one kernel, with bias, residual and activation before the only store.

A convolution is never unfolded in memory: each block gathers the pixels its taps need (implicit GEMM). Results are
out = activation(scale · sum + bias + residual), or with `residual_last` activation(scale · sum + bias) + residual;
`scale`, one FP32 per column, is for quantised operands. INT8 operands sum in INT32, and an INT8 `out` is rounded to
the nearest multiple of `out_scale`.

With a `split_k` above 1 several blocks share the reduction of one tile through `Scratch`; the last to arrive adds the
parts in order, so that the result does not depend on who was last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from .activations import expect_activation
from .epilogue import Epilogue, Scratch
from .implicit_gemm_kernel import implicit_gemm_kernel
from .launching import Launch
from .rows import expect_contiguous, expect_shape, picture_strides, pitch
from .tiles import Product, Tile


def conv2d_product(x: torch.Tensor, w: torch.Tensor, out: torch.Tensor, groups: int = 1) -> Product:
    """The matrix product that a convolution of these tensors is, for `tiles`; of groups a batch of them."""
    images, height, width, filters = out.shape
    rows, taps = images * height * width, w.shape[1] * w.shape[2]
    return Product(rows, filters // groups, w.shape[3], taps, groups, x.element_size())


def conv2d_nhwc(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: Tile,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    scratch: Scratch | None = None,
    pdl: bool = False,
) -> None:
    """Convolve x [N, H, W, C] with w [K, R, S, C / groups] into out [N, P, Q, K].

    padding   rows above and columns to the left; what is missing below and to the right follows from out's shape.
    bias      [K], any floating type. residual: like out.
    scratch   needed if the config splits the reduction.
    """
    conv2d_nhwc_launch(
        x, w, out=out, config=config, bias=bias, residual=residual, scale=scale, epilogue=epilogue, stride=stride,
        padding=padding, dilation=dilation, groups=groups, scratch=scratch, pdl=pdl,
    ).run()  # fmt: skip


def conv2d_nhwc_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: Tile,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    scratch: Scratch | None = None,
    pdl: bool = False,
) -> Launch:
    images, height, width, channels = x.shape
    filters, taps_high, taps_wide, per_tap = w.shape
    if groups < 1 or per_tap * groups != channels or filters % groups:
        raise ValueError(
            f"w: expected [K, R, S, {channels} / {groups}] for x of shape {tuple(x.shape)} in {groups} groups, "
            f"got {tuple(w.shape)}"
        )
    expect_contiguous(w, "w", "contiguous weights")
    out_high, out_wide = out.shape[1:3]
    expect_shape(out, "out", images, out_high, out_wide, filters)
    product = conv2d_product(x, w, out, groups)
    geometry = {
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
        "POINTWISE": taps_high * taps_wide == 1
        and (stride, padding) == ((1, 1), (0, 0))
        and (out_high, out_wide) == (height, width),
    }
    across, row, image = picture_strides(x, "x")
    if geometry["POINTWISE"] and (row, image) != (width * across, height * row):
        geometry["POINTWISE"] = False
    # A group begins where the one before it ends, in channels and in filters.
    apart = (per_tap, product.n * product.k, product.n, product.n) if groups > 1 else (0, 0, 0, 0)
    operands = _Operands(
        x, w, bias, residual, scale, out, (product.k, 1), apart, product.n if groups > 1 else 0,
        pitches=(across, 0 if residual is None else pitch(residual, "residual"), pitch(out, "out")),
        picture=(row, image),
    )  # fmt: skip
    return _launch(product, operands, geometry, config, epilogue or Epilogue(), scratch, pdl)


def gemm_product(x: torch.Tensor, out: torch.Tensor) -> Product:
    """The product that `gemm` of these tensors is, for `tiles`."""
    batch = x.shape[0] if x.dim() == 3 else 1
    return Product(x.shape[-2], out.shape[-1], x.shape[-1], 1, batch, x.element_size())


def gemm(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: Tile,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    scratch: Scratch | None = None,
    pdl: bool = False,
) -> None:
    """Multiply x [M, K] by the transpose of w [N, K] into out [M, N]; all three may have a leading batch dimension.

    w may be any view with one unit stride: hand `matrix.T` for weights stored as [K, N]. INT8 wants [N, K].
    """
    gemm_launch(
        x, w, out=out, config=config, bias=bias, residual=residual, scale=scale, epilogue=epilogue, scratch=scratch,
        pdl=pdl,
    ).run()  # fmt: skip


def gemm_launch(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    out: torch.Tensor,
    config: Tile,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    epilogue: Epilogue | None = None,
    scratch: Scratch | None = None,
    pdl: bool = False,
) -> Launch:
    product = gemm_product(x, out)
    leading = tuple(x.shape[:-2])
    if len(leading) > 1:
        raise ValueError(f"x: expected [M, K] or [batch, M, K], got shape {tuple(x.shape)}")
    expect_shape(w, "w", *leading, product.n, product.k)
    expect_shape(out, "out", *leading, product.m, product.n)
    geometry: dict[str, int | bool] = {
        "HEIGHT": 1,
        "WIDTH": 1,
        "OUT_HEIGHT": 1,
        "OUT_WIDTH": 1,
        "TAPS_HIGH": 1,
        "TAPS_WIDE": 1,
        "STRIDE_HIGH": 1,
        "STRIDE_WIDE": 1,
        "PAD_TOP": 0,
        "PAD_LEFT": 0,
        "DILATION_HIGH": 1,
        "DILATION_WIDE": 1,
        "POINTWISE": True,
    }
    rows = [None if each is None else (each[0] if leading else each) for each in (x, residual, out)]
    if rows[0] is None or rows[2] is None:
        raise ValueError("x, out: expected tensors")
    batches = tuple(0 if each is None or not leading else each.stride(0) for each in (x, w, residual, out))
    matrix = w[0] if leading else w
    if 1 not in matrix.stride():
        raise ValueError(f"w: expected one unit stride, got {w.stride()}")
    operands = _Operands(
        x, w, bias, residual, scale, out, (matrix.stride(0), matrix.stride(1)), batches,
        pitches=(pitch(rows[0], "x"), 0 if rows[1] is None else pitch(rows[1], "residual"), pitch(rows[2], "out")),
    )  # fmt: skip
    return _launch(product, operands, geometry, config, epilogue or Epilogue(), scratch, pdl)


@dataclass(frozen=True, slots=True)
class _Operands:
    x: torch.Tensor
    w: torch.Tensor
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    scale: torch.Tensor | None
    out: torch.Tensor
    w_strides: tuple[int, int]
    batch_strides: Sequence[int]
    """Of x, w, residual and out."""
    columns_apart: int = 0
    """Elements from one batch's bias and scale to the next one's."""
    pitches: tuple[int, int, int] | None = None
    """Of x, residual and out, where they are not the tensors' own."""
    picture: tuple[int, int] = (0, 0)
    """Elements from a row of x to the next, and from an image to the next."""


def _launch(
    product: Product,
    operands: _Operands,
    geometry: dict[str, int | bool],
    config: Tile,
    epilogue: Epilogue,
    scratch: Scratch | None,
    pdl: bool,
) -> Launch:
    x, w, out, residual = operands.x, operands.w, operands.out, operands.residual
    expect_activation(epilogue.activation)
    if x.dtype != w.dtype:
        raise ValueError(f"w: expected {x.dtype} like x, got {w.dtype}")
    if residual is not None:
        expect_shape(residual, "residual", *out.shape)
    for name, each in (("bias", operands.bias), ("scale", operands.scale)):
        if each is not None:
            expect_shape(each, name, max(product.n, operands.columns_apart * product.batch))
    if config.split_k > 1 and (
        scratch is None
        or scratch.partial_sums.numel() < config.partial_sums(product)
        or scratch.counters.numel() < config.counters(product)
    ):
        raise ValueError(
            f"scratch: expected {config.partial_sums(product)} floats and {config.counters(product)} counters for "
            f"{config}, got {'none' if scratch is None else (scratch.partial_sums.numel(), scratch.counters.numel())}"
        )
    x_pitch, residual_pitch, out_pitch = operands.pitches or (
        pitch(x, "x"),
        0 if residual is None else pitch(residual, "residual"),
        pitch(out, "out"),
    )
    split = config.split_k > 1
    tiles_m, tiles_n = triton.cdiv(product.m, config.block_m), triton.cdiv(product.n, config.block_n)
    return Launch(
        implicit_gemm_kernel,
        (tiles_m * tiles_n, config.split_k, product.batch),
        (
            x,
            w,
            operands.bias,
            residual,
            operands.scale,
            out,
            scratch.partial_sums if split and scratch else None,
            scratch.counters if split and scratch else None,
            epilogue.residual_scale,
            1.0 / epilogue.out_scale,
        ),
        {
            "M": product.m,
            "N": product.n,
            "CHANNELS": product.channels,
            **geometry,
            "X_PITCH": x_pitch,
            "X_ROW": operands.picture[0],
            "X_IMAGE": operands.picture[1],
            "RESIDUAL_PITCH": residual_pitch,
            "OUT_PITCH": out_pitch,
            "W_N": operands.w_strides[0],
            "W_K": operands.w_strides[1],
            "X_BATCH": operands.batch_strides[0],
            "W_BATCH": operands.batch_strides[1],
            "RESIDUAL_BATCH": operands.batch_strides[2],
            "OUT_BATCH": operands.batch_strides[3],
            "COLUMNS_BATCH": operands.columns_apart,
            "ACTIVATION": epilogue.activation,
            "ALPHA": epilogue.alpha,
            "BETA": epilogue.beta,
            "RESIDUAL_LAST": epilogue.residual_last,
            "PREFOLDED": epilogue.folded,
            "FLAT": config.flat(product),
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
        config.registers,
    )
