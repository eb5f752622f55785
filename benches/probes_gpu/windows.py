"""Windows of dense convolutions: which order of taps and channels, and which cache the pixels take, on a GPU.

    PYTHONPATH=python python benches/probes_gpu/windows.py build FOLDER     (needs Triton, no GPU)
    PYTHONPATH=python python benches/probes_gpu/windows.py run FOLDER       (needs the GPU)

`build` compiles every variant to machine code with a list of what it is; `run` times each inside a CUDA graph beside
cuDNN's fused convolution, and compares with it.
"""

import json
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from penstock.engine.cuda.kernels.driver import LoadedKernel, LoadedModule, SealedKernel
from penstock.engine.cuda.kernels.epilogue import Epilogue
from penstock.engine.cuda.kernels.implicit_gemm import conv2d_nhwc_launch, conv2d_product
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.tiles import Tile, tiles
from penstock.engine.cuda.kernels.window_conv import window_conv_launch

# Images, height, width, channels, filters, whether something is added.
CASES = {
    "crnn 512": (32, 4, 26, 512, 512, False),
    "resnet 64": (64, 56, 56, 64, 64, True),
    "resnet 128": (64, 28, 28, 128, 128, False),
    "resnet 256": (64, 14, 14, 256, 256, False),
    "resnet 512": (64, 7, 7, 512, 512, False),
    "crnn 32": (32, 32, 100, 32, 64, False),
}
MORE = {
    "crnn 512": [(128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (64, 256, 64, 8, 3), (64, 128, 64, 4, 3)],
    "resnet 64": [(128, 64, 64, 4, 2), (128, 64, 64, 8, 3), (256, 64, 64, 8, 2), (256, 64, 64, 8, 3)],
    "resnet 128": [(128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (256, 128, 64, 8, 3)],
    "resnet 256": [(64, 128, 64, 4, 2), (128, 256, 64, 8, 3), (128, 128, 64, 8, 3)],
    "resnet 512": [(128, 128, 64, 8, 3), (64, 256, 64, 8, 3), (64, 128, 64, 4, 3)],
    "crnn 32": [(256, 64, 32, 8, 3), (128, 64, 32, 4, 3)],
}


def tensors(case: str, device: str) -> dict[str, Any]:
    n, h, w, c, k, added = CASES[case]
    made = (lambda *shape: torch.empty(shape, dtype=torch.float16, device="meta")) if device == "meta" else None
    generator = torch.Generator(device).manual_seed(3) if made is None else None

    def make(*shape: int, scale: float = 1.0) -> torch.Tensor:
        if made is not None:
            return made(*shape)
        return (torch.randn(shape, generator=generator, device=device) * scale).half()

    bias = torch.empty(k, device="meta") if made is not None else torch.randn(k, generator=generator, device=device)
    return {
        "x": make(n, h, w, c), "w": make(k, 3, 3, c, scale=(9 * c) ** -0.5), "out": make(n, h, w, k), "bias": bias,
        "residual": make(n, h, w, k) if added else None,
    }  # fmt: skip


def launch(kind: str, config: tuple[int, ...], given: dict[str, Any]) -> Launch:
    make = conv2d_nhwc_launch if kind == "tap" else window_conv_launch
    return make(
        given["x"], given["w"], out=given["out"], config=Tile(*config), bias=given["bias"],
        residual=given["residual"], epilogue=Epilogue("relu"), padding=(1, 1),
    )  # fmt: skip


def cached(ptx: str, every: bool) -> str:
    """Copies of pixels (of everything) through the first cache. Pixels and weights take turns."""
    parts = re.split(r"(cp\.async\.commit_group;)", ptx)
    group, found = 0, []
    for part in parts:
        group += part.startswith("cp.async.commit_group")
        changed = part.replace("cp.async.cg.shared", "cp.async.ca.shared")
        found.append(changed if every or group % 2 == 0 else part)
    return "".join(found)


def assembled(ptx: str) -> bytes:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "k.ptx", Path(folder) / "k.cubin"
        source.write_text(ptx)
        subprocess.run([str(tool), "--gpu-name=sm_90a", str(source), "-o", str(target)], check=True)
        return target.read_bytes()


def build(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = []
    for case in CASES:
        given = tensors(case, "meta")
        product = conv2d_product(given["x"], given["w"], given["out"])
        configs = [
            (t.block_m, t.block_n, t.block_k, t.num_warps, t.num_stages)
            for t in tiles(product)
            if t.split_k == 1 and product.channels % t.block_k == 0
        ][:4]
        for config in dict.fromkeys([*configs, *MORE[case]]):
            for kind in ("tap", "window"):
                one = launch(kind, config, given)
                try:
                    compiled, sealed = one._compiled(90), one.seal()
                except Exception as error:
                    print(case, config, kind, error)
                    continue
                variants = {"cg": sealed.cubin}
                if kind == "window":
                    variants["ca"] = assembled(cached(compiled.asm["ptx"], every=False))
                    variants["all"] = assembled(cached(compiled.asm["ptx"], every=True))
                for name, cubin in variants.items():
                    file = f"{len(manifest)}.cubin"
                    (folder / file).write_bytes(cubin)
                    manifest.append(
                        [case, kind, name, config, file, sealed.symbol, sealed.grid, sealed.threads,
                         sealed.shared_bytes, sealed.parameters]
                    )  # fmt: skip
        print(case, len(manifest), flush=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def convolved(given: dict[str, Any]) -> torch.Tensor:
    x, w, bias = given["x"].permute(0, 3, 1, 2), given["w"].permute(0, 3, 1, 2), given["bias"].half()
    if given["residual"] is None:
        return torch.cudnn_convolution_relu(x, w, bias, (1, 1), (1, 1), (1, 1), 1)
    added = given["residual"].permute(0, 3, 1, 2)
    return torch.cudnn_convolution_add_relu(x, w, added, 1.0, bias, (1, 1), (1, 1), (1, 1), 1)


def run(folder: Path) -> None:
    from penstock.engine.cuda.kernels.tuning import microseconds

    manifest = json.loads((folder / "manifest.json").read_text())
    for case in CASES:
        given = tensors(case, "cuda")
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, benchmark_limit=0):  # all that cuDNN has
            fused = partial(convolved, given)
            expected = fused().permute(0, 2, 3, 1).float()
            spent = microseconds(fused, calls=30, replays=7)
        rows = []
        for each, kind, name, config, file, *rest in manifest:
            if each != case:
                continue
            symbol, grid, threads, shared, parameters = rest
            cubin = (folder / file).read_bytes()
            loaded = LoadedKernel(SealedKernel(cubin, symbol, tuple(grid), threads, shared, parameters),
                                  LoadedModule(cubin))  # fmt: skip
            given["out"].fill_(float("nan"))
            bound = launch(kind, tuple(config), given).bound()
            loaded.launch(bound, torch.cuda.current_stream().cuda_stream)
            error = float((given["out"].float() - expected).norm() / expected.norm())

            def call(loaded: LoadedKernel = loaded, bound: Any = bound) -> None:
                loaded.launch(bound, torch.cuda.current_stream().cuda_stream)

            rows.append((microseconds(call, calls=30, replays=7), kind, name, "x".join(map(str, config)), error))
        print(f"{case}: cudnn {spent:.1f}")
        for kind, name in (("tap", "cg"), ("window", "cg"), ("window", "ca"), ("window", "all")):
            best = sorted(row for row in rows if row[1:3] == (kind, name))
            print(f"   {kind:7}{name:4}" + "  ".join(f"{us:.1f} {config} ({error:.0e})" for us, _, _, config, error
                                                    in best[:6]), flush=True)  # fmt: skip


if __name__ == "__main__":
    {"build": build, "run": run}[sys.argv[1]](Path(sys.argv[2]))
