"""The timing cache: what was measured before on this machine, so that the next build does not measure it again.

One JSON file, replaced as a whole, so that a reader sees the old or the new one. It can change which tactic is tried
first and which is not tried at all, and nothing else: what it holds is numbers and words, each checked when read, and
an engine still passes the gate. A file of ours that is damaged or of another version is left out with a warning in the
log, and replaced by the next save; any other file is refused before work begins, and never replaced. Lost candidates
are kept too: trying a combination that takes eleven seconds a call again would cost the next build the same time.
Beside times it keeps what was tuned for a GPU: which implementation executes each step. Called by `race`, and by
`build` for the choices.

The key of an entry is a hash over the graph's bytes, the shapes and element types of the inputs, the tactic, and the
machine with its libraries' versions: whatever changes there is a miss, and no entry is ever wrong for being old.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock.engine.cuda import choices as chosen
from penstock.engine.cuda.choices import Choices
from penstock.engine.fingerprint import here
from penstock.engine.plan import Fingerprint, Shapes, Tactic, tactic_to_json
from penstock.engine.runtimes import onnx_file
from penstock.errors import InvalidArgument, ModelLoadError, UsageError

_LOG = logging.getLogger(__name__)

_FORMAT: Final = "penstock-timing-cache-1"
_BEGINNING: Final = b'{"format": "penstock-timing-cache-'
"""Of every file that any version wrote: by it even a damaged one is known as ours."""

# Some 200 bytes each: 2 MB. A build of one model with three buckets makes about fifty.
MAX_ENTRIES: Final = 10_000
MAX_FILE_BYTES: Final = 16 * 2**20
_REASON_CHARS: Final = 1000
_HASH_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Timing:
    """A candidate that ran."""

    median_us: float
    spread_us: float
    samples: int
    seconds: float
    """Compilation."""

    bytes: int
    confirmed: bool


@dataclass(frozen=True, slots=True)
class Loss:
    """A candidate that did not run, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """What executes each step of a graph on a GPU, as tuning found it."""

    choices: Choices


Entry = Timing | Loss | Chosen


class TimingCache:
    """Entries of all models and machines that share a file. Without a path it lives in memory only.

    machine  what keys are made for; None: this one.
    """

    def __init__(self, path: Path | None = None, machine: Fingerprint | None = None) -> None:
        """Raises UsageError for a file that is no timing cache."""
        self.path = path
        self.warning = ""
        """Why the file was not used, for the evidence; empty when it was, or when there was none."""

        self._machine = _machine(machine or here())
        self._entries: dict[str, Entry] = self._read()
        self._changed: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries[key] = self._entries.pop(key)  # the order is that of use: what is unused goes first
        return entry

    def put(self, key: str, entry: Entry) -> None:
        self._entries.pop(key, None)
        self._entries[key] = self._changed[key] = entry

    def key(self, graph: str, shapes: Shapes, datatypes: Mapping[str, str], tactic: Tactic) -> str:
        """Name of an entry. `graph` is the content's hash, of a whole form (`content_hash`) or of a region."""
        parts = {
            "graph": graph,
            "inputs": {name: [datatypes.get(name, ""), *shape] for name, shape in shapes.items()},
            "tactic": tactic_to_json(tactic),
            "machine": self._machine,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def key_of_choices(self, steps: str, width: str) -> str:
        """Name of an entry with choices. `steps`: a hash of the graph and of our kernels; `width` of the numbers."""
        parts = {"choices": steps, "width": width, "machine": self._machine}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def save(self) -> None:
        """Write what was learnt, with what others wrote meanwhile. A failure is logged and no more: it is a cache."""
        if self.path is None or not self._changed:
            return
        try:
            found = self._read()
        except UsageError as error:  # another file took the name meanwhile
            _LOG.warning("timing cache %s is not saved: %s", self.path.name, error)
            return
        # What others wrote since; of two builds that save at the same instant the later one's entries stay.
        others = {key: entry for key, entry in found.items() if key not in self._entries}
        merged = {**others, **self._entries}
        kept = dict(list(merged.items())[-MAX_ENTRIES:])
        text = json.dumps({"format": _FORMAT, "entries": {key: _to_json(each) for key, each in kept.items()}})
        try:
            _replace(self.path, text)
        except OSError as error:
            _LOG.warning("timing cache %s is not saved: %s", self.path.name, error.strerror)
            return
        self._entries = kept
        self._changed.clear()

    def _read(self) -> dict[str, Entry]:
        if self.path is None or not ours(self.path):
            return {}
        try:
            if self.path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
            data = json.loads(self.path.read_bytes())
            if not isinstance(data, dict) or data.get("format") != _FORMAT or not isinstance(data.get("entries"), dict):
                raise ValueError(f"not of format {_FORMAT}")
        except FileNotFoundError:  # since it was looked at
            return {}
        except (OSError, ValueError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            self.warning = f"timing cache {self.path.name} is left out: {why}"
            _LOG.warning("%s", self.warning)
            return {}
        found = {key: entry for key, each in data["entries"].items() if (entry := _from_json(key, each)) is not None}
        if len(found) < len(data["entries"]):
            self.warning = f"timing cache {self.path.name}: {len(data['entries']) - len(found)} entries are damaged"
            _LOG.warning("%s and left out", self.warning)
        return found


def ours(path: Path) -> bool:
    """Whether there is a timing cache, damaged or not; False where there is no file, or an empty one.

    Raises UsageError for what else is there: saving would replace it.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _refused(path, "this is no plain file")
        with path.open("rb") as file:
            beginning = file.read(len(_BEGINNING))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _refused(path, f"this can't be read: {error.strerror}") from None
    if beginning and beginning != _BEGINNING:
        raise _refused(path, "this is another kind of file, and is left as it is")
    return bool(beginning)


def _refused(path: Path, why: str) -> UsageError:
    return UsageError.of("timing_cache", path.name, f"a timing cache, or a file that does not exist yet; {why}")


def content_hash(path: Path) -> str:
    """SHA-256 of a model file and of the data files beside it that it names."""
    digest = hashlib.sha256()
    files = [path]
    if path.suffix == ".onnx":
        with contextlib.suppress(ModelLoadError):  # a library will say what is wrong with it
            files += [path.parent / name for name in sorted(onnx_file.inspect(path).external)]
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _machine(fingerprint: Fingerprint) -> dict[str, Any]:
    return {
        "device": fingerprint.device,
        "model": fingerprint.model,
        "features": sorted(fingerprint.features),
        "cores": fingerprint.cores,
        "libraries": dict(fingerprint.libraries),
    }


def _to_json(entry: Entry) -> dict[str, Any]:
    if isinstance(entry, Loss):
        return {"lost": entry.reason[:_REASON_CHARS]}
    if isinstance(entry, Chosen):
        return {"choices": json.loads(chosen.to_json(entry.choices))}
    return {
        "median_us": entry.median_us,
        "spread_us": entry.spread_us,
        "samples": entry.samples,
        "seconds": entry.seconds,
        "bytes": entry.bytes,
        "confirmed": entry.confirmed,
    }


def _from_json(key: str, data: object) -> Entry | None:
    """The entry, or None for anything that `_to_json` can't have written."""
    if len(key) != _HASH_CHARS or not isinstance(data, dict):
        return None
    if data.keys() == {"lost"}:
        reason = data["lost"]
        return Loss(reason) if isinstance(reason, str) and 0 < len(reason) <= _REASON_CHARS else None
    if data.keys() == {"choices"}:
        return _chosen(data["choices"])
    if data.keys() != {"median_us", "spread_us", "samples", "seconds", "bytes", "confirmed"}:
        return None
    median, spread, seconds = (_number(data[name]) for name in ("median_us", "spread_us", "seconds"))
    samples, size = data["samples"], data["bytes"]
    whole = type(samples) is int and samples > 0 and type(size) is int and size >= 0
    if not whole or median is None or median <= 0 or spread is None or seconds is None:
        return None
    return Timing(median, spread, samples, seconds, size, data["confirmed"] is True)


def _chosen(data: object) -> Chosen | None:
    try:
        return Chosen(chosen.from_json(json.dumps(data)))
    except InvalidArgument:
        return None


def _number(value: object) -> float | None:
    if type(value) not in (int, float):
        return None
    assert isinstance(value, int | float)
    try:
        return float(value) if math.isfinite(value) and value >= 0 else None
    except OverflowError:  # an integer of a thousand digits
        return None


def _replace(path: Path, text: str) -> None:
    """Write beside the file and rename over it, the bytes on the disk before the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
