"""What the story of the tracker measures on a CPU: the search branch as ONNX, and real inputs, in files.

Torch writes them once (`make`); afterwards every other library can be measured without it. Called by `tracker_cpu`.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from examples.tracker.scene import OBJECTS, scene
from examples.tracker.tracking import Tracking

Arrays = dict[str, npt.NDArray[Any]]

_MODEL: Final = "tracker_search.onnx"
_CALIBRATION: Final = "tracker_calibration.npz"
_HELD_OUT: Final = "tracker_held_out.npz"
_FRAMES: Final = 12


class MissingError(Exception):
    """The files are not there and can't be made."""


@dataclass(frozen=True)
class Lab:
    """Where the files lie."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / _MODEL

    @property
    def calibration(self) -> Path:
        return self.folder / _CALIBRATION

    def held_out(self, rows: int) -> Arrays:
        """The first rows of what no engine was calibrated with: eight objects of one frame."""
        with np.load(self.folder / _HELD_OUT, allow_pickle=False) as archive:
            return {name: np.ascontiguousarray(archive[name][:rows]) for name in archive.files}


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def lab(folder: Path) -> Lab:
    """The files, made where they are missing and torch is there. Raises MissingError."""
    found = Lab(folder)
    if all((folder / name).is_file() for name in (_MODEL, _CALIBRATION, _HELD_OUT)):
        return found
    if not has_torch():
        raise MissingError(
            f"{folder} has no {_MODEL}, and torch, which makes it, is not installed: pip install 'penstock[torch]', or "
            "run once with a Python that has it"
        )
    make(found)
    return found


def make(made: Lab) -> None:
    """Writes the model with a free batch, and both sets of inputs."""
    import torch

    from examples.tracker import engines, network
    from penstock.build import torch_export

    made.folder.mkdir(parents=True, exist_ok=True)
    tracker = engines.tracker()
    samples = list(engines.calibration(network.SearchBranch(tracker)))
    np.savez(made.calibration, **_joined(samples))  # type: ignore[arg-type]  # names are the inputs', no option
    shown = scene(OBJECTS, _FRAMES)
    following = Tracking(engines.eager(tracker), shown.frames[0], shown.boxes[0])
    following.boxes = shown.boxes[-2]
    regions = following.regions(shown.frames[-1])
    np.savez(made.folder / _HELD_OUT, **engines.search_inputs(regions, following.kernels))  # type: ignore[arg-type]
    example = {name: torch.from_numpy(array[:2]) for name, array in _joined(samples).items()}
    # Under its name last: it says that all is there.
    partial = made.model.with_suffix(".partial")
    torch_export.export(network.SearchBranch(tracker), partial, example, free_batch=True)
    partial.replace(made.model)


def _joined(samples: list[Any]) -> Arrays:
    return {name: np.concatenate([each[name] for each in samples]) for name in samples[0]}
