"""What values activations take: statistics of an FP32 graph on calibration data, in bounded memory.

Two passes over the data. The first runs the graph with minimum, maximum and size of every watched tensor computed
inside it, so that only scalars come out. The second makes histograms: tensors come out whole, so as many at once as fit
`memory` (at least one), and each group is a run of its own. The range is known by then, so all 2,048 bins are used.

Tensors that are ever NaN or infinite (attention masks) are skipped and named: there is nothing to calibrate.
Called by recipe; statistics are kept in `.npz` files by `cached`.
"""

import hashlib
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penstock.errors import InvalidArgument, Unsupported
from penstock.graph import save, to_bytes
from penstock.graph.editing import Edit
from penstock.quantize.calibrators import Histogram
from penstock.quantize.data import Array, Arrays, Calibration
from penstock.quantize.opset import raised
from penstock.quantize.probes import probe
from penstock.quantize.progress import Progress, quiet

BINS: Final = 2048
# Samples are enough: ranges hardly move after a hundred.
SAMPLES: Final = 128
MEMORY: Final = 256 * 2**20
_VERSION: Final = 1  # of the cache files; raise it when what they mean changes

Run = Callable[[Arrays], Mapping[str, Array]]


class Counter:
    """Counts |x| in bins of equal width, over as many arrays as come.

    A value beyond the last bin doubles the range as often as needed. Doubling joins pairs of bins: counts are then
    exactly what they would have been with wider bins from the start, and only the resolution halves. Values are put
    into bins in float32: one within a rounding error of an edge may fall to either side.
    """

    def __init__(self, limit: float = 0.0, bins: int = BINS) -> None:
        self.counts = np.zeros(bins, np.int64)
        self.limit = limit
        self.zeros = 0
        self.minimum = math.inf
        self.maximum = -math.inf

    def add(self, array: Array) -> None:
        """Raises ValueError for NaN and infinities."""
        if not array.size:
            return
        low, high = float(array.min()), float(array.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("values are not finite")
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        largest = max(-low, high)
        if largest > 0:
            self._reach(largest)
        magnitude = np.abs(array.reshape(-1).astype(np.float32, copy=False))
        filled = magnitude[magnitude > 0]
        self.zeros += magnitude.size - filled.size
        if filled.size:
            bins = len(self.counts)
            index = np.minimum(filled * np.float32(bins / self.limit), bins - 1).astype(np.int32)
            self.counts += np.bincount(index, minlength=bins)

    def _reach(self, largest: float) -> None:
        if self.limit == 0:
            # Of subnormal numbers no bin has a width; they are as good as zero.
            self.limit = max(largest, 2.0**-100)
        while self.limit < largest:
            half = len(self.counts) // 2
            self.counts = np.concatenate([self.counts.reshape(half, 2).sum(axis=1), np.zeros(half, np.int64)])
            self.limit *= 2

    def statistics(self) -> "TensorStatistics":
        histogram = Histogram(self.counts, self.limit or 1.0, self.zeros, max(-self.minimum, self.maximum, 0.0))
        return TensorStatistics(self.minimum, self.maximum, histogram)


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """One activation over all samples."""

    minimum: float
    maximum: float
    histogram: Histogram


@dataclass(frozen=True, slots=True)
class Statistics:
    """What was seen."""

    tensors: Mapping[str, TensorStatistics]
    samples: int
    skipped: tuple[str, ...] = ()
    """Watched, but not always finite or never computed as FP32."""


def collect(
    model: ir.Model,
    data: Calibration,
    names: Sequence[str],
    *,
    samples: int = SAMPLES,
    memory: int = MEMORY,
    progress: Progress = quiet,
) -> Statistics:
    """Statistics of the named tensors over at most `samples` samples, taken evenly from the data.

    memory  bytes of activations that may come out of one run
    Raises InvalidArgument for names that the model does not have.
    """
    chosen = _chosen(data, samples)
    inside = {value.name for node in model.graph for value in node.outputs} | {v.name for v in model.graph.inputs}
    if unknown := [name for name in names if name not in inside]:
        raise InvalidArgument(f"no tensor of the model is named {', '.join(unknown[:5])}")
    extents = _extents(model, chosen, names, progress)
    good = [name for name in names if name in extents and extents[name].finite]
    counters = {name: Counter(extents[name].largest) for name in good}
    groups = list(_groups(good, extents, memory))
    for number, group in enumerate(groups):
        with runner(model, group) as run:
            for done, sample in enumerate(chosen):
                progress("histograms", number * len(chosen) + done, len(groups) * len(chosen))
                found = run(sample)
                for name in group:
                    counters[name].add(found[name])
    progress("histograms", len(groups) * len(chosen), len(groups) * len(chosen))
    return Statistics(
        {name: counter.statistics() for name, counter in counters.items()},
        len(chosen),
        tuple(name for name in names if name not in counters),
    )


def _chosen(data: Calibration, samples: int) -> list[Arrays]:
    count = len(data)
    if count <= samples:
        return list(data)
    return [data.samples[index * count // samples] for index in range(samples)]


# ---- running ----


@contextmanager
def runner(model: ir.Model, names: Iterable[str]) -> Iterator[Run]:
    """The model in ONNX Runtime at FP32, answering these tensors (inputs included) instead of its outputs."""
    from penstock.engine.runtimes.onnxruntime import OnnxRuntime

    wanted = list(dict.fromkeys(names))
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    given = {value.name for value in copy.graph.inputs}
    copy.graph.outputs.clear()
    for name in wanted:
        if name not in given:
            value = values[name]
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            copy.graph.outputs.append(value)
    passed = [name for name in wanted if name in given]
    if not copy.graph.outputs:
        yield lambda sample: {name: sample[name] for name in passed}
        return
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        path = Path(folder) / "model.onnx"
        save(copy, path)
        runtime = OnnxRuntime.load(path, instances=1, threads=None)
        try:
            yield lambda sample: {**runtime.execute(sample), **{name: sample[name] for name in passed}}
        finally:
            runtime.close()


# ---- the first pass ----


@dataclass(slots=True)
class _Extent:
    low: float = math.inf
    high: float = -math.inf
    size: int = 0
    finite: bool = True

    @property
    def largest(self) -> float:
        return max(-self.low, self.high, 0.0)

    def add(self, low: float, high: float, size: int) -> None:
        self.size = max(self.size, size)
        if math.isfinite(low) and math.isfinite(high):
            self.low, self.high = min(self.low, low), max(self.high, high)
        else:
            self.finite = False


def _extents(model: ir.Model, chosen: Sequence[Arrays], names: Sequence[str], progress: Progress) -> dict[str, _Extent]:
    copy = raised(model)
    edit = Edit(copy)
    values = {value.name: value for value in copy.graph.inputs}
    values.update({value.name: value for node in copy.graph for value in node.outputs})
    watched = [name for name in names if name in values and values[name].dtype in (ir.DataType.FLOAT, None)]
    probes: dict[str, tuple[str, str, str]] = {}
    for name in watched:
        low = probe(edit, "ReduceMin", [values[name]], {"keepdims": 0})
        high = probe(edit, "ReduceMax", [values[name]], {"keepdims": 0})
        size = probe(edit, "Size", [values[name]], datatype=ir.DataType.INT64)
        probes[name] = (low.name or "", high.name or "", size.name or "")
    copy.graph.sort()
    extents = {name: _Extent() for name in watched}
    with runner(copy, [output for each in probes.values() for output in each]) as run:
        for done, sample in enumerate(chosen):
            progress("ranges", done, len(chosen))
            found = run(sample)
            for name, (least, most, count) in probes.items():
                if int(found[count]):
                    extents[name].add(float(found[least]), float(found[most]), int(found[count]))
    progress("ranges", len(chosen), len(chosen))
    return {name: extent for name, extent in extents.items() if extent.size}


def _groups(names: Sequence[str], extents: Mapping[str, _Extent], memory: int) -> Iterator[list[str]]:
    group: list[str] = []
    used = 0
    for name in names:
        size = 4 * extents[name].size
        if group and used + size > memory:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


# ---- the cache ----


def cached(
    folder: Path | None,
    model: ir.Model,
    data: Calibration,
    names: Sequence[str],
    *,
    samples: int = SAMPLES,
    memory: int = MEMORY,
    progress: Progress = quiet,
) -> Statistics:
    """`collect`, or what it found last time for the same model, data and tensors. A damaged file is made again.

    Without a folder, and for models that do not fit one file of 2 GiB, nothing is kept.
    """
    try:
        key = hashlib.sha256(to_bytes(model) if folder is not None else b"")
    except Unsupported:
        folder = None
    if folder is None:
        return collect(model, data, names, samples=samples, memory=memory, progress=progress)
    key.update(f"{data.digest} {samples} {BINS} {_VERSION} {json.dumps(list(names))}".encode())
    path = folder / f"statistics-{key.hexdigest()[:32]}.npz"
    found = read(path)
    if found is None:
        found = collect(model, data, names, samples=samples, memory=memory, progress=progress)
        write(path, found)
    return found


def write(path: Path, statistics: Statistics) -> None:
    """One file, complete or not there at all."""
    names = list(statistics.tensors)
    tensors = list(statistics.tensors.values())
    about = json.dumps({"names": names, "samples": statistics.samples, "skipped": list(statistics.skipped)})
    limits = [(each.minimum, each.maximum, each.histogram.limit, each.histogram.largest) for each in tensors]
    arrays: dict[str, NDArray[Any]] = {
        "about": np.frombuffer(about.encode(), np.uint8),
        "limits": np.array(limits, np.float64).reshape(-1, 4),
        "zeros": np.array([each.histogram.zeros for each in tensors], np.int64),
        "counts": np.array([each.histogram.counts for each in tensors], np.int64).reshape(-1, BINS),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Path) -> Statistics | None:
    """What `write` wrote; None when there is nothing readable."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            about = json.loads(archive["about"].tobytes())
            rows = zip(
                about["names"], archive["limits"].tolist(), archive["zeros"].tolist(), archive["counts"], strict=True
            )
            tensors = {
                str(name): TensorStatistics(low, high, Histogram(counts, limit, zeros, largest))
                for name, (low, high, limit, largest), zeros, counts in rows
            }
            return Statistics(tensors, int(about["samples"]), tuple(map(str, about["skipped"])))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
