"""Engines of the story, built once into its folder and found again while they fit this machine and the wish."""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import penstock as ps
from penstock.build import Metric
from penstock.engine import check


@dataclass(frozen=True)
class Wish:
    """What `ps.build` is asked for. `calibration`, `accuracy`: as text, so that the file's name can say it."""

    name: str
    model: Path
    shapes: str | tuple[str, ...]
    """Several for several profiles."""

    budget_seconds: float
    precision: str = "auto"
    buckets: tuple[int, ...] = (1,)
    calibration: str | None = None
    accuracy: str | Metric = "cosine>=0.999"
    reduce: tuple[str, ...] = ()
    device: str = "cpu"

    def digest(self) -> str:
        said = {key: str(value) for key, value in vars(self).items() if key not in ("model", "accuracy")}
        said["accuracy"] = self.accuracy if isinstance(self.accuracy, str) else self.accuracy.text
        return hashlib.sha256(self.model.read_bytes() + json.dumps(said).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Built:
    path: Path
    seconds: float
    """Of the build; 0 where it was there."""

    precision: str
    """The narrowest that it computes in."""

    programs: tuple[str, ...]
    file_bytes: int
    int8: str
    """What became of eight bits."""

    accuracy: str
    """What the gate said."""

    notes: tuple[str, ...]
    """Of the build: how calibrations compared, among others."""


def built(wish: Wish, folder: Path, samples: Iterable[dict[str, Any]] | None = None) -> Built:
    """`samples`: calibration inputs in place of what the wish names. Raises what `ps.build` raises."""
    path = folder / "engines" / f"{wish.name}-{wish.digest()}.engine"
    seconds = 0.0
    if not path.is_file() or check(path).action != "run":
        path.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        shapes = wish.shapes if isinstance(wish.shapes, str) else list(wish.shapes)
        ps.build(
            wish.model, output=path, device=wish.device, precision=wish.precision, shapes=shapes,
            buckets=list(wish.buckets), calibration=list(samples) if samples is not None else wish.calibration,
            accuracy=wish.accuracy, budget_seconds=wish.budget_seconds, reduce=wish.reduce,
            timing_cache=path.parent / "timings.cache",
        ).close()  # fmt: skip
        seconds = time.perf_counter() - began
    sealed = check(path).sealed
    if sealed is None:
        raise RuntimeError(f"{path.name} can't be read back")
    evidence = sealed.evidence
    tactics = dict.fromkeys(program.tactic.name for program in sealed.manifest.programs)
    return Built(
        path, seconds, sealed.manifest.precision, tuple(tactics), path.stat().st_size, fate("int8", evidence),
        str(evidence["accuracy"]["message"]), tuple(str(each) for each in evidence["notes"]),
    )  # fmt: skip


def fate(precision: str, evidence: Mapping[str, Any]) -> str:
    """What became of a precision in a build, in words."""

    def of(key: str) -> list[Mapping[str, Any]]:
        return [each for each in evidence[key] if each["tactic"]["precision"] == precision]

    if any(each["precision"] == precision for each in evidence["chosen"]):
        return "chosen"
    if refused := of("refused"):
        return f"not accurate enough: {refused[0]['reason'].split(';')[0]}"
    if of("timings"):
        return "timed, and not faster"
    if lost := of("lost"):
        return f"lost: {lost[0]['reason'].split(';')[0]}"
    if skipped := of("skipped"):
        return f"not timed: {skipped[0]['reason']}"
    return "not tried"
