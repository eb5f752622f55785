"""Depthwise convolution by walking threads: the source compiled for the CPU against float64, and for a GPU not here."""

import ctypes
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from penstock.engine.cuda.kernels import cpp_launching, nvrtc  # noqa: E402
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch, text  # noqa: E402
from penstock.engine.cuda.kernels.depthwise_walk import (  # noqa: E402
    Layer,
    WalkTile,
    depthwise_walk_launch,
    steady,
    walk_tiles,
)
from penstock.engine.cuda.kernels.epilogue import Epilogue  # noqa: E402

pytestmark = pytest.mark.torch

HERE = Path(__file__).parent
SOURCES = Path(cpp_launching.__file__).parent / "cpp"
HALF, BF16, INT8 = torch.float16, torch.bfloat16, torch.int8
X_SCALE = 0.02
BOUNDED = Epilogue("relu6", out_scale=0.03)


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int, int]
    taps: tuple[int, int]
    tile: WalkTile
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    """Above, to the left, below, to the right."""
    dtype: torch.dtype = HALF
    out: torch.dtype = HALF
    epilogue: Epilogue = BOUNDED
    bias: bool = True
    sums: bool = False
    apart: int = 0
    """Channels of a wider map that it is a slice of."""

    def __str__(self) -> str:
        return f"{self.shape} {self.taps} {self.stride} {self.tile} {self.dtype} {self.out} {self.epilogue.activation}"

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        images, high, wide, channels = self.shape
        top, left, bottom, right = self.padding
        p = (high + top + bottom - self.taps[0]) // self.stride[0] + 1
        return images, p, (wide + left + right - self.taps[1]) // self.stride[1] + 1, channels


AROUND = (2, 2, 2, 2)
BELOW = (0, 0, 1, 1)
CASES = [
    Case((2, 5, 9, 6), (3, 3), WalkTile(4, 2, 1, 32), sums=True),
    Case((1, 6, 7, 8), (5, 5), WalkTile(7, 6, 2, 32), padding=AROUND, epilogue=Epilogue("hard_swish")),
    Case((1, 9, 8, 4), (3, 3), WalkTile(2, 2, 2, 32), (2, 2), BELOW, epilogue=Epilogue(), apart=4),
    Case((1, 9, 11, 4), (5, 5), WalkTile(4, 3, 1, 32), (2, 2), AROUND, dtype=BF16, out=BF16, bias=False),
    Case((1, 7, 5, 4), (3, 3), WalkTile(1, 7, 1, 32), (2, 1), epilogue=Epilogue("clip", -0.5, 0.75), sums=True),
    Case((1, 3, 9, 4), (1, 7), WalkTile(4, 1, 1, 32), padding=(0, 3, 0, 3), epilogue=Epilogue("silu")),
    Case((2, 5, 9, 8), (3, 3), WalkTile(4, 2, 1, 32), dtype=INT8, out=INT8),
    Case((1, 6, 7, 12), (5, 5), WalkTile(7, 6, 2, 32), padding=AROUND, dtype=INT8, out=INT8, apart=4),
    Case((1, 9, 8, 8), (3, 3), WalkTile(2, 2, 2, 32), (2, 2), BELOW, dtype=INT8, epilogue=Epilogue("hard_swish")),
    Case((1, 5, 4, 4), (3, 3), WalkTile(2, 3, 1, 32), dtype=INT8, out=INT8, epilogue=Epilogue("silu", out_scale=0.02)),
    Case((1, 5, 4, 4), (3, 3), WalkTile(2, 3, 1, 32), dtype=INT8, out=INT8, epilogue=Epilogue(out_scale=0.03)),
    Case((1, 5, 4, 4), (3, 3), WalkTile(2, 3, 1, 32), dtype=HALF, out=INT8),
]


@dataclass(frozen=True)
class Tensors:
    x: torch.Tensor
    w: torch.Tensor
    bias: torch.Tensor | None
    out: torch.Tensor
    sums: torch.Tensor | None

    def launch(self, case: Case) -> CppLaunch:
        weights, factors = steady(self.w) if case.dtype == INT8 else (self.w, None)
        return depthwise_walk_launch(
            self.x, weights, out=self.out, config=case.tile, factors=factors, bias=self.bias, sums=self.sums,
            epilogue=case.epilogue, stride=case.stride, padding=case.padding[:2], scale=X_SCALE,
        )  # fmt: skip


def tensors(case: Case, device: str = "cpu") -> Tensors:
    generator = torch.Generator().manual_seed(5)
    channels = case.shape[3]

    def wide(shape: tuple[int, ...], dtype: torch.dtype, value: torch.Tensor | None = None) -> torch.Tensor:
        filled = torch.full((*shape[:3], channels + case.apart), 77.0) if value is None else value
        return filled.to(dtype).to(device)[..., :channels]

    numbers = torch.randn(*case.shape[:3], channels + case.apart, generator=generator)
    x = (numbers * 50).round().clamp(-128, 127) if case.dtype == INT8 else numbers
    weight = torch.randn(*case.taps, channels, generator=generator) * torch.rand(channels, generator=generator) * 2
    _, high, across, _ = case.out_shape
    return Tensors(
        wide(case.shape, case.dtype, x),
        weight.to(HALF if case.dtype == INT8 else case.dtype).to(device),
        torch.randn(channels, generator=generator).to(device) if case.bias else None,
        wide(case.out_shape, case.out),
        torch.full((case.shape[0], case.tile.walks(high, across), channels), torch.nan, device=device)
        if case.sums
        else None,
    )


def expected(given: Tensors, case: Case) -> torch.Tensor:
    """Before it is rounded; of INT8 in its steps."""
    functions, (top, left, bottom, right) = torch.nn.functional, case.padding
    x = given.x.double().cpu() * (X_SCALE if case.dtype == INT8 else 1.0)
    x = functions.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom))
    w = given.w.double().cpu().permute(2, 0, 1)[:, None]
    bias = None if given.bias is None else given.bias.double().cpu()
    y = functions.conv2d(x, w, bias, case.stride, groups=case.shape[3]).permute(0, 2, 3, 1)
    epilogue = case.epilogue
    y = {
        "none": lambda: y,
        "relu6": lambda: y.clamp(0, 6),
        "clip": lambda: y.clamp(epilogue.alpha, epilogue.beta),
        "hard_swish": lambda: functions.hardswish(y),
        "silu": lambda: functions.silu(y),
    }[epilogue.activation]()
    return (y / epilogue.out_scale).clamp(-128, 127) if case.out == INT8 else y


def expect_right(given: Tensors, case: Case) -> None:
    right, found = expected(given, case), given.out.double().cpu()
    if case.out == INT8:
        # Half a step is the rounding's; what FP16 sums add to it is little.
        assert (found - right).abs().max() < (0.51 if case.dtype == HALF else 0.7)
    else:
        limit = {HALF: 5e-4, BF16: 4e-3}[case.out] * (4 if case.dtype == INT8 else 1)
        assert (found - right).norm() / right.norm() < limit
    if given.sums is not None:
        assert (given.sums.double().cpu().sum(1) - right.sum((1, 2))).abs().max() < 1e-4
    if case.apart:
        channels = case.shape[3]
        whole = torch.as_strided(given.out, (*case.out_shape[:3], channels + case.apart), given.out.stride())
        assert bool((whole[..., channels:] == 77).all())


def compiled_for_the_cpu(launch: CppLaunch, folder: Path) -> ctypes.CDLL:
    source = text(launch.source)
    assert '#include "primitives.cuh"' in source
    source = source.replace('#include "primitives.cuh"', '#include "emulated.hpp"')
    source = source.replace("extern __shared__ Quad memory[];", "Quad* memory = block_memory();")
    pointers = ", ".join(f"pointer(arguments[{number}])" for number in range(len(launch.bound())))
    source += f"""
struct pointer {{
  void* to;
  explicit pointer(void* to) : to(to) {{}}
  template <class T> operator T*() const {{ return static_cast<T*>(to); }}
}};
extern "C" void run(void** arguments) {{
  launch({launch.grid[0]}, {launch.cluster}, {launch.threads}, [=] {{ {launch.symbol}({pointers}); }});
}}
"""
    file, library = folder / "kernel.cpp", folder / "kernel.so"
    file.write_text(source)
    macros = [f"-D{name}={value}" for name, value in launch.constants.items()]
    command = [
        "g++",
        "-std=c++20",
        "-O1",
        "-w",
        "-shared",
        "-fPIC",
        "-pthread",
        f"-I{HERE}",
        f"-I{SOURCES}",
        *macros,
        str(file),
    ]
    subprocess.run([*command, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_thread_of_the_source_does_its_part(case: Case, tmp_path: Path) -> None:
    given = tensors(case)
    launch = given.launch(case)
    library = compiled_for_the_cpu(launch, tmp_path)
    library.run((ctypes.c_void_p * len(launch.bound()))(*map(int, launch.bound())))
    expect_right(given, case)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="needs a GPU since Hopper"
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gpu_comes_to_the_same(case: Case) -> None:
    given = tensors(case, "cuda")
    launch = given.launch(case)
    found = []
    for pdl in (False, True):
        replace(launch, pdl=pdl).run()
        found.append(given.out.clone())
    assert torch.equal(*found)
    expect_right(given, case)


LAYERS = [
    (Layer((64, 56, 56, 144), (3, 3), (1, 1), itemsize), 56)
    for itemsize in (2, 1)
] + [
    (Layer((64, 14, 14, 672), (5, 5), (1, 1), itemsize), 14) for itemsize in (2, 1)
] + [(Layer((64, 28, 28, 144), (5, 5), (2, 2), itemsize), 56) for itemsize in (2, 1)]  # fmt: skip


@pytest.mark.skipif(not nvrtc.available(), reason="there is no NVRTC")
@pytest.mark.parametrize(("layer", "size"), LAYERS, ids=str)
def test_it_compiles_without_a_gpu_and_keeps_everything_in_registers(layer: Layer, size: int) -> None:
    dtype, channels = HALF if layer.itemsize == 2 else INT8, layer.out_shape[3]
    row = torch.empty(channels, device="meta")
    for tile in walk_tiles(layer):
        launch = depthwise_walk_launch(
            torch.empty((64, size, size, channels), dtype=dtype, device="meta"),
            torch.empty((*layer.taps, channels), dtype=HALF, device="meta"),
            out=torch.empty(layer.out_shape, dtype=dtype, device="meta"),
            config=tile, factors=row if dtype == INT8 else None, bias=row, epilogue=Epilogue("relu6", out_scale=0.05),
            stride=layer.stride, padding=(layer.taps[0] // 2, layer.taps[1] // 2),
        )  # fmt: skip
        found = launch.compile()
        assert found.cubin.startswith(b"\x7fELF")
        assert found.spilled_bytes == 0


def test_there_are_a_few_cuts_for_every_layer() -> None:
    for shape in ((1, 1, 1, 8), (1, 7, 7, 1152), (64, 112, 112, 32), (32, 12, 80, 96)):
        for taps in ((3, 3), (5, 5), (1, 7)):
            tiles = walk_tiles(Layer(shape, taps, (1, 1), 2))
            assert 1 <= len(tiles) <= 6
            assert len(set(tiles)) == len(tiles)
            assert all(tile.columns <= shape[2] and tile.rows <= shape[1] for tile in tiles)


def test_steady_weights_lose_no_digit_and_add_up_to_at_most_one() -> None:
    weight = (torch.randn(3, 3, 40) * torch.logspace(-3, 3, 40)).half()
    weights, factors = steady(weight)
    assert torch.equal(weights.float() * factors, weight.float())
    sizes = weights.double().abs().sum((0, 1))
    assert sizes.max() <= 1
    assert sizes.min() > 0.49


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: {"x": given.x.float()}, "w: expected sixteen bits"),
        (lambda given: {"out": given.out.float()}, "out: expected torch.float16"),
        (lambda given: {"bias": given.bias.half()}, "FP32"),
        (lambda given: {name: getattr(given, name)[..., :5] for name in ("x", "out")}, "shape"),
        (lambda given: {"epilogue": Epilogue("gelu")}, "activation: expected one of"),
    ],
    ids=["wide", "a wide result", "a narrow bias", "channels", "gelu"],
)
def test_what_it_does_not_take_is_refused(change: object, message: str) -> None:
    case = CASES[0]
    given = tensors(case)
    assert callable(change)
    operands = {"x": given.x, "w": given.w, "out": given.out, "bias": given.bias, **change(given)}
    with pytest.raises(ValueError, match=message):
        depthwise_walk_launch(config=case.tile, padding=(1, 1), **operands)
