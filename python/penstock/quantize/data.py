"""Calibration data: what the activations of a real call look like, from a file, a folder, a function or an iterable.

    data.npz          arrays named after the model's inputs. Where an array has as many axes as the input, axis 0 is the
                      batch and every row is a sample (a fixed batch of b takes b rows); with one axis more, axis 0
                      counts the samples. `NAME__KEY` (`x__0`, `x__1`, or any word): one sample each, of its own shape
    folder            each `.npz` as above; each `.npy` is one sample of a model with one input, `NAME__KEY.npy` of
    several
    module:function   a function without arguments that answers an iterable of {input: array}; the working directory
                      is on the path. The one form that runs code: whoever names it could run it anyway
    an iterable       of {input: array}, each a whole input of the model

Everything is read into memory (at most `limit` samples), checked against the model's inputs, and hashed: the digest
goes into evidence and into cache keys. Data that looks like noise is refused, since ranges found on noise are wrong for
pictures and nothing later would notice. Called by build.
"""

import hashlib
import importlib
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidArgument, NotFound, PenstockError
from penstock.quantize import randomness
from penstock.tensors import TensorSpec, bfloat16

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Source = str | Path | Iterable[Mapping[str, Any]]

# More than any calibrator gains from; 512 pictures of 3x224x224 are 308 MB.
LIMIT: Final = 512
_SEPARATOR: Final = "__"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Samples that fit the model; each is what one call gets."""

    samples: tuple[Arrays, ...]
    digest: str = field(default="")
    """SHA-256 of names, types, shapes and values, in hexadecimal."""

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", _digest(self.samples))

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Arrays]:
        return iter(self.samples)

    def split(self, share: float = 0.8) -> tuple["Calibration", "Calibration"]:
        """Two disjoint parts, the second taken evenly from the whole; of a single sample both parts are that one."""
        count = len(self.samples)
        if count == 1:
            return self, self
        held = max(1, min(count - 1, round(count * (1 - share))))
        chosen = {int((index + 0.5) * count / held) for index in range(held)}
        first = tuple(sample for index, sample in enumerate(self.samples) if index not in chosen)
        second = tuple(sample for index, sample in enumerate(self.samples) if index in chosen)
        return Calibration(first), Calibration(second)


def load(
    source: Source, inputs: Sequence[TensorSpec], *, limit: int = LIMIT, allow_random: bool = False
) -> Calibration:
    """Read at most `limit` samples and check them against the model's inputs.

    Raises NotFound (no such file, module or function) and InvalidArgument (names, types, shapes, NaN or infinity,
    no samples, data that looks random while `allow_random` is False).
    """
    samples: list[Arrays] = []
    for raw in _read(source, inputs):
        if len(samples) == limit:
            break
        samples.append(_checked(raw, inputs, len(samples)))
    if not samples:
        raise InvalidArgument("calibration data holds no samples; give at least one, some hundred are better")
    if not allow_random:
        for spec in inputs:
            reason = randomness.looks_random([sample[spec.name] for sample in samples if spec.name in sample])
            if reason:
                raise InvalidArgument(
                    f"calibration data of input {spec.name!r} looks like noise ({reason}); ranges found on it would be "
                    "wrong for real inputs: give real samples, or allow random data explicitly"
                )
    return Calibration(tuple(samples))


# ---- reading ----


def _read(source: Source, inputs: Sequence[TensorSpec]) -> Iterator[Mapping[str, Any]]:
    if not isinstance(source, str | Path):
        yield from _mappings(source, "calibration data")
        return
    path = Path(source)
    if path.is_dir():
        yield from _folder(path, inputs)
    elif path.is_file():
        if path.suffix == ".npy":
            yield from _rows({_only(inputs, path.name).name: _load_npy(path)}, inputs, path.name)
        else:
            yield from _archive(path, inputs)
    elif isinstance(source, str) and ":" in source and "/" not in source:
        yield from _function(source)
    else:
        raise NotFound(
            f"calibration data {path.name!r} does not exist; expected a .npz file, a folder, or MODULE:FUNCTION"
        )


def _mappings(items: object, what: str) -> Iterator[Mapping[str, Any]]:
    if isinstance(items, Mapping) or not isinstance(items, Iterable):
        raise InvalidArgument(f"{what} is a {type(items).__name__}, expected an iterable of {{input name: array}}")
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise InvalidArgument(
                f"{what}: sample {index} is a {type(item).__name__}, expected a mapping {{input name: array}}"
            )
        yield item


def _function(source: str) -> Iterator[Mapping[str, Any]]:
    module, _, name = source.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), name, None)
        if not callable(function):
            raise NotFound(f"calibration {source!r}: module {module!r} has no function {name!r}")
        yield from _mappings(function(), f"calibration {source!r}")
    except ModuleNotFoundError as error:
        raise NotFound(f"calibration {source!r}: {error}; expected MODULE:FUNCTION, importable from here") from error
    except PenstockError:
        raise
    except Exception as error:
        raise InvalidArgument(f"calibration {source!r} failed: {type(error).__name__}: {error}") from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _folder(path: Path, inputs: Sequence[TensorSpec]) -> Iterator[Mapping[str, Any]]:
    parts: dict[str, dict[str, Path]] = {}
    for file in sorted(each for each in path.iterdir() if each.suffix in (".npy", ".npz") and each.is_file()):
        if file.suffix == ".npz":
            yield from _archive(file, inputs)
        elif len(inputs) == 1:
            yield {inputs[0].name: _load_npy(file)}
        else:
            name, separator, key = file.stem.partition(_SEPARATOR)
            if not separator:
                raise InvalidArgument(f"{file.name}: the model has {len(inputs)} inputs, expected NAME__KEY.npy")
            parts.setdefault(key, {})[name] = file
    for files in parts.values():
        yield {name: _load_npy(file) for name, file in files.items()}


def _archive(path: Path, inputs: Sequence[TensorSpec]) -> Iterator[Mapping[str, Any]]:
    try:
        # Opened here: NumPy leaves a file open that turns out to be none of its own.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                raise InvalidArgument(f"{path.name} is no .npz archive")
            names = list(archive.files)
            known = {spec.name for spec in inputs}
            keyed: dict[str, dict[str, str]] = {}
            whole: list[str] = []
            for name in names:
                stem, separator, key = name.rpartition(_SEPARATOR)
                if name not in known and separator and stem in known:
                    keyed.setdefault(key, {})[stem] = name
                else:
                    whole.append(name)
            if whole:
                yield from _rows({name: archive[name] for name in whole}, inputs, path.name)
            for members in keyed.values():
                yield {stem: archive[name] for stem, name in members.items()}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidArgument(f"{path.name} is no readable .npz archive: {_reason(error)}") from None


def _load_npy(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            array: Array = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InvalidArgument(f"{path.name} is no readable .npy array: {_reason(error)}") from None
    return array


def _reason(error: Exception) -> str:
    """What NumPy says, but for its advice to trust the file: pickles are code, and take whatever is no array."""
    return "it holds something else than arrays of numbers" if "pickle" in str(error) else str(error)


def _only(inputs: Sequence[TensorSpec], name: str) -> TensorSpec:
    if len(inputs) != 1:
        raise InvalidArgument(f"{name} is one array, the model has {len(inputs)} inputs; give a .npz with their names")
    return inputs[0]


def _rows(arrays: Arrays, inputs: Sequence[TensorSpec], where: str) -> Iterator[Arrays]:
    """Samples from arrays that hold many of them along axis 0."""
    specs = {spec.name: spec for spec in inputs}
    cut: dict[str, list[Array]] = {}
    for name, array in arrays.items():
        spec = specs.get(name)
        if spec is None:
            raise InvalidArgument(f"{where}: unexpected array {name!r}, the model has {', '.join(map(str, inputs))}")
        if array.ndim == len(spec.shape) + 1:
            cut[name] = list(array)
            continue
        if array.ndim != len(spec.shape) or array.ndim == 0:
            raise InvalidArgument(
                f"{where}: {name!r} has shape {list(array.shape)}, the model takes {list(spec.shape)}; expected as "
                "many axes, or one more that counts the samples"
            )
        batch = max(1, spec.shape[0])
        if len(array) % batch:
            raise InvalidArgument(f"{where}: {name!r} has {len(array)} rows, the model takes {batch} at once")
        cut[name] = [array[first : first + batch] for first in range(0, len(array), batch)]
    counts = {len(samples) for samples in cut.values()}
    if len(counts) > 1:
        found = ", ".join(f"{name} {len(samples)}" for name, samples in cut.items())
        raise InvalidArgument(f"{where}: inputs have different numbers of samples: {found}")
    for index in range(next(iter(counts), 0)):
        yield {name: samples[index] for name, samples in cut.items()}


# ---- checking ----


def _checked(raw: Mapping[str, Any], inputs: Sequence[TensorSpec], index: int) -> Arrays:
    expected = {spec.name: spec for spec in inputs}
    for name in raw:
        if name not in expected:
            raise InvalidArgument(
                f"sample {index}: unexpected input {name!r}, the model has {', '.join(map(str, inputs))}"
            )
    return {
        spec.name: _fitted(np.asarray(raw[spec.name]), spec, index) for spec in inputs if _present(spec, raw, index)
    }


def _present(spec: TensorSpec, raw: Mapping[str, Any], index: int) -> bool:
    if spec.name in raw:
        return True
    if not spec.optional:
        raise InvalidArgument(f"sample {index}: input {spec.name!r} is missing")
    return False


def _fitted(array: Array, spec: TensorSpec, index: int) -> Array:
    where = f"sample {index}, input {spec.name!r}"
    if not spec.accepts(array.shape):
        raise InvalidArgument(f"{where} has shape {list(array.shape)}, the model takes {list(spec.shape)}")
    if array.size == 0:
        raise InvalidArgument(f"{where} is empty")
    if spec.datatype == "BYTES":
        return array.astype(object)
    if spec.datatype == "BF16":
        words = array if array.dtype == np.uint16 else array.astype(bfloat16()).view(np.uint16)
        return np.ascontiguousarray(words)
    if array.dtype != spec.dtype:
        if array.dtype.kind not in "biuf" or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            raise InvalidArgument(
                f"{where} is an array of {array.dtype.name}, the model takes {spec.datatype}; convert it"
            )
        converted = array.astype(spec.dtype)
        if array.dtype.kind in "iu" and converted.dtype.kind in "iu" and not np.array_equal(converted, array):
            raise InvalidArgument(f"{where} holds numbers that do not fit {spec.datatype}")
        array = converted
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidArgument(f"{where} holds NaN or infinity; every value must be finite")
    return np.array(array, order="C")  # a copy: generators like to reuse their buffers


def _digest(samples: Iterable[Arrays]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        for name in sorted(sample):
            array = sample[name]
            digest.update(f"{name} {array.dtype.name} {array.shape} ".encode())
            if array.dtype == object:
                for item in array.reshape(-1):
                    data = item if isinstance(item, bytes) else str(item).encode()
                    digest.update(b"%d " % len(data) + data)
            else:
                digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(b";")
    return digest.hexdigest()
