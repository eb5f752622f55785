"""Kernels compile for Hopper on a machine without a GPU: no spills, wide accesses, warpgroup matrix units."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.kernels import nvrtc

pytestmark = [pytest.mark.torch, pytest.mark.slow]

# In a process of its own: this one may have defined the kernels for the interpreter.
PROGRAM = """
import re

import torch
from penstock.engine.cuda.kernels.bottleneck import BottleneckTile, bottleneck_launch
from penstock.engine.cuda.kernels.attention import AttentionTile, attention_launch
from penstock.engine.cuda.kernels.channel_attention import ChannelTile, channel_attention_launch
from penstock.engine.cuda.kernels.depthwise import DepthwiseTile, depthwise_conv2d_nhwc_launch
from penstock.engine.cuda.kernels.epilogue import Epilogue, Scratch
from penstock.engine.cuda.kernels.implicit_gemm import conv2d_nhwc_launch, gemm_launch
from penstock.engine.cuda.kernels.reductions import global_average_pool_launch, layer_norm_launch
from penstock.engine.cuda.kernels.lines import LineTile, along_lines_launch
from penstock.engine.cuda.kernels.resize import resize_linear_launch
from penstock.engine.cuda.kernels.strided_matmul import MatmulTile, strided_matmul_launch
from penstock.engine.cuda.kernels.gated_mlp import MlpTile, gated_mlp_launch
from penstock.engine.cuda.kernels.max_pool import max_pool2d_nhwc_launch
from penstock.engine.cuda.kernels.norm_factors import norm_factors_launches
from penstock.engine.cuda.kernels.moves import concat_channels_launch, planes_to_pixels_launch
from penstock.engine.cuda.kernels.apply_gate import apply_gate_launch
from penstock.engine.cuda.kernels.squeeze_excite import (
    squeeze_excite_gate_launch,
    squeeze_excite_launch,
)
from penstock.engine.cuda.kernels.resident import ResidentTile, resident_conv_launch
from penstock.engine.cuda.kernels.tiles import Tile
from penstock.engine.cuda.kernels.window_conv import window_conv_launch

def t(*shape, dtype=torch.float16):
    return torch.empty(shape, dtype=dtype, device="meta")

def rows(picture, columns, run, stride):
    images, height, width, channels = picture.shape
    pitches = (height * width * channels, width * channels, stride * channels, 1)
    return torch.as_strided(picture, (images, height, columns, run), pitches)

def factors(x, groups, splits):
    images, _, _, channels = x.shape
    return norm_factors_launches(
        x, groups=groups, epsilon=1e-5, scale=t(images, channels, dtype=torch.float32), splits=splits, pdl=True,
        offset=t(images, channels, dtype=torch.float32), parts=t(1 << 20, dtype=torch.float32))

scratch = Scratch(t(1 << 20, dtype=torch.float32), t(1 << 12, dtype=torch.int32))
x, b = t(8, 28, 28, 128), t(128, dtype=torch.float32)
q, k, v = t(8, 50, 3, 12, 64).unbind(2)
launches = {
    "conv": conv2d_nhwc_launch(
        x, t(128, 3, 3, 128), out=t(8, 28, 28, 128), config=Tile(128, 128, 64, 8, 3), bias=b, residual=x,
        padding=(1, 1), epilogue=Epilogue("relu")),
    "conv ahead": conv2d_nhwc_launch(
        x, t(128, 3, 3, 128), out=t(8, 28, 28, 128), config=Tile(64, 64, 64, 4, 3), padding=(1, 1), pdl=True),
    "stem": conv2d_nhwc_launch(
        rows(t(64, 229, 230, 4), 112, 32, 2), t(64, 7, 1, 32), out=t(64, 112, 112, 64), config=Tile(128, 64, 32, 4, 4),
        bias=b[:64], stride=(2, 1), epilogue=Epilogue("relu"), pdl=True),
    "stem of stride 1": conv2d_nhwc_launch(
        rows(t(8, 226, 228, 4), 224, 16, 1), t(64, 3, 1, 16), out=t(8, 224, 224, 64), config=Tile(128, 64, 16, 4, 3),
        stride=(1, 1)),
    "conv int8": conv2d_nhwc_launch(
        t(8, 28, 28, 128, dtype=torch.int8), t(128, 3, 3, 128, dtype=torch.int8), bias=b, scale=b, padding=(1, 1),
        out=t(8, 28, 28, 128, dtype=torch.int8), config=Tile(128, 64, 64, 4, 3), epilogue=Epilogue("relu")),
    "conv in groups": conv2d_nhwc_launch(
        t(32, 14, 14, 384), t(384, 3, 3, 64), out=t(32, 14, 14, 384), config=Tile(128, 64, 64, 4, 4), padding=(1, 1),
        bias=t(384, dtype=torch.float32), residual=t(32, 14, 14, 384), epilogue=Epilogue("silu"), groups=6, pdl=True),
    "gemm bfloat16": gemm_launch(
        t(50, 768, dtype=torch.bfloat16), t(3072, 768, dtype=torch.bfloat16), config=Tile(64, 64, 64, 4, 4),
        out=t(50, 3072, dtype=torch.bfloat16), epilogue=Epilogue("gelu")),
    "gemm split": gemm_launch(
        t(50, 3072), t(768, 3072), out=t(50, 768), config=Tile(64, 32, 64, 4, 4, 4), scratch=scratch),
    "depthwise": depthwise_conv2d_nhwc_launch(
        x, t(3, 3, 128), out=t(8, 28, 28, 128), config=DepthwiseTile(8, 128, 4, 4), bias=b, padding=(1, 1)),
    "attention": attention_launch(q, k, v, out=t(8, 50, 12, 64), config=AttentionTile(64, 64, 4), scale=0.125),
    **{f"attention of {n} windows": attention_launch(
        *t(2 * n, 64, 3, 3, 32).unbind(2), out=t(2 * n, 64, 3, 32), config=AttentionTile(64, cut, 4), scale=1.0,
        mask=t(n, 3, 64, 64), scales=t(3, dtype=torch.float32), unit=1e-12, pdl=True)
        for n, cut in ((64, 64), (16, 32))},
    "attention of wide values": attention_launch(
        t(32, 196, 4, 16), t(32, 196, 4, 16), t(32, 196, 4, 64), out=t(32, 196, 4, 64), scale=0.25,
        config=AttentionTile(64, 64, 4), mask=t(1, 4, 196, 196)),
    **{f"attention of {size} channels": channel_attention_launch(
        *t(32, 196, 3, 4, size).unbind(2), out=t(32, 196, 4, size), config=ChannelTile(cut, 1, warps, 3), scale=1.0,
        scales=t(4, dtype=torch.float32), unit=1e-12, pdl=True) for size, cut, warps in ((48, 64, 4), (128, 64, 8))},
    "layer norm": layer_norm_launch(t(400, 768), t(768), t(768), out=t(400, 768), epsilon=1e-5, residual=t(400, 768)),
    "pool": global_average_pool_launch(x, out=t(8, 128), splits=4, scratch=scratch),
    "lengths of channels": global_average_pool_launch(
        t(32, 56, 56, 384), out=t(32, 384), splits=4, how="l2", scratch=scratch, pdl=True),
    "between pixels": resize_linear_launch(
        t(8, 64, 64, 256), out=t(8, 128, 128, 256), steps=(0.5, 0.5), shifts=(-0.25, -0.25), block_bytes=4096,
        pdl=True),
    **{f"{how} of {lines[1]} numbers": along_lines_launch(
        t(*lines), how, lines, config=tile, out=t(*lines) if how == "softmax" else t(lines[0], lines[2]), pdl=True)
        for how, lines, tile in (
            ("softmax", (6272, 196, 4), LineTile(4, 256, 1)), ("softmax", (50, 18710, 1), LineTile(1, 2048, 4)),
            ("max", (32, 49, 4608), LineTile(32, 64, 4)), ("l2", (8, 3136, 1), LineTile(1, 4096, 4)))},
    "heads last": strided_matmul_launch(
        t(32, 196, 196, 4).permute(0, 3, 1, 2), t(32, 196, 3, 4, 48)[:, :, 2].permute(0, 2, 1, 3),
        out=t(32, 4, 196, 48), config=MatmulTile(128, 64, 64, 4, 3), pdl=True),
    "scores of heads": strided_matmul_launch(
        t(32, 196, 3, 4, 48)[:, :, 0].permute(0, 2, 1, 3), t(32, 196, 3, 4, 48)[:, :, 1].permute(0, 2, 3, 1),
        out=t(32, 4, 196, 196), config=MatmulTile(128, 128, 64, 8, 3), pdl=True),
    "depthwise of 31 x 31": depthwise_conv2d_nhwc_launch(
        x, t(31, 31, 128), out=t(8, 28, 28, 128), config=DepthwiseTile(16, 64, 4, 4), bias=b, padding=(15, 15)),
    "largest of 60 x 60": max_pool2d_nhwc_launch(
        t(8, 60, 60, 256), window=(60, 60), stride=(60, 60), padding=(0, 0), out=t(8, 1, 1, 256)),
    "means of what counts": max_pool2d_nhwc_launch(
        t(32, 56, 56, 48), window=(3, 3), stride=(1, 1), padding=(1, 1), out=t(32, 56, 56, 48), mean=(0, 0, 0, 0),
        pdl=True),
    **{f"norm of groups {n}": each for n, each in enumerate(factors(t(8, 256, 256, 32), 8, 64))},
    **{f"norm of images {n}": each for n, each in enumerate(factors(t(1, 64, 64, 300), 300, 256))},
    **{f"norm of one group {n}": each for n, each in enumerate(factors(t(2, 32, 32, 1280), 1, 16))},
    "gate": squeeze_excite_gate_launch(
        t(8, 7, 128, dtype=torch.float32), t(32, 128), t(32), t(32, 128), t(128), pixels=784, out=t(8, 128),
        inner=Epilogue("relu"), outer=Epilogue("sigmoid")),
    "gating": apply_gate_launch(x, t(8, 128), out=t(8, 28, 28, 128), residual=x),
    "gating upsampled": apply_gate_launch(
        t(8, 184, 184, 96), t(8, 96), out=t(8, 184, 184, 96), residual=t(8, 92, 92, 96), repeat=(2, 2), plus_x=True,
        pdl=True),
    "map to gate": squeeze_excite_launch(
        t(1, 46, 46, 192), t(48, 192), t(48, dtype=torch.float32), t(48, 192), t(192, dtype=torch.float32),
        out=t(1, 192), splits=64, inner=Epilogue("relu"), outer=Epilogue("hard_sigmoid", 0.2, 0.5), scratch=scratch,
        pdl=True),
    "two layers": gated_mlp_launch(
        t(1, 960, 96), t(192, 96), t(192, dtype=torch.float32), t(96, 192), t(96, dtype=torch.float32),
        out=t(1, 960, 96), config=MlpTile(64, 64, 4, 2), activation="gelu", gate=t(1, 96), skip=True, pdl=True),
    "two layers of few rows": gated_mlp_launch(
        t(1, 480, 192), t(384, 192), None, t(384, 384), None, out=t(1, 480, 384), config=MlpTile(16, 64, 8, 2),
        activation="gelu"),
    "bottleneck": bottleneck_launch(
        t(64, 56, 56, 64), t(64, 3, 3, 64), b[:64], t(256, 64), None, wide=t(64, 56, 56, 256),
        config=BottleneckTile(128, 64, 64, 8, 3, 2), inner=Epilogue("relu"), epilogue=Epilogue("relu"),
        residual=t(64, 56, 56, 256), third=t(64, 256), third_bias=b[:64], out=t(64, 56, 56, 64),
        outer=Epilogue("relu"), padding=(1, 1), pdl=True),
    "bottleneck with a shortcut": bottleneck_launch(
        t(64, 56, 56, 128), t(128, 3, 3, 128), b, t(512, 128), None, wide=t(64, 28, 28, 512),
        config=BottleneckTile(128, 64, 64, 8, 3, 1), inner=Epilogue("relu"), epilogue=Epilogue("relu"),
        source=t(64, 56, 56, 256), shortcut=t(512, 256), source_stride=(2, 2), third=t(128, 512),
        out=t(64, 28, 28, 128), stride=(2, 2), padding=(1, 1), pdl=True),
    "window": window_conv_launch(
        x, t(128, 3, 3, 128), out=t(8, 28, 28, 128), config=Tile(128, 128, 64, 8, 3), bias=b, residual=x,
        padding=(1, 1), epilogue=Epilogue("relu"), pdl=True),
    "window with a shortcut": window_conv_launch(
        x, t(256, 3, 3, 128), t(8, 56, 56, 64), t(256, 64), out=t(8, 28, 28, 256), config=Tile(64, 128, 64, 4, 3),
        padding=(1, 1), source_stride=(2, 2), scratch=scratch, pdl=True),
    "resident stem": resident_conv_launch(
        rows(t(64, 229, 230, 4), 112, 32, 2), t(64, 7, 1, 32), out=t(64, 112, 112, 64), bias=b[:64],
        config=ResidentTile(128, 64, 8, 2, 1), stride=(2, 1), epilogue=Epilogue("relu"), pdl=True),
    "resident": resident_conv_launch(
        t(64, 56, 56, 64), t(256, 1, 1, 64), out=t(64, 56, 56, 256), residual=t(64, 56, 56, 256),
        config=ResidentTile(64, 128, 4, 3, 2), epilogue=Epilogue("relu")),
    "side by side": concat_channels_launch(
        [t(8, 23, 23, 24), t(8, 92, 92, 24), t(8, 184, 184, 24)], out=t(8, 184, 184, 72),
        repeats=[(8, 8), (2, 2), (1, 1)]),
    "planes": planes_to_pixels_launch(t(8, 3, 736, 736, dtype=torch.float32), out=t(8, 736, 736, 4)),
    "planes with zeros around": planes_to_pixels_launch(
        t(64, 3, 224, 224, dtype=torch.float32), out=t(64, 229, 230, 4), corner=(3, 3), pdl=True),
    "bytes of pixels less their mean": planes_to_pixels_launch(
        t(64, 224, 224, 3, dtype=torch.uint8).permute(0, 3, 1, 2), out=t(64, 229, 230, 4), corner=(3, 3),
        arithmetic=[("sub", t(3)), ("mul", 0.017)], pdl=True),
}
for name, launch in launches.items():
    took = launch.compile()
    sealed = launch.seal()
    assert sealed.cubin[:4] == b"\\x7fELF"
    assert sealed.symbol.encode() in sealed.cubin
    assert len(sealed.parameters) == len(launch.bound())
    assert sealed.shared_bytes == took.shared_bytes
    copies = re.findall(r"cp\\.async\\.c[ag]\\.shared\\.global .*?, (0x\\w+)", launch._compiled(90).asm["ptx"])
    narrowest = min((int(size, 16) for size in copies), default=0)
    print(name, took.registers, took.spilled_bytes, took.shared_bytes, int(took.uses_wgmma), narrowest, sep=",")
"""
MATRIX = {
    "conv",
    "conv ahead",
    "conv in groups",
    "stem",
    "stem of stride 1",
    "conv int8",
    "gemm bfloat16",
    "gemm split",
    "scores of heads",
    "heads last",
    "attention",
    "attention of 64 windows",
    "attention of 16 windows",
    "attention of wide values",
    "attention of 48 channels",
    "attention of 128 channels",
    "two layers",
    "bottleneck",
    "bottleneck with a shortcut",
    "window",
    "window with a shortcut",
    "resident stem",
    "resident",
}


def test_every_kernel_compiles_for_hopper_without_spilling(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(",") for line in done.stdout.splitlines()]
    assert len(rows) == 50
    narrowest = {name: int(each) for name, *_, each in rows}  # of the copies to shared memory, in bytes
    assert (narrowest["stem"], narrowest["stem of stride 1"]) == (16, 8)
    for name, registers, spilled, shared, wgmma, _ in rows:
        assert int(spilled) == 0, name
        assert int(registers) <= 255, name
        assert int(shared) <= 227 * 1024, name
        assert bool(int(wgmma)) == (name in MATRIX), name


# As the one above; kernels in C++ by NVRTC, which compiles one after the other within a process.
IN_CPP = """
import os
import signal
from pathlib import Path

import torch
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch, _known
from penstock.engine.cuda.precompile import Compilers
from penstock.engine.cuda.kernels.stem_pool import StemCut, stem_pool_launch

def t(*shape, dtype=torch.float16):
    return torch.empty(shape, dtype=dtype, device="meta")

def stem(*cut):
    picture = torch.as_strided(t(64, 229, 230, 4), (64, 229, 112, 32), (229 * 230 * 4, 230 * 4, 8, 1))
    return stem_pool_launch(
        picture, t(64, 7, 1, 32), t(64, dtype=torch.float32), out=t(64, 56, 56, 64), config=StemCut(*cut))

wanted = [stem(14, 2), stem(7, 3)]
with Compilers(2) as compilers:
    futures = [compilers.submit(each) for each in wanted]
    assert [future.result() for future in futures] == ["", ""], [future.result() for future in futures]
    assert len(_known) == 2
    elsewhere = [each.compile() for each in wanted]
    assert compilers.submit(wanted[0]).done(), "it is there already"
    broken = CppLaunch(wanted[0].source, "stem", (1, 1, 1), 32, (), {"ROWS": -1})
    said = compilers.submit(broken).result()
    assert said.startswith("CompilerError"), said
_known.clear()
assert [each.compile() for each in wanted] == elsewhere, "the same machine code as here"

with Compilers(1) as compilers:  # one that ends is lost with what it was asked, and another one is there
    _known.clear()
    assert compilers.submit(wanted[0]).result() == ""
    nursery = compilers._nurseries[0].pid
    (child,) = Path(f"/proc/{nursery}/task/{nursery}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    _known.clear()
    assert "ended" in compilers.submit(wanted[0]).result()
    assert compilers.submit(wanted[0]).result() == ""
"""


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC comes with torch for CUDA")
def test_kernels_in_cpp_are_compiled_by_other_processes_and_come_back(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", IN_CPP], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
