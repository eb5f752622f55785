"""How far a candidate's outputs are from the reference's: numbers, and no opinion on whether they will do.

`compare_outputs` looks at one input's outputs, `worst` folds many inputs into one row per output. Everything is
computed in float64. Called by the gate, by sensitivity search and by `penstock compare`; imports NumPy and the nouns.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.engine.likeness import cosine
from penstock.tensors import TensorSpec, bfloat16

Array = NDArray[Any]
Arrays = Mapping[str, Array]

# A last axis of at least this many numbers may be classes, of which the largest is looked for.
_CLASSES: Final = 2


@dataclass(frozen=True, slots=True)
class OutputError:
    """One output of the candidate against the reference's."""

    output: str

    cosine: float | None = None
    """Least cosine of a row (dimension 0) with the reference's row; None for outputs that are not floating point.
    Two zero rows: 1; one of them: 0. Rows of a single number have no direction, so the batch is one vector then; where
    that is a single number, too, it is 1 - |c - r| / max(|c|, |r|), so that an error of scale is seen."""

    maximum_absolute: float | None = None
    """max |c - r|. None unless numbers were compared."""

    maximum_relative: float | None = None
    """max |c - r| / max |r|: relative to the output's own range, since a quotient by element is noise near zero."""

    snr_db: float | None = None
    """10 log10(sum r² / sum (c - r)²); infinite when nothing differs, or when only the noise is not zero: -infinite."""

    agreement: float | None = None
    """Floats whose last axis has two values or more: share of positions with the same largest index along it (top-1).
    Other floats: None. Integers, booleans and bytes: share of equal values."""

    compared: int = 0
    """Positions that `agreement` is a share of."""

    fault: str = ""
    """Why the outputs can't be compared, or must not pass whatever the numbers are; empty when there is nothing.
    NaN anywhere, an infinity that the other has not, a wrong shape, a missing output."""

    @property
    def numeric(self) -> bool:
        """Judged by its cosine; the others by their agreement."""
        return self.cosine is not None


def compare_outputs(reference: Arrays, candidate: Arrays, specs: Sequence[TensorSpec] = ()) -> tuple[OutputError, ...]:
    """One row per output of the reference, in its order, and one for each that only the candidate has.

    specs  the outputs' signature where it is known: tells BF16, which travels as uint16, from integers.

    Infinities that both have at the same place with the same sign (masks) are left out of the numbers. Never raises for
    what arrays hold; a difference in kind is a `fault`.
    """
    datatypes = {spec.name: spec.datatype for spec in specs}
    found = [
        _compare(name, _computable(array, datatypes.get(name)), _computable(candidate[name], datatypes.get(name)))
        if name in candidate
        else OutputError(name, fault="the candidate has no such output")
        for name, array in reference.items()
    ]
    found += [
        OutputError(name, fault="the reference has no such output") for name in candidate if name not in reference
    ]
    return tuple(found)


def worst(samples: Iterable[Sequence[OutputError]]) -> tuple[OutputError, ...]:
    """One row per output over all samples: the least cosine and SNR, the largest differences, the first fault.

    Agreement is a share of positions, and one sample has few: it is taken over the positions of all samples.
    """
    found: dict[str, OutputError] = {}
    for errors in samples:
        for error in errors:
            known = found.get(error.output)
            found[error.output] = error if known is None else _merge(known, error)
    return tuple(found.values())


def _merge(first: OutputError, second: OutputError) -> OutputError:
    compared = first.compared + second.compared
    shares = [(each.agreement, each.compared) for each in (first, second) if each.agreement is not None]
    return replace(
        first,
        cosine=_least(first.cosine, second.cosine),
        maximum_absolute=_most(first.maximum_absolute, second.maximum_absolute),
        maximum_relative=_most(first.maximum_relative, second.maximum_relative),
        snr_db=_least(first.snr_db, second.snr_db),
        agreement=sum(share * count for share, count in shares) / compared if compared else None,
        compared=compared,
        fault=first.fault or second.fault,
    )


def _least(first: float | None, second: float | None) -> float | None:
    known = [each for each in (first, second) if each is not None]
    return min(known, default=None)


def _most(first: float | None, second: float | None) -> float | None:
    known = [each for each in (first, second) if each is not None]
    return max(known, default=None)


def _computable(array: Array, datatype: str | None) -> Array:
    array = np.asarray(array)
    if datatype == "BF16" and array.dtype == np.uint16:
        return array.view(bfloat16())
    return array


def _floating(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _compare(name: str, reference: Array, candidate: Array) -> OutputError:
    if reference.shape != candidate.shape:
        return OutputError(name, fault=f"shape {list(candidate.shape)} instead of {list(reference.shape)}")
    if _floating(reference) != _floating(candidate):
        return OutputError(name, fault=f"{candidate.dtype.name} values instead of {reference.dtype.name}")
    if not _floating(reference):
        return _compare_exact(name, reference, candidate)
    return _compare_floats(name, reference.astype(np.float64), candidate.astype(np.float64))


def _compare_exact(name: str, reference: Array, candidate: Array) -> OutputError:
    equal = np.asarray(reference == candidate)
    share = float(np.mean(equal)) if equal.size else 1.0
    if reference.dtype.kind not in "iu" or candidate.dtype.kind not in "iu" or not equal.size:
        return OutputError(name, agreement=share, compared=equal.size)
    # As Python integers: the difference of two 64-bit ones may need 65 bits.
    differing = zip(reference[~equal].tolist(), candidate[~equal].tolist(), strict=True)
    furthest = max((abs(int(a) - int(b)) for a, b in differing), default=0)
    return OutputError(name, maximum_absolute=float(furthest), agreement=share, compared=equal.size)


def _compare_floats(name: str, reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> OutputError:
    fault = _not_finite(reference, candidate)
    known = np.isfinite(reference) & np.isfinite(candidate)
    r, c = np.where(known, reference, 0.0), np.where(known, candidate, 0.0)
    noise = c - r
    largest = float(np.max(np.abs(r), initial=0.0))
    furthest = float(np.max(np.abs(noise), initial=0.0))
    agreement, compared = _top_1(reference, candidate)
    return OutputError(
        name,
        cosine=cosine(r, c),
        maximum_absolute=furthest,
        maximum_relative=furthest / largest if largest else (math.inf if furthest else 0.0),
        snr_db=_snr_db(r, noise),
        agreement=agreement,
        compared=compared,
        fault=fault,
    )


def _not_finite(reference: Array, candidate: Array) -> str:
    for array, whose in ((candidate, "the candidate"), (reference, "the reference")):
        if count := int(np.isnan(array).sum()):
            return f"NaN in {count} of {array.size} values of {whose}"
    unlike = (np.isinf(reference) | np.isinf(candidate)) & (reference != candidate)
    if count := int(unlike.sum()):
        return f"an infinity on one side only in {count} of {reference.size} values"
    return ""


def _snr_db(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> float:
    # Hypot-like norms, for the same reason as above.
    top = max(float(np.max(np.abs(signal), initial=0.0)), float(np.max(np.abs(noise), initial=0.0)))
    if top == 0 or not noise.any():
        return math.inf
    loud, quiet = float(np.linalg.norm(signal / top)), float(np.linalg.norm(noise / top))
    if loud == 0:
        return -math.inf
    return 20 * math.log10(loud / quiet) if quiet else math.inf


def _top_1(reference: Array, candidate: Array) -> tuple[float | None, int]:
    if reference.ndim == 0 or reference.shape[-1] < _CLASSES or reference.size == 0:
        return None, 0
    equal = np.argmax(reference, axis=-1) == np.argmax(candidate, axis=-1)
    return float(np.mean(equal)), int(np.size(equal))
