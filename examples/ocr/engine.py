"""The engines of the recogniser and the detector: built once for this machine, kept under `build/ocr`, and found again
while they fit.

Promises: an engine that is handed out passed the accuracy gate on this machine; one is built again when the
model, what is asked for, the processor or a library is another than it was built with. Building takes about
BUDGET_SECONDS and says on standard error what it does. Called by `demo`; alone: `python -m examples.ocr.engine`.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from examples.ocr.model import DETECTOR, RECOGNISER, model_path
from examples.ocr.reader import MAX_WIDTH, MIN_WIDTH
from penstock.engine import Verdict, check

CHECKOUT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = CHECKOUT / "build" / "ocr"
# Enough for the libraries in FP32 and BF16 and for one eight-bit form of the recogniser, on two cores; a build ends
# some seconds after its budget.
BUDGET_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Ask:
    """What an engine is asked to be: the flags of `penstock build`. As it stands, that of the recogniser."""

    source: str = RECOGNISER
    name: str = "read_line"
    # From the narrowest line that `reader` makes to the widest, to be fastest at a line of median width.
    shapes: str = f"x:1x3x48x{MIN_WIDTH},1x3x48x400,8x3x48x{MAX_WIDTH}"
    buckets: str = "1,4"
    # The best class of a column in place of 18,710 chances, so that 3 MB a line never come to Python.
    reduce: str = "fetch_name_0:argmax@2"
    calibration: str = "examples.ocr.metrics:few_calibration_lines"
    accuracy: str = "examples.ocr.metrics:few_lines_accuracy drop<=0.007"
    budget_seconds: float = BUDGET_SECONDS
    precision: str = "auto"

    def flags(self) -> list[str]:
        flags = {
            "--shapes": self.shapes,
            "--buckets": self.buckets,
            "--reduce": self.reduce,
            "--calibration": self.calibration,
            "--accuracy": self.accuracy,
            "--budget": f"{self.budget_seconds:g}s",
            "--precision": self.precision,
        }
        return [part for flag, value in flags.items() if value for part in (flag, value)]


DETECTOR_ASK: Final = Ask(
    source=DETECTOR,
    name="find_lines",
    shapes="x:1x3x32x32,1x3x960x736,1x3x1984x1984",
    buckets="1",
    reduce="",
    # In INT8 a page takes a seventh less, and its ranges take longer to find than all else.
    precision="bf16",
    calibration="",
    accuracy="examples.ocr.detection_metric:lines_found drop<=0.005",
    budget_seconds=40.0,
)


@dataclass(frozen=True, slots=True)
class Built:
    """An engine file that runs here, and what it says of itself."""

    path: Path
    found: bool
    """It was there; False: it was built just now."""

    precision: str
    libraries: tuple[str, ...]
    """Of its programs: `openvino`."""

    tactics: tuple[str, ...]
    build_seconds: float
    accuracy: str
    """The gate's verdict, in words."""

    file_bytes: int

    @property
    def origin(self) -> str:
        """Whether it was there, and what it took."""
        return f"{'found, built before' if self.found else 'built'} in {self.build_seconds:.0f} s"

    @property
    def summary(self) -> dict[str, Any]:
        """For the demonstration's JSON."""
        return {
            "precision": self.precision,
            "library": "+".join(self.libraries),
            "build_seconds": round(self.build_seconds, 1),
            "file_bytes": self.file_bytes,
            "found": self.found,
        }


def engine(ask: Ask = Ask(), folder: Path = FOLDER) -> Built:
    """The engine for `ask`: the one in `folder` if it still fits, else a new one. Raises RuntimeError."""
    path = folder / f"{_name(ask)}.engine"
    if path.is_file():
        verdict = check(path)
        if verdict.action == "run":
            return _described(path, verdict, found=True)
        print(
            f"the engine in {path.parent.name}/ is not for this machine: {'; '.join(verdict.reasons)}", file=sys.stderr
        )
    folder.mkdir(parents=True, exist_ok=True)
    _build(ask, path, folder / "timings.cache")
    return _described(path, check(path), found=False)


def _name(ask: Ask) -> str:
    """Says what an engine was built of and how, so that another recogniser or another wish is another file."""
    digest = hashlib.sha256(model_path(ask.source).read_bytes())
    digest.update("\0".join(ask.flags()).encode())
    return f"{ask.name}-{digest.hexdigest()[:12]}"


def _build(ask: Ask, path: Path, cache: Path) -> None:
    """As a process of its own, so that its memory and its libraries' threads end with it."""
    penstock = Path(sys.executable).with_name("penstock")
    files: Sequence[str | Path] = (model_path(ask.source), "--output", path, "--timing-cache", cache)
    command = (penstock, "build", *files, "--json", *ask.flags())
    # The document on its standard output is in the file, too.
    ended = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, check=False)
    if ended.returncode != 0 or not path.is_file():
        raise RuntimeError(f"the engine could not be built: status {ended.returncode}, see above")


def _described(path: Path, verdict: Verdict, *, found: bool) -> Built:
    if verdict.sealed is None:
        raise RuntimeError(f"{path.name} can't be read: {'; '.join(verdict.reasons)}")
    manifest, evidence = verdict.sealed.manifest, verdict.sealed.evidence
    tactics = dict.fromkeys(program.tactic for program in manifest.programs)
    return Built(
        path=path,
        found=found,
        precision=manifest.precision,
        libraries=tuple(sorted({tactic.runtime for tactic in tactics})),
        tactics=tuple(tactic.name for tactic in tactics),
        build_seconds=float(evidence["seconds"]),
        accuracy=str(evidence["accuracy"]["message"]),
        file_bytes=path.stat().st_size,
    )


def main() -> None:
    built = engine()
    print(json.dumps({"path": str(built.path.relative_to(CHECKOUT)), **built.summary}))


if __name__ == "__main__":
    main()
