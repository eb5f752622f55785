"""A program that takes exactly one shape, as a function of inputs with any number of rows: split, and the last part
padded, as an engine does it.

So that such a program can be judged as it will run, and at the price of its full batches: samples that follow each
other share a call. Called by verdicts.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.build.judging import Run
from penstock.engine.plan import Shapes
from penstock.engine.routing import beyond_rows
from penstock.engine.runtimes.base import padded
from penstock.errors import InvalidArgument

Arrays = Mapping[str, NDArray[Any]]


def fits(shapes: Shapes, samples: Iterable[Arrays], *, batched: bool) -> bool:
    """Whether a program of these shapes can run all samples, their rows apart where there are any."""
    if not batched:
        return all(_shapes(sample) == dict(shapes) for sample in samples)
    return all(beyond_rows(_shapes(sample)) == beyond_rows(shapes) for sample in samples)


def at_shapes(run: Run, shapes: Shapes, samples: Sequence[Arrays], *, batched: bool) -> Run:
    """`run`, which takes these shapes alone, for inputs of other numbers of rows.

    samples  what it will be asked about, in that order: they are run together, and their answers held. Anything else is
             run by itself, too.
    batched  whether dimension 0 of all inputs and outputs is rows.

    Raises InvalidArgument for inputs that don't fit.
    """
    rows = next(iter(shapes.values()))[0] if batched else 0
    places = {id(sample): at for at, sample in enumerate(samples)}
    known: dict[int, Arrays] = {}

    def answered(sample: Arrays) -> Arrays:
        if not fits(shapes, [sample], batched=batched):
            raise InvalidArgument(f"expected rows of {dict(shapes)}, got {_shapes(sample)}")
        if not batched:
            return run(sample)
        if id(sample) not in places:
            return _apart(run, rows, [sample])[0]
        if id(sample) not in known:
            few = _enough([each for each in samples[places[id(sample)] :] if id(each) not in known], rows)
            known.update(zip(map(id, few), _apart(run, rows, few), strict=True))
        return known[id(sample)]

    return answered


def _enough(samples: Sequence[Arrays], rows: int) -> list[Arrays]:
    """The first of them, as many as fill a call."""
    found: list[Arrays] = []
    for each in samples:
        if found and sum(map(_rows, found)) + _rows(each) > rows:
            break
        found.append(each)
    return found


def _apart(run: Run, rows: int, samples: Sequence[Arrays]) -> list[Arrays]:
    """The answer to each of them; as few calls as their rows fit in."""
    whole = {name: np.concatenate([each[name] for each in samples]) for name in samples[0]}
    count = _rows(whole)
    parts: list[Arrays] = []
    for first in range(0, count, rows):
        part = {name: array[first : first + rows] for name, array in whole.items()}
        parts.append(run({name: padded(array, rows) for name, array in part.items()}))
    answers: list[dict[str, NDArray[Any]]] = [{} for _ in samples]
    for name in parts[0]:
        found = np.concatenate([part[name] for part in parts])
        each, rest = divmod(len(found), rows * len(parts))
        if rest:
            raise InvalidArgument(f"output {name!r} has {len(found)} rows for {rows * len(parts)}: can't be padded")
        begin = 0
        for answer, sample in zip(answers, samples, strict=True):
            answer[name] = found[begin * each : (begin + _rows(sample)) * each]
            begin += _rows(sample)
    return list(answers)


def _rows(sample: Arrays) -> int:
    return len(next(iter(sample.values())))


def _shapes(sample: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in sample.items()}
