"""The recogniser as everybody in this story runs it, and the engine that is built of it.

Everybody takes bytes [n, 48, 320, 3] and answers the best class of each column and its probability: the normalisation
and the reduction are in the graph, for peers as well, since 3 MB of probabilities a line would hide every other cost.
On the CPU the engine is a file of `penstock build`; for a GPU `prepare` lowers the graphs (`ocr_cuda` builds there).
"""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benches.stories.ocr_lines import HEIGHT, INPUT, WIDTH

CHECKOUT: Final = Path(__file__).resolve().parents[2]
MODEL: Final = "recogniser"
CLIENT_ROWS: Final = 2
"""Of every request."""

BATCHES: Final = (2, 4, 8)
"""Rows that the engine is prepared for, and most of a batch of anybody's: more rows at once make a core no faster."""

GPU_BATCHES: Final = (2, 4, 8, 16, 32)
PREPROCESS: Final = f"{INPUT}:uint8,nhwc,mean=127.5,std=127.5"
REDUCE: Final = "fetch_name_0:argmax@2"
_OUTPUT: Final = "fetch_name_0"


@dataclass(frozen=True)
class Engine:
    path: Path
    found: bool
    """It was there and fits; False: built just now."""

    precision: str
    tactics: tuple[str, ...]
    seconds: float
    """Of the build."""

    accuracy: str
    """The gate's verdict, in words."""


def onnx_file(folder: Path) -> Path:
    """The recogniser with both edges in its graph; made once."""
    import onnx_ir as ir

    from penstock import graph
    from penstock.graph.boundary import preprocess, reduce

    path = folder / f"{MODEL}.onnx"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        model = preprocess(graph.load(_source()), PREPROCESS)
        model, _ = reduce(model, REDUCE, beside=False)
        (taken,) = (each for each in model.graph.inputs if each.name == INPUT)
        taken.shape = ir.Shape(["n", HEIGHT, WIDTH, 3])
        graph.save(model, path)
    return path


def _source() -> Path:
    from examples.ocr.model import recogniser_path

    return recogniser_path()


# ---- on the CPU ----


def engine(folder: Path, budget_seconds: float) -> Engine:
    """The engine in the folder if it fits this machine and what is asked, else a new one. Raises RuntimeError."""
    from penstock.engine import check

    flags = _flags(budget_seconds)
    digest = hashlib.sha256(_source().read_bytes() + "\0".join(flags).encode()).hexdigest()[:12]
    path = folder / f"{MODEL}-{digest}.engine"
    found = path.is_file() and check(path).action == "run"
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        print(f"building the engine, about {budget_seconds:.0f} s ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-c", "from penstock.cli import main; main()", "build", str(_source())]
        command += ["--output", str(path), "--timing-cache", str(folder / "timings.cache"), "--json", *flags]
        ended = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, check=False)
        if ended.returncode != 0 or not path.is_file():
            raise RuntimeError(f"the engine could not be built: status {ended.returncode}, see above")
    sealed = check(path).sealed
    if sealed is None:
        raise RuntimeError(f"{path.name} can't be read")
    manifest, evidence = sealed.manifest, sealed.evidence
    tactics = tuple(dict.fromkeys(each.tactic.name for each in manifest.programs))
    return Engine(
        path, found, manifest.precision, tactics, float(evidence["seconds"]), str(evidence["accuracy"]["message"])
    )


def _flags(budget_seconds: float) -> list[str]:
    low, usual, high = (f"{rows}x{HEIGHT}x{WIDTH}x3" for rows in (1, 4, max(BATCHES)))
    here = "benches.stories.ocr_lines"
    return [
        "--shapes", f"{INPUT}:{low},{usual},{high}", "--buckets", ",".join(map(str, BATCHES)),
        "--preprocess", PREPROCESS, "--reduce", REDUCE,
        "--calibration", f"{here}:calibration", "--accuracy", f"{here}:accuracy drop<=0.007",
        "--budget", f"{budget_seconds:g}s",
    ]  # fmt: skip
