"""The tracker's two branches, as torch runs them and as engines: built once, and found again while nothing changed.

`pip install 'penstock[torch]'`: a torch module is exported by `ps.build`. Called by `__main__` and by the benches.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

import penstock as ps
from examples.tracker import network, tracking
from examples.tracker.scene import norm_crops, scene
from examples.tracker.tracking import SEARCH_SIZE, TEMPLATE_SIZE, Floats, Network, Tracking

FOLDER: Final = Path("build") / "tracker"
BATCHES: Final = (1, 8)
SEARCH_INPUTS: Final = "search", "scores_kernel", "boxes_kernel"
OUTPUTS: Final = "scores", "boxes"
KERNEL: Final = (network.CHANNELS, 4, 4)
_CALIBRATION_FRAMES: Final = 3  # of eight objects
_CALIBRATION_SEED: Final = 101  # frames that no other scene shows: their noise and light are their own

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Asked:
    """What an engine is built for."""

    precision: str = "auto"
    device: str = "auto"
    budget_seconds: float = 60.0
    accuracy: str = "cosine>=0.999"

    def path(self, branch: str, folder: Path) -> Path:
        """Named after everything that makes it another engine."""
        sources = b"".join(Path(each.__file__).read_bytes() for each in (network, tracking) if each.__file__)
        text = f"{branch} {self} {torch.__version__} {ps.__version__}".encode()
        return folder / f"{branch}.{hashlib.sha256(sources + text).hexdigest()[:12]}.engine"


def tracker(seed: int = 1) -> network.Tracker:
    """With norms over photographs that no scene shows."""
    crops = norm_crops(SEARCH_SIZE).astype(np.float32).transpose(0, 3, 1, 2)
    middle = slice((SEARCH_SIZE - TEMPLATE_SIZE) // 2, (SEARCH_SIZE + TEMPLATE_SIZE) // 2)
    templates = crops[:, :, middle, middle]
    mean, deviation = (found(templates, axis=(1, 2, 3), keepdims=True) for found in (np.mean, np.std))
    with torch.no_grad():
        return network.made(torch.from_numpy((crops - mean) / np.maximum(deviation, 1.0)), seed)


def eager(made: network.Tracker, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Network:
    """Both branches as torch runs them, arrays in and arrays out."""
    template, search = network.TemplateBranch(made).to(device, dtype), network.SearchBranch(made).to(device, dtype)

    def given(array: Floats) -> torch.Tensor:
        return torch.from_numpy(array).to(device, dtype)

    @torch.inference_mode()
    def kernels(crops: Floats) -> Sequence[Floats]:
        return [each.float().cpu().numpy() for each in template(given(crops))]

    @torch.inference_mode()
    def answers(regions: Floats, found: Sequence[Floats]) -> tuple[Floats, Floats]:
        scores, boxes = search(given(regions), *map(given, found))
        return scores.float().cpu().numpy(), boxes.float().cpu().numpy()

    return Network(kernels, answers)


def engines(template: ps.Engine, search: ps.Engine) -> Network:
    """Both branches as engines run them."""

    def kernels(crops: Floats) -> Sequence[Floats]:
        return list(template(template=crops).values())

    def answers(regions: Floats, found: Sequence[Floats]) -> tuple[Floats, Floats]:
        scores, boxes = search(**search_inputs(regions, found)).values()
        return scores, boxes

    return Network(kernels, answers)


def search_inputs(regions: Floats, kernels: Sequence[Floats]) -> dict[str, Floats]:
    return dict(zip(SEARCH_INPUTS, (regions, *kernels), strict=True))


def built(made: network.Tracker, asked: Asked, folder: Path = FOLDER) -> tuple[ps.Engine, ps.Engine]:
    """The engines of the template and of the search branch, static at each batch. Raises what `ps.build` raises."""
    template = _engine(
        "template", network.TemplateBranch(made), {"template": (3, TEMPLATE_SIZE, TEMPLATE_SIZE)}, asked, folder
    )
    return template, search_engine(made, asked, folder)


def search_engine(made: network.Tracker, asked: Asked, folder: Path = FOLDER) -> ps.Engine:
    rows = dict(zip(SEARCH_INPUTS, ((3, SEARCH_SIZE, SEARCH_SIZE), KERNEL, KERNEL), strict=True))
    return _engine("search", network.SearchBranch(made), rows, asked, folder)


def _engine(
    branch: str, module: torch.nn.Module, rows: Mapping[str, tuple[int, ...]], asked: Asked, folder: Path
) -> ps.Engine:
    path = asked.path(branch, folder)
    if path.is_file():
        found = ps.load(path)
        assert isinstance(found, ps.Engine)
        return found
    folder.mkdir(parents=True, exist_ok=True)
    eights = branch == "search" and asked.precision in ("auto", "int8")
    return ps.build(
        module,
        example_inputs={name: torch.randn(2, *shape) for name, shape in rows.items()},
        shapes=[_static(rows, batch) for batch in BATCHES],
        precision=asked.precision,
        device=asked.device,
        accuracy=asked.accuracy,
        calibration=calibration(module) if eights else None,
        budget_seconds=asked.budget_seconds,
        timing_cache=folder / "timings.json",
        output=path,
    )


def _static(rows: Mapping[str, tuple[int, ...]], batch: int) -> str:
    return ";".join(f"{name}:{'x'.join(map(str, (batch, *shape)))}" for name, shape in rows.items())


def calibration(module: torch.nn.Module) -> Iterator[Arrays]:
    """What the search branch sees while eight objects are followed, one object at a time."""
    assert isinstance(module, network.SearchBranch)
    shown = scene(8, _CALIBRATION_FRAMES, seed=_CALIBRATION_SEED)
    following = Tracking(eager(module.tracker), shown.frames[0], shown.boxes[0])
    for frame, boxes in zip(shown.frames, shown.boxes, strict=True):
        following.boxes = boxes
        regions = following.regions(frame)
        for row in range(len(boxes)):
            yield search_inputs(regions[row : row + 1], [each[row : row + 1] for each in following.kernels])
