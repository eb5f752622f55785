"""Convolutions by warpgroups: the source compiled for the CPU against float64, and for a GPU that is not here."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.kernels import nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue, fold  # noqa: E402
from penstock.engine.cuda.kernels.warpgroup_conv import (  # noqa: E402
    Window,
    WindowTile,
    warpgroup_conv_launch,
    warpgroup_conv_tiles,
)

from .emulating import run_on_the_cpu  # noqa: E402

pytestmark = pytest.mark.torch

BF16, INT8, E4M3 = torch.bfloat16, torch.int8, torch.float8_e4m3fn
RELU = Epilogue("relu")
STEPS = Epilogue("relu", residual_scale=0.04, out_scale=0.05)
FOLDED = replace(STEPS, folded=True)


@dataclass(frozen=True)
class Case:
    x: tuple[int, int, int, int]
    filters: int
    taps: tuple[int, int]
    tile: WindowTile
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    epilogue: Epilogue = RELU
    residual: bool = False
    apart: int = 0
    """Channels beside x's, residual's and out's in memory."""
    dtype: torch.dtype = torch.float16
    others: int = 0
    """Channels of a map that is multiplied with weights of its own, and added."""
    apart_by: tuple[int, int] = (1, 1)
    """Its pixels."""

    def __str__(self) -> str:
        one = self.tile
        how = (
            one.rows,
            one.columns,
            one.pingpong,
            one.groups,
            one.stages,
            one.cluster,
            one.together,
            one.resident,
        )
        where = f"{self.x} {self.taps} {self.stride} {self.pads} {self.dilation}"
        return f"{where} {self.filters} by {how} {self.epilogue.activation} {self.residual} {self.others} {self.dtype}"


def tile(
    rows: int = 64, columns: int = 64, pingpong: int = 0, groups: int = 2, stages: int = 3, cluster: int = 1,
    together: int = 0, resident: int = 0, blocks: int = 2,
) -> WindowTile:  # fmt: skip
    return WindowTile(rows, columns, pingpong, groups, stages, cluster, together, resident, blocks)


CASES = [
    Case((1, 9, 11, 64), 64, (3, 3), tile(pingpong=1)),
    Case((3, 4, 26, 64), 112, (3, 3), tile(columns=104), residual=True),
    Case((5, 7, 7, 128), 136, (3, 3), tile(columns=128, cluster=2, blocks=4)),
    Case((2, 14, 14, 64), 128, (3, 3), tile(columns=128, groups=3), residual=True, dtype=BF16),
    Case((2, 13, 9, 72), 64, (3, 3), tile(rows=128), stride=(2, 2), pads=(1, 1, 1, 1), apart=8),
    Case((1, 12, 17, 64), 64, (5, 3), tile(pingpong=1), stride=(2, 1), pads=(2, 0, 1, 1)),
    Case((2, 9, 16, 64), 64, (3, 2), tile(rows=128, pingpong=1), dilation=(2, 3), pads=(1, 2, 3, 0)),
    Case((2, 10, 10, 64), 128, (1, 1), tile(columns=128, groups=3), stride=(2, 2), pads=(0, 0, 0, 0)),
    Case((2, 16, 16, 64), 64, (3, 3), tile(pingpong=1, together=2, resident=1), residual=True, apart=16),
    Case((3, 13, 21, 64), 64, (3, 3), tile(together=2, resident=1, groups=3), epilogue=Epilogue("hard_swish")),
    Case((1, 24, 12, 128), 104, (3, 3), tile(columns=104, together=2, pingpong=1), pads=(1, 0, 1, 2)),
    Case((3, 7, 9, 64), 128, (3, 3), tile(columns=128, groups=3), others=72, apart_by=(2, 2)),
    Case((2, 13, 9, 64), 64, (3, 3), tile(cluster=2, pingpong=1, blocks=4), stride=(2, 1), others=128, residual=True),
    Case((2, 17, 13, 64), 64, (3, 3), tile(together=1, pingpong=1, resident=1), stride=(2, 2)),
    Case((1, 19, 15, 32), 64, (7, 1), tile(together=1, pingpong=1, resident=1), stride=(2, 1), pads=(0, 0, 0, 0)),
    Case((2, 9, 16, 24), 128, (3, 3), tile(columns=128, rows=128)),
    Case((2, 16, 8, 32), 64, (3, 3), tile(together=2, groups=3), residual=True),
    Case((2, 9, 13, 128), 128, (3, 3), tile(columns=128, groups=3), epilogue=STEPS, residual=True, dtype=INT8),
    Case((2, 9, 13, 64), 128, (3, 3), tile(columns=128, pingpong=1), epilogue=FOLDED, residual=True, dtype=INT8),
    Case((2, 9, 13, 64), 128, (2, 2), tile(columns=128), epilogue=FOLDED, dtype=INT8, pads=(0, 0, 0, 0)),
    Case((2, 16, 16, 64), 128, (3, 3), tile(columns=128, together=2, resident=1), epilogue=FOLDED, dtype=INT8),
    Case((1, 9, 13, 128), 128, (3, 3), tile(columns=128), epilogue=STEPS, stride=(2, 2), dtype=E4M3),
    Case((2, 16, 8, 64), 64, (3, 3), tile(pingpong=1, together=2), epilogue=FOLDED, residual=True, dtype=INT8),
    Case((2, 9, 13, 64), 80, (3, 3), tile(groups=3), epilogue=FOLDED, residual=True, dtype=INT8, stride=(2, 2)),
    Case((3, 24, 16, 64), 64, (3, 3), tile(rows=128, pingpong=1, together=2, resident=1), residual=True, apart=8),
    Case((1, 21, 13, 64), 64, (2, 3), tile(rows=128, together=2), pads=(0, 1, 1, 1)),
    Case(
        (2, 21, 11, 32),
        64,
        (7, 1),
        tile(rows=128, pingpong=1, together=2, resident=1),
        stride=(2, 1),
        pads=(1, 0, 0, 0),
    ),
    Case((2, 19, 17, 64), 64, (3, 3), tile(together=2), stride=(2, 1), dilation=(1, 2), pads=(1, 2, 1, 2)),
    Case((2, 11, 11, 64), 72, (3, 3), tile(columns=128, resident=1, pingpong=1, stages=4), pads=(0, 0, 0, 0)),
]


@dataclass(frozen=True)
class Tensors:
    x: torch.Tensor
    w: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor | None
    residual: torch.Tensor | None
    source: torch.Tensor | None
    shortcut: torch.Tensor | None
    out: torch.Tensor

    def launch(self, case: Case) -> CppLaunch:
        bias, scale = self.bias, self.scale
        if case.epilogue.folded and scale is not None:
            scale, bias = fold(scale, bias, case.epilogue.out_scale, self.w[0].numel() * 128 * 128)
        return warpgroup_conv_launch(
            self.x,
            self.w,
            out=self.out,
            config=case.tile,
            stride=case.stride,
            padding=case.pads[:2],
            dilation=case.dilation,
            source=self.source,
            shortcut=self.shortcut,
            source_stride=case.apart_by,
            bias=bias,
            residual=self.residual,
            scale=scale,
            epilogue=case.epilogue,
        )


def tensors(case: Case, device: str = "cpu") -> Tensors:
    generator = torch.Generator().manual_seed(7)
    images, high, wide, channels = case.x
    top, left, bottom, right = case.pads
    reach = [(taps - 1) * apart + 1 for taps, apart in zip(case.taps, case.dilation, strict=True)]
    out_high = (high + top + bottom - reach[0]) // case.stride[0] + 1
    out_wide = (wide + left + right - reach[1]) // case.stride[1] + 1

    def normal(*shape: int) -> torch.Tensor:
        wider = torch.randn(*shape[:-1], shape[-1] + case.apart, generator=generator)
        found = (wider * 30).round().clamp(-128, 127) if case.dtype == INT8 else wider
        return found.to(case.dtype).to(device)[..., : shape[-1]]

    depth = channels * case.taps[0] * case.taps[1]
    eight = case.dtype.itemsize == 1
    worth = depth**-0.5 / (900 if case.dtype == INT8 else 1)
    wide = torch.randn(case.filters, *case.taps, channels, generator=generator)
    w = (wide * 30).round().clamp(-128, 127) if case.dtype == INT8 else wide if eight else wide * depth**-0.5
    out = (images, out_high, out_wide, case.filters)
    nothing = torch.full((*out[:3], case.filters + case.apart), 77.0 if eight else torch.nan).to(case.dtype).to(device)
    return Tensors(
        normal(*case.x),
        w.to(case.dtype).to(device),
        torch.randn(case.filters, generator=generator).to(device),
        (torch.rand(case.filters, generator=generator) + 0.5).to(device) * worth if eight else None,
        normal(*out) if case.residual else None,
        normal(images, out_high * case.apart_by[0], out_wide * case.apart_by[1], case.others) if case.others else None,
        (torch.randn(case.filters, case.others, generator=generator) / 9).to(case.dtype).to(device)
        if case.others
        else None,
        nothing[..., : case.filters],
    )


def expected(given: Tensors, case: Case) -> torch.Tensor:
    top, left, bottom, right = case.pads
    x = torch.nn.functional.pad(given.x.double().cpu(), (0, 0, left, right, top, bottom))
    w, epilogue = given.w.double().cpu(), case.epilogue
    y = torch.nn.functional.conv2d(
        x.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2), None, case.stride, (0, 0), case.dilation
    ).permute(0, 2, 3, 1)
    y = y * (1.0 if given.scale is None else given.scale.double().cpu()) + given.bias.double().cpu()
    if given.source is not None and given.shortcut is not None:
        high, wide = case.apart_by
        y = y + given.source.double().cpu()[:, ::high, ::wide] @ given.shortcut.double().cpu().T
    if given.residual is not None:
        y = y + given.residual.double().cpu() * epilogue.residual_scale
    y = torch.nn.functional.hardswish(y) if epilogue.activation == "hard_swish" else y.relu()
    if case.dtype.itemsize > 1:
        return y
    return (y / epilogue.out_scale).clamp(-128, 127 if case.dtype == INT8 else 448)


def difference(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.double().cpu() - right).norm() / right.norm())


def allowed(case: Case) -> float:
    return {torch.float16: 5e-4, BF16: 4e-3, INT8: 2e-2, E4M3: 4e-2}[case.dtype]


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_thread_of_the_source_does_its_part(case: Case, tmp_path: Path) -> None:
    given = tensors(case)
    run_on_the_cpu(given.launch(case), tmp_path)
    assert difference(given.out, expected(given, case)) < allowed(case)
    if case.apart:
        images, high, wide, filters = given.out.shape
        shape = (images, high, wide, case.apart)
        assert bool(torch.as_strided(given.out, shape, given.out.stride(), filters).isnan().all())


def window_of(case: Case) -> Window:
    given = tensors(case)
    images, high, wide, _ = given.out.shape
    return Window(
        images, high, wide, case.filters, case.x[3], *case.taps, case.stride, case.dilation, case.dtype.itemsize,
        case.others,
    )  # fmt: skip


SHAPES = [
    Window(32, 4, 26, 512, 512, 3, 3),
    Window(32, 4, 26, 512, 512, 3, 3, others=256),
    Window(64, 56, 56, 64, 64, 3, 3),
    Window(64, 14, 14, 256, 256, 3, 3),
    Window(64, 14, 14, 256, 128, 3, 3, (2, 2)),
    Window(64, 7, 7, 512, 512, 3, 3, itemsize=1),
    Window(64, 56, 56, 64, 64, 3, 3, itemsize=1),
    Window(64, 112, 112, 64, 32, 7, 1, (2, 1)),
    Window(1, 5, 9, 72, 64, 5, 5),
    Window(33, 1, 1, 1000, 2048, 1, 1),
]


@pytest.mark.parametrize("window", SHAPES, ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_all_cuts_fit_a_multiprocessor_and_few_are_kept(window: Window, residual: bool) -> None:
    every = warpgroup_conv_tiles(window, 132, residual, window.itemsize, limit=1000)
    assert every
    for tile in every:
        assert tile.fits(window, residual, window.itemsize)
        assert 2 <= tile.stages <= 8
        assert tile.clusters(window) * tile.cluster <= 132
    assert warpgroup_conv_tiles(window, 132, residual, window.itemsize) == every[:6]


def test_cuts_leave_few_multiprocessors_without_work() -> None:
    """Of 132: 66 x 2 tiles of 192 by 128."""
    high = warpgroup_conv_tiles(Window(64, 14, 14, 256, 256, 3, 3), 132, False)[0]
    assert (high.block_rows, high.columns, high.groups) == (192, 128, 3)


def test_products_of_few_rows_are_left_to_others() -> None:
    assert not warpgroup_conv_tiles(Window(1, 4, 8, 512, 512, 3, 3), 132, False)


def test_squares_of_pixels_are_for_pictures_that_they_fill() -> None:
    def squares(window: Window) -> bool:
        return any(tile.strip for tile in warpgroup_conv_tiles(window, 132, False, limit=1000))

    assert squares(Window(64, 56, 56, 64, 64, 3, 3))
    assert not squares(Window(64, 28, 28, 64, 64, 3, 3, (2, 2)))  # strides
    assert not squares(Window(64, 9, 9, 64, 64, 3, 3))  # four squares for nine by nine
    assert not squares(Window(64, 56, 56, 64, 64, 1, 3))  # nothing is loaded twice


FOR_A_GPU = [
    (window, residual, tile)
    for window, residual in (
        (SHAPES[0], True),
        (SHAPES[1], False),
        (SHAPES[2], True),
        (SHAPES[3], False),
        (SHAPES[6], True),
    )
    for tile in warpgroup_conv_tiles(window, 132, residual, window.itemsize)[:3]
]


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize(("window", "residual", "tile"), FOR_A_GPU, ids=str)
def test_it_compiles_without_a_gpu_and_keeps_sums_in_registers(
    window: Window, residual: bool, tile: WindowTile
) -> None:
    dtype = torch.float16 if window.itemsize == 2 else INT8

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    out = empty(window.images, window.out_high, window.out_wide, window.filters)
    x = empty(window.images, window.out_high, window.out_wide, window.channels)
    row = empty(window.filters, dtype=torch.float32)
    source = empty(*x.shape[:3], window.others) if window.others else None
    launch = warpgroup_conv_launch(
        x, empty(window.filters, 3, 3, window.channels), out=out, config=tile, padding=(1, 1), bias=row,
        residual=out if residual else None, scale=row if window.itemsize == 1 else None, epilogue=RELU,
        source=source, shortcut=empty(window.filters, window.others) if window.others else None,
    )  # fmt: skip
    found = launch.compile()
    assert found.cubin.startswith(b"\x7fELF")
    assert found.spilled_bytes == 0
    sealed = launch.seal()
    assert sealed.maps == launch.maps
    assert sealed.parameters.startswith("m" * len(launch.maps) + "p")
    assert sealed.shared_bytes <= 227 * 1024


REFUSED = Case((2, 12, 12, 64), 64, (3, 3), tile())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: {"x": given.x.float()}, "x: expected sixteen or eight bits"),
        (lambda given: {"out": given.out.bfloat16()}, "out: expected torch.float16"),
        (lambda given: {"x": given.x[..., :60], "w": given.w[..., :60].contiguous()}, "multiples of 16 bytes"),
        (lambda given: {"x": given.x[:, :, :, :56], "w": given.w}, "x: expected shape"),
        (lambda given: {"w": given.w.transpose(1, 2)}, "contiguous filters"),
        (lambda given: {"bias": given.bias.half()}, "FP32"),
        (lambda given: {"shortcut": given.w[:, 0, 0]}, "expected both or neither"),
        (lambda given: {"stride": (9, 9), "out": given.out[:, :2, :2].contiguous()}, "strides of x"),
        (lambda given: {"padding": (128, 1)}, "padding of x"),
        (lambda given: {"config": tile(together=2), "stride": (2, 2), "out": given.out[:, :6, :6]}, "fits a multi"),
        (lambda given: {"config": tile(columns=128, stages=8)}, "fits a multiprocessor"),
        (lambda given: {"config": tile(together=2), "dilation": (2, 2), "padding": (2, 2)}, "fits a multiprocessor"),
        (lambda given: {"config": tile(pingpong=1, groups=3)}, "fits a multiprocessor"),
    ],
    ids=["wide", "another sixteen bits", "rows of 120 bytes", "other channels", "turned filters", "a narrow bias",
         "half a shortcut", "long strides", "much padding", "squares apart", "too much memory", "holes", "three turns"],
)  # fmt: skip
def test_what_the_copying_unit_or_the_kernel_does_not_take_is_refused(change: object, message: str) -> None:
    given = tensors(REFUSED)
    assert callable(change)
    operands = {"x": given.x, "w": given.w, "out": given.out, "bias": given.bias, "config": tile(), "padding": (1, 1)}
    with pytest.raises(ValueError, match=message):
        warpgroup_conv_launch(**(operands | change(given)))


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gpu_comes_to_the_same(case: Case) -> None:
    given = tensors(case, "cuda")
    launch = given.launch(case)
    found = []
    for _ in range(2):
        launch.run()
        found.append(given.out.contiguous().clone())
    assert torch.equal(*(each.view(torch.uint8) for each in found))
    assert difference(given.out, expected(given, case)) < allowed(case)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)
@pytest.mark.parametrize("images", [1, 33])
@pytest.mark.parametrize("residual", [False, True])
def test_every_cut_that_would_be_timed_is_right(images: int, residual: bool) -> None:
    """Odd sizes; for each shape all cuts come to the same."""
    for x, filters, taps, stride in (
        ((images, 13, 27, 128), 200, (3, 3), (1, 1)),
        ((images, 24, 40, 64), 64, (3, 3), (1, 1)),
        ((images, 15, 9, 64), 96, (3, 5), (2, 2)),
        ((images, 7, 7, 192), 512, (2, 2), (1, 2)),
    ):
        case = Case(x, filters, taps, tile(), stride=stride, residual=residual)
        right = expected(tensors(case), case)
        for one in warpgroup_conv_tiles(window_of(case), 132, residual, limit=12):
            given = tensors(case, "cuda")
            given.launch(replace(case, tile=one)).run()
            assert difference(given.out, right) < allowed(case), one
