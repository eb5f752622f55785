"""Residual blocks in INT8 and stems with their pools as one kernel, beside the kernels that do it apart, on a GPU.

    PYTHONPATH=python python benches/probes_gpu/blocks.py [--seconds 55] [--cases stem l1 ...]

Answers are compared with exact sums (integers in FP64 by parts, floats in FP32), then times inside a CUDA graph.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import astuple
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "python")]

import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

from benches.gpu import ours  # noqa: E402
from penstock.engine import cores  # noqa: E402
from penstock.engine.cuda.kernels.bottleneck import BottleneckTile, Steps, bottleneck_launch  # noqa: E402
from penstock.engine.cuda.kernels.epilogue import Epilogue, fold  # noqa: E402
from penstock.engine.cuda.kernels.implicit_gemm import conv2d_nhwc_launch  # noqa: E402
from penstock.engine.cuda.kernels.lane_bottleneck import (  # noqa: E402
    block_cuts,
    lane_bottleneck_launch,
)
from penstock.engine.cuda.kernels.max_pool import max_pool2d_nhwc_launch  # noqa: E402
from penstock.engine.cuda.kernels.resident import ResidentTile, resident_conv_launch  # noqa: E402
from penstock.engine.cuda.kernels.stem_pool import StemCut, stem_pool_launch  # noqa: E402
from penstock.engine.cuda.kernels.tiles import Tile  # noqa: E402
from penstock.engine.cuda.kernels.tuning import microseconds  # noqa: E402

INT8, HALF = torch.int8, torch.float16
STEPS = (0.02, 0.03, 0.025, 0.013)  # what is between, the sum, the last layer's, the residual

# Images, size, channels, middle, wide, out, what a shortcut reads; cuts of one kernel, then those of the three apart.
BLOCKS: dict[str, tuple[tuple[int, ...], list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "l1": (
        (64, 56, 64, 64, 256, 64, 0),
        [(128, 64, 64, 4, 4, 3)],
        [(256, 64, 64, 4, 4), (64, 128, 4, 3, 3), (64, 64, 4, 3, 3)],
    ),
    "l1 shortcut": (
        (64, 56, 64, 64, 256, 64, 64),
        [(128, 64, 64, 4, 4, 2)], [],
    ),
    "l1 last": ((64, 56, 64, 64, 256, 128, 0), [(128, 64, 64, 8, 4, 3), (64, 64, 64, 4, 4, 3)], []),
    "l1 alone": ((64, 56, 64, 64, 256, 0, 0), [], []),
    "l2": (
        (64, 28, 128, 128, 512, 128, 0),
        [(128, 64, 128, 8, 3, 3), (64, 64, 128, 4, 4, 3), (128, 128, 128, 8, 3, 2), (64, 64, 128, 4, 3, 2),
         (64, 128, 128, 4, 3, 2), (128, 64, 128, 8, 4, 2)],
        [(64, 128, 128, 4, 3), (64, 128, 4, 3, 3), (64, 128, 4, 4, 1)],
    ),
    "l2 last": (
        (64, 28, 128, 128, 512, 0, 0),
        [(128, 64, 128, 8, 3, 3), (64, 64, 128, 4, 4, 3), (128, 128, 128, 8, 3, 2)], [],
    ),
    "l2 shortcut": (
        (64, 28, 128, 128, 512, 128, 256),
        [(64, 64, 128, 4, 3, 2), (128, 64, 128, 8, 3, 2), (64, 64, 128, 4, 2, 1), (128, 64, 128, 8, 3, 1)], [],
    ),
    "l3": (
        (64, 14, 256, 256, 1024, 0, 0),
        [(128, 64, 128, 8, 3, 3), (64, 64, 128, 4, 2, 3), (128, 128, 128, 8, 3, 3), (64, 128, 128, 4, 3, 2)],
        [(64, 128, 128, 4, 3), (64, 128, 4, 2, 2)],
    ),
}  # fmt: skip
CUTS = {
    HALF: [StemCut(14, 2), StemCut(10, 3), StemCut(7, 3), StemCut(14, 3)],
    INT8: [StemCut(14, 2), StemCut(10, 3), StemCut(7, 4), StemCut(14, 4)],
}


class Case:
    """Launches by name; one name holds kernels in a row."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.launches: dict[str, list[Any]] = {}
        self.checks: dict[str, Callable[[], str]] = {}


def integers(*shape: int) -> torch.Tensor:
    return torch.randint(-127, 128, shape, dtype=INT8, device="cuda")


def layer(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    weight = integers(*shape)
    scale = (0.5 + torch.rand(shape[0], device="cuda")) / (6000.0 * weight[0].numel() ** 0.5)
    return weight, scale, torch.randn(shape[0], device="cuda") / 4


def sums(x: torch.Tensor, made: Sequence[torch.Tensor], pad: int = 0) -> torch.Tensor:
    weight, scale, bias = made
    weight = weight if weight.dim() == 4 else weight[:, None, None]
    y = functional.conv2d(x.float().permute(0, 3, 1, 2), weight.float().permute(0, 3, 1, 2), padding=pad)
    return y.permute(0, 2, 3, 1) * scale + bias


def stepped(y: torch.Tensor, step: float) -> torch.Tensor:
    return (y.clamp(min=0) / step).round().clamp(-128, 127).to(INT8)


def apart(found: torch.Tensor, right: torch.Tensor) -> str:
    off = (found.int() - right.int()).abs()
    return f"{int(off.max())}/{float((off > 0).float().mean()):.0e}"


def block(name: str) -> Case:
    (n, size, channels, middle, wide, out, source), cuts, rest = BLOCKS[name]
    case, few = Case(name), min(n, 4)
    x = integers(n, size, size, channels)
    first, second = layer(middle, 3, 3, channels), layer(wide, middle)
    third, shortcut = (layer(out, wide) if out else None), (layer(wide, source) if source else None)
    far = integers(n, size, size, source) if source else None
    residual = None if source else integers(n, size, size, wide)
    found = torch.empty((n, size, size, wide), dtype=INT8, device="cuda")
    last = torch.empty((n, size, size, out), dtype=INT8, device="cuda") if out else None
    folded = [
        (None, None) if each is None else fold(each[1], each[2], step, each[0][0].numel() * 128 * 128)
        for each, step in zip((first, second, third, shortcut), (*STEPS[:3], STEPS[1]), strict=True)
    ]
    relu, values = Epilogue("relu"), {}

    def expected() -> tuple[torch.Tensor, torch.Tensor | None]:
        if not values:
            y = sums(stepped(sums(x[:few], first, 1), STEPS[0]), second)
            y = y + (residual[:few].float() * STEPS[3] if residual is not None else sums(far[:few], shortcut))
            values["wide"] = stepped(y, STEPS[1])
            values["out"] = stepped(sums(values["wide"], third), STEPS[2]) if third else None
        return values["wide"], values["out"]

    def check() -> str:
        right, behind = expected()
        said = apart(found[:few], right)
        return said if last is None else f"{said} {apart(last[:few], behind)}"

    for cut in cuts:
        key = "x".join(map(str, cut))
        case.launches[key] = [
            bottleneck_launch(
                x, first[0], folded[0][1], second[0], folded[1][1], wide=found, config=BottleneckTile(*cut), inner=relu,
                epilogue=relu, outer=relu, residual=residual, source=far, padding=(1, 1),
                shortcut=shortcut[0] if shortcut else None, shortcut_bias=folded[3][1],
                third=third[0] if third else None, third_bias=folded[2][1], out=last,
                steps=Steps(folded[0][0], folded[1][0], folded[2][0], folded[3][0], STEPS[3] / STEPS[1]),
            )
        ]  # fmt: skip
        case.checks[key] = check
    if channels == middle == 64 and out in (0, 64):
        plain = fold(*first[1:], STEPS[0], 0)
        biases = second[2] if shortcut is None else second[2] + shortcut[2]
        behind = fold(second[1], biases, STEPS[1], 0)
        end = fold(*third[1:], STEPS[2], 0) if third else (None, None)
        aside = fold(shortcut[1], None, STEPS[1], 0)[0] if shortcut else None
        worth = torch.tensor([STEPS[3] / STEPS[1]], device="cuda")
        for chosen in block_cuts(size, size):
            key = "c++ " + "x".join(map(str, astuple(chosen)))
            try:
                made = lane_bottleneck_launch(
                    x, first[0], plain[1], second[0], behind[1], wide=found, config=chosen, inner=relu, epilogue=relu,
                    outer=relu, steps=Steps(plain[0], behind[0], end[0], aside), residual=residual,
                    worth=None if residual is None else worth, source=far, shortcut=shortcut[0] if shortcut else None,
                    third=third[0] if third else None, third_bias=end[1], out=last,
                )  # fmt: skip
            except ValueError as error:
                print(name, key, error)
                continue
            case.launches[key], case.checks[key] = [made], check
    if rest:
        between = torch.empty((n, size, size, middle), dtype=INT8, device="cuda")

        def ending(step: float) -> Epilogue:
            return Epilogue("relu", residual_scale=STEPS[3], out_scale=step, folded=True)

        row = [
            conv2d_nhwc_launch(x, first[0], out=between, config=Tile(*rest[0]), bias=fold(*first[1:], STEPS[0], 0)[1],
                               scale=fold(*first[1:], STEPS[0], 0)[0], epilogue=ending(STEPS[0]), padding=(1, 1)),
            resident_conv_launch(between, second[0][:, None, None], out=found, config=ResidentTile(*rest[1]),
                                 bias=folded[1][1], scale=folded[1][0], residual=residual, epilogue=ending(STEPS[1])),
        ]  # fmt: skip
        if third is not None:
            row.append(
                resident_conv_launch(found, third[0][:, None, None], out=last, config=ResidentTile(*rest[2]),
                                     bias=folded[2][1], scale=folded[2][0], epilogue=ending(STEPS[2]))
            )  # fmt: skip
        case.launches["apart"] = row
        case.checks["apart"] = check
    return case


def halves(name: str) -> Case:
    """The same of FP16: by Triton, and lane by lane."""
    (n, size, channels, middle, wide, out, source), _, _ = BLOCKS[name.removesuffix(" half")]
    case, relu = Case(name), Epilogue("relu")

    def drawn(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, device="cuda") * scale).half()

    x, first = drawn(n, size, size, channels), drawn(middle, 3, 3, channels, scale=0.04)
    second = drawn(wide, middle, scale=0.1)
    third = drawn(out, wide, scale=0.06)
    biases = [torch.randn(each, device="cuda") for each in (middle, wide, max(out, 1))]
    far, shortcut = (drawn(n, size, size, source), drawn(wide, source, scale=0.1)) if source else (None, None)
    residual = None if source else drawn(n, size, size, wide)
    found, last = (torch.empty((n, size, size, each), dtype=HALF, device="cuda") for each in (wide, out))
    right: list[torch.Tensor] = []

    def layer_of(y: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, pad: int = 0) -> torch.Tensor:
        w = w if w.dim() == 4 else w[:, None, None]
        y = functional.conv2d(y.float().permute(0, 3, 1, 2), w.float().permute(0, 3, 1, 2), b, padding=pad)
        return y.permute(0, 2, 3, 1)

    def check() -> str:
        if not right:
            y = layer_of(layer_of(x[:4], first, biases[0], 1).relu().half(), second, biases[1])
            y = (y + (residual[:4] if residual is not None else layer_of(far[:4], shortcut, None))).relu()
            right.extend((y, layer_of(y.half(), third, biases[2]).relu() if out else y))
        pairs = ((found, right[0]), (last, right[1])) if out else ((found, right[0]),)
        return " ".join(f"{float((a[:4].double() - b).norm() / b.norm()):.0e}" for a, b in pairs)

    given = {"residual": residual, "source": far, "shortcut": shortcut, "inner": relu, "epilogue": relu, "outer": relu}
    behind = {"third": third, "third_bias": biases[2], "out": last} if out else {}
    for cut in ((128, 64, 64, 4, 4, 3), (128, 64, 64, 4, 3, 3)):
        key = "x".join(map(str, cut))
        case.launches[key], case.checks[key] = [
            bottleneck_launch(x, first, biases[0], second, biases[1], wide=found, config=BottleneckTile(*cut),
                              padding=(1, 1), **given, **behind)
        ], check  # fmt: skip
    for chosen in block_cuts(size, size, 2):
        key = "c++ " + "x".join(map(str, astuple(chosen)))
        try:
            made = lane_bottleneck_launch(
                x, first, biases[0], second, biases[1], wide=found, config=chosen, **given, **behind
            )
        except ValueError as error:
            print(name, key, error)
            continue
        case.launches[key], case.checks[key] = [made], check
    return case


def stem(dtype: torch.dtype) -> Case:
    case, n = Case(f"stem {dtype}"), 64
    shape = (n, 229, 920)
    picture = integers(*shape) if dtype == INT8 else torch.randn(shape, device="cuda").to(dtype)
    x = torch.as_strided(picture, (n, 229, 112, 32), (229 * 920, 920, 8, 1))
    weight, scale, bias = layer(64, 7, 1, 32)
    if dtype != INT8:
        weight = (torch.randn(64, 7, 1, 32, device="cuda") * 0.1).to(dtype)
    map_, out = (torch.empty((n, size, size, 64), dtype=dtype, device="cuda") for size in (112, 56))
    if dtype == INT8:
        scale, bias = fold(scale, bias, STEPS[0], 224 * 128 * 128)
        plain = fold(*layer_scales(weight, scale, bias), 1.0, 0)
    right: list[torch.Tensor] = []

    def check() -> str:
        if not right:
            y = functional.conv2d(x[:4].float().permute(0, 3, 1, 2), weight.float().permute(0, 3, 1, 2), stride=(2, 1))
            factor, offset = plain if dtype == INT8 else (torch.ones_like(bias), bias)
            y = functional.max_pool2d(y * factor[:, None, None] + offset[:, None, None], 3, 2, 1).clamp(min=0)
            right.append(y.permute(0, 2, 3, 1))
        if dtype == INT8:
            return apart(out[:4], stepped(right[0], 1.0))
        return f"{float((out[:4].double() - right[0]).norm() / right[0].norm()):.0e}"

    for cut in CUTS[dtype]:
        key = "x".join(map(str, astuple(cut)))
        factor, offset = plain if dtype == INT8 else (None, bias)
        case.launches[key] = [
            stem_pool_launch(
                x, weight, offset, out=out, config=cut, scale=factor, epilogue=Epilogue("relu", folded=True)
            )
        ]
        case.checks[key] = check
    tile = ResidentTile(64, 64, 4, 3, 3) if dtype == INT8 else ResidentTile(64, 64, 4, 2, 2)
    case.launches["apart"] = [
        resident_conv_launch(
            x, weight, out=map_, config=tile, bias=bias, scale=scale if dtype == INT8 else None,
            epilogue=Epilogue("relu", folded=dtype == INT8), stride=(2, 1),
        ),
        max_pool2d_nhwc_launch(map_, window=(3, 3), stride=(2, 2), padding=(1, 1), out=out),
    ]  # fmt: skip
    case.checks["apart"] = check
    return case


def layer_scales(weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As they were before `fold` took away what makes integers floats."""
    shift = 1.5 * 2**23 if weight[0].numel() * 128 * 128 <= 2**22 else 0.0
    return scale, (bias.double() + shift * scale.double()).float()


def made(name: str) -> Case:
    if name.startswith("stem"):
        return stem({"int8": INT8, "half": HALF}[name.split()[1]])
    return halves(name) if name.endswith(" half") else block(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=55.0)
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["stem int8", "l1", "stem half", "l2", "l1 shortcut", "l1 last", "l2 last", "l2 shortcut", "l3"],
    )
    options = parser.parse_args()
    started = time.monotonic()
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with ours.compilers("cuda", cores.available()) as compilers:
        cases = [made(each) for each in options.cases]
        futures = {
            (case.name, key): [compilers.submit(each) for each in row]
            for case in cases for key, row in case.launches.items()
        }  # fmt: skip
        print(f"{len(futures)} submitted at {time.monotonic() - started:.1f} s", flush=True)
        for case in cases:
            said = []
            for key, row in case.launches.items():
                left = options.seconds - (time.monotonic() - started)
                if left <= 0 or wait(futures[case.name, key], left).not_done:
                    said.append((float("inf"), f"{key} not compiled"))
                    continue
                try:
                    for each in row:
                        each.run()
                    torch.cuda.synchronize()
                    right = case.checks[key]()
                    parts = [microseconds(each.run, calls=10, replays=3) for each in row]
                    whole = microseconds(lambda row=row: [each.run() for each in row], calls=10, replays=3)
                    apart_ = "" if len(row) == 1 else " = " + " + ".join(f"{each:.1f}" for each in parts)
                    said.append((whole, f"{key} {whole:.1f}{apart_} ({right})"))
                except Exception as error:  # the others are still timed
                    said.append((float("inf"), f"{key} {type(error).__name__} {str(error)[:160]}"))
            print(
                f"{case.name}: " + "  ".join(text for _, text in sorted(said)),
                f"[{time.monotonic() - started:.0f} s]",
                flush=True,
            )


if __name__ == "__main__":
    main()
