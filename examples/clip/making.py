"""The tower as an engine, and what its embeddings should be: of torch where it is installed, else of the lab's ONNX.

With torch: `tower.seeded`, a module, goes through `ps.build`, and PyTorch in eager mode is the reference. Without: the
ViT-B/32 that `benches.models` writes by script (of the same shape, with weights of its own) is built, and ONNX Runtime
in FP32 on the file is the reference. Promises: an engine is built again when the tower, what is asked of it, the
machine or a library changed. Called by the demo and by the stories of the benches.
"""

import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

import penstock as ps
from examples.clip.pictures import encoded_pictures
from examples.clip.preprocessing import Floats, prepared
from penstock.engine import check

CHECKOUT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = CHECKOUT / "build" / "clip"
# Where `benches.models` put its files, unless told otherwise.
LAB: Final = Path(os.environ.get("PENSTOCK_LAB", CHECKOUT / ".peers")) / "models"
BUDGET_SECONDS: Final = 60.0
_CALIBRATION: Final = 16  # pictures that the gate judges on; seeds apart from those that are asked with
_CALIBRATION_SEED: Final = 1
# A transformer's batch of 8 costs two cores 8 times a batch of 1, nearly: larger ones only make requests wait.
CPU_BUCKETS: Final = (1, 4, 8)
GPU_BUCKETS: Final = (1, 8, 64)

Embed = Callable[[Floats], npt.NDArray[Any]]
"""FP32 [n, 3, 224, 224] to embeddings [n, 512], in FP32 by the reference."""


@dataclass(frozen=True)
class Made:
    """A tower, ready to be served and judged."""

    engine: Path
    origin: str
    """What the weights are and how the engine was made."""

    built: bool
    """Now; else it was there."""

    reference: str
    """What judges it."""

    embed: Embed
    onnx: Path | None = None
    """The lab's file."""

    module: Any = None
    """Of torch."""

    def programs(self) -> str:
        """What the engine runs: `openvino bf16 at 1, 4, 8`."""
        manifest = ps.load(self.engine).manifest  # type: ignore[attr-defined]
        by: dict[str, list[str]] = {}
        for bucket in sorted(manifest.buckets, key=lambda each: each.shapes["x"][0]):
            tactic = manifest.programs[bucket.program].tactic
            by.setdefault(f"{tactic.runtime} {tactic.precision}", []).append(str(bucket.shapes["x"][0]))
        return ", ".join(f"{name} at {' '.join(batches)}" for name, batches in by.items())


Source = Literal["torch", "lab"]


def source() -> Source:
    """PyTorch's where torch is, else the lab's."""
    return "torch" if importlib.util.find_spec("torch") is not None else "lab"


def made(
    folder: Path = FOLDER,
    *,
    of: Source | None = None,
    budget_seconds: float = BUDGET_SECONDS,
    buckets: Sequence[int] = CPU_BUCKETS,
    device: str = "cpu",
    progress: Any = None,
) -> Made:
    """The full tower. of: whose; None: `source` says.

    Raises what `ps.build` raises; RuntimeError without scikit-image, whose pictures calibrate it.
    """
    making = _of_torch if (of or source()) == "torch" else _of_lab
    return making(folder, _Ask(budget_seconds, tuple(buckets), device, progress))


@dataclass(frozen=True)
class _Ask:
    """Of the build."""

    budget_seconds: float
    buckets: tuple[int, ...]
    device: str
    progress: Any

    def key(self, source: str) -> str:
        here = (source, self.buckets, self.device, _CALIBRATION)
        return hashlib.sha256(repr(here).encode()).hexdigest()[:12]

    def engine(self, folder: Path, source: str, model: Callable[[], Any], **more: Any) -> tuple[Path, bool]:
        """The engine of a model; whether it was built now."""
        path = folder / f"tower-{self.key(source)}.engine"
        if path.is_file() and check(path).action == "run":
            return path, False
        folder.mkdir(parents=True, exist_ok=True)
        most = max(self.buckets)
        ps.build(
            model(), output=path, precision="fp16", device=self.device, accuracy=ps.Cosine(0.999),
            shapes=f"x:1x3x224x224,{most}x3x224x224,{most}x3x224x224", buckets=self.buckets,
            calibration=[{"x": row[None]} for row in pictures(_CALIBRATION, _CALIBRATION_SEED)],
            budget_seconds=self.budget_seconds, progress=self.progress, **more,
        ).close()  # fmt: skip
        return path, True


def pictures(count: int, seed: int = 0) -> Floats:
    """FP32 [count, 3, 224, 224]."""
    return np.stack([prepared(each) for each in encoded_pictures(count, seed)])


def _of_torch(folder: Path, ask: _Ask) -> Made:
    import torch

    from examples.clip import tower

    calibrating = torch.from_numpy(pictures(_CALIBRATION, _CALIBRATION_SEED))
    module = tower.seeded(calibrating)
    source = Path(tower.__file__).read_text(encoding="utf-8")
    engine, built = ask.engine(folder, source, lambda: module, example_inputs=(calibrating[:2],))

    def embed(x: Floats) -> npt.NDArray[Any]:
        with torch.no_grad():
            found: npt.NDArray[Any] = module(torch.from_numpy(x)).numpy()
        return found

    return Made(
        engine, "ViT-B/32 of open_clip's shape with QuickGELU, from torch, weights from a seed", built,
        f"PyTorch {torch.__version__} eager, FP32 on the CPU", embed, module=module,
    )  # fmt: skip


def _of_lab(folder: Path, ask: _Ask) -> Made:
    import onnxruntime as ort

    from benches.models.zoo import make

    lab = LAB / "vit_b32.onnx"
    path = lab if lab.is_file() else make("vit_b32", folder)
    engine, built = ask.engine(folder, hashlib.sha256(path.read_bytes()).hexdigest(), lambda: path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def embed(x: Floats) -> npt.NDArray[Any]:
        return np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])

    return Made(
        engine, "ViT-B/32 of open_clip's shape with QuickGELU, the ONNX file that benches.models writes", built,
        f"ONNX Runtime {ort.__version__}, FP32 on the CPU", embed, onnx=path,
    )  # fmt: skip
