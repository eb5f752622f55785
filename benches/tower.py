"""An image tower of open_clip's shape as an engine, and what torch answers for it.

    python benches/tower.py build/tower.engine --budget 40
    python benches/tower.py build/tower.onnx

timm's ViT-B/32 with a seed's weights goes through `penstock.build`, or becomes an ONNX file to build from; beside it
lies `tower.npz`, pictures and torch's answers to them in FP32 on the CPU: for `engine_concurrent.py`, which asks a
server for the same. Needs torch and timm.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import penstock as ps
from penstock.build import torch_export

POOL: Final = 32
OUTPUTS: Final = 512
"""As wide as what the tower shares with its text."""


class Shown:
    """Says on stderr what the build is at, and when. Satisfies `penstock.build.progress.Progress`."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()

    def stage(self, name: str, detail: str) -> None:
        print(f"{time.perf_counter() - self._begun:6.1f} s  {name} {detail}", file=sys.stderr, flush=True)

    def racing(self, event: Any) -> None:
        self.stage("", str(event)[:160])


def pictures(count: int, size: int) -> NDArray[Any]:
    """Colours and coarse patterns: noise alone looks the same to a network whatever its seed."""
    random = np.random.default_rng(11)
    coarse = random.standard_normal((count, 3, 7, 7))
    fine = random.standard_normal((count, 3, size, size))
    return (np.kron(coarse, np.ones((1, 1, size // 7, size // 7))) + 0.5 * fine).astype(np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("made", type=Path, help="an .engine, or an .onnx")
    parser.add_argument("--model", default="vit_base_patch32_clip_224", help="of timm, with pictures of 224 pixels")
    parser.add_argument("--buckets", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of the build")
    parser.add_argument("--device", default="auto")
    wanted = parser.parse_args()
    import timm
    import torch

    torch.manual_seed(0)
    module = timm.create_model(wanted.model, pretrained=False, num_classes=OUTPUTS).eval()
    x = pictures(POOL, 224)
    with torch.no_grad():
        y = module(torch.from_numpy(x)).numpy()
    unit = (y / np.linalg.norm(y, axis=1, keepdims=True)).astype(np.float64)
    alike = np.max(unit @ unit.T - np.eye(POOL))
    wanted.made.parent.mkdir(parents=True, exist_ok=True)
    np.savez(wanted.made.with_suffix(".npz"), x=x, y=y)
    if wanted.made.suffix == ".onnx":
        torch_export.export(module, wanted.made, (torch.from_numpy(x[:2]),), free_batch=True)
        return 0
    begun, most = time.perf_counter(), max(wanted.buckets)
    made = ps.build(
        module, example_inputs=(torch.from_numpy(x[:2]),), device=wanted.device, budget_seconds=wanted.budget,
        shapes=f"x:1x3x224x224,{most}x3x224x224,{most}x3x224x224", buckets=wanted.buckets, output=wanted.made,
        progress=Shown(),
    )  # fmt: skip
    buckets = ", ".join(
        f"{each.shapes['x'][0]}: {each.microseconds / 1e3:.3f} ms by {made.manifest.programs[each.program].tactic.name}"
        for each in made.manifest.buckets
    )
    print(f"{wanted.model} built in {time.perf_counter() - begun:.1f} s with {wanted.made.stat().st_size / 1e6:.0f} MB")
    print(f"buckets {buckets}; answers of two pictures have a cosine of {alike:.6f} at most", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
