"""Convolutions by warpgroups: the source compiled for the CPU against float64, and for a GPU that is not here."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.kernels.cpp_launching import CppLaunch  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402
from penstock.engine.cuda.kernels.warpgroup_conv import (  # noqa: E402
    WindowTile,
    warpgroup_conv_launch,
)

from .emulating import run_on_the_cpu  # noqa: E402

pytestmark = pytest.mark.torch

BF16 = torch.bfloat16
RELU = Epilogue("relu")


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
        how = (one.rows, one.columns, one.pingpong, one.groups, one.stages, one.cluster, one.together, one.resident)
        where = f"{self.x} {self.taps} {self.stride} {self.pads} {self.dilation}"
        return f"{where} {self.filters} by {how} {self.epilogue.activation} {self.residual} {self.others}"


def tile(
    rows: int = 64, columns: int = 64, pingpong: int = 0, groups: int = 2, stages: int = 3, cluster: int = 1,
    together: int = 0, resident: int = 0, blocks: int = 2,
) -> WindowTile:  # fmt: skip
    return WindowTile(rows, columns, pingpong, groups, stages, cluster, together, resident, blocks)


CASES = [
    Case((1, 9, 11, 64), 64, (3, 3), tile(pingpong=1)),
    Case((3, 4, 26, 64), 112, (3, 3), tile(columns=104), residual=True),
    Case((5, 7, 7, 128), 136, (3, 3), tile(columns=112, cluster=2, blocks=4)),
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
    Case((2, 11, 11, 64), 72, (3, 3), tile(columns=128, resident=1, pingpong=1, stages=4), pads=(0, 0, 0, 0)),
]


@dataclass(frozen=True)
class Tensors:
    x: torch.Tensor
    w: torch.Tensor
    bias: torch.Tensor
    residual: torch.Tensor | None
    source: torch.Tensor | None
    shortcut: torch.Tensor | None
    out: torch.Tensor

    def launch(self, case: Case) -> CppLaunch:
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
            bias=self.bias,
            residual=self.residual,
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
        wider = (*shape[:-1], shape[-1] + case.apart)
        return torch.randn(wider, generator=generator).to(case.dtype).to(device)[..., : shape[-1]]

    depth = channels * case.taps[0] * case.taps[1]
    w = torch.randn(case.filters, *case.taps, channels, generator=generator) * depth**-0.5
    out = (images, out_high, out_wide, case.filters)
    nothing = torch.full((*out[:3], case.filters + case.apart), torch.nan).to(case.dtype).to(device)
    return Tensors(
        normal(*case.x),
        w.to(case.dtype).to(device),
        torch.randn(case.filters, generator=generator).to(device),
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
    w, bias = given.w.double().cpu(), given.bias.double().cpu()
    y = torch.nn.functional.conv2d(
        x.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2), bias, case.stride, (0, 0), case.dilation
    ).permute(0, 2, 3, 1)
    if given.source is not None and given.shortcut is not None:
        high, wide = case.apart_by
        y = y + given.source.double().cpu()[:, ::high, ::wide] @ given.shortcut.double().cpu().T
    if given.residual is not None:
        y = y + given.residual.double().cpu()
    return torch.nn.functional.hardswish(y) if case.epilogue.activation == "hard_swish" else y.relu()


def difference(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.double().cpu() - right).norm() / right.norm())


def allowed(case: Case) -> float:
    return 4e-3 if case.dtype == BF16 else 5e-4


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
