"""Runs the warm-up samples of a model on one of its instances, before the version takes requests.

It calls the instance as the data plane does, in memory that the instance lends where the batch fits, and past the
queue: no statistics and no metric sees it. Called by `hosting`, on the instance's own thread, so that what a library or
a function keeps for each thread is there for the first request.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from penstock.backends.base import Array, Instance
from penstock.errors import ModelLoadError, PenstockError, Unavailable
from penstock.repository import Model

log = logging.getLogger("penstock")

_MESSAGE_CHARS: Final = 500  # of a model's own words


def warm_up(
    model: Model, number: int, instance: Instance, memory: Mapping[str, Array], stopped: Callable[[], bool]
) -> None:
    """Run every sample as often as it says. `memory`: what the instance lends, by input.

    Raises ConfigError for a sample that can't be made, ModelLoadError for one that the model fails on, Unavailable when
    `stopped` says that nobody wants the model any more; it is asked before each execution.
    """
    for sample in model.warmup:
        row = sample.row()
        for _ in range(sample.count):
            if stopped():
                raise Unavailable(f"model {model.name!r} is not wanted any more: its warm-up was ended")
            batch = {name: _laid(array, memory.get(name)) for name, array in sample.batch(row).items()}
            try:
                instance.execute(batch)
            except BaseException as error:  # a function that exits fails as any other does
                what = f"model {model.name!r} version {model.version}: model_warmup sample {sample.name}"
                log.error("%s failed on instance %d", what, number, exc_info=error)
                inputs = ", ".join(f"{name!r} {list(array.shape)}" for name, array in batch.items())
                raise ModelLoadError(
                    f"{what} with inputs {inputs} failed on instance {number}: {_reason(error)}"
                ) from error


def _laid(array: Array, lent: Array | None) -> Array:
    """The same rows where the data plane would lay them out."""
    if lent is None or array.dtype.hasobject or not 0 < array.nbytes <= lent.nbytes:
        return array
    place = np.frombuffer(lent, array.dtype, array.size).reshape(array.shape)
    np.copyto(place, array)
    return place


def _reason(error: BaseException) -> str:
    """For clients: no path of this host, which the text of an OSError holds."""
    if isinstance(error, PenstockError):
        return error.message[:_MESSAGE_CHARS]
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__}: {text}"[:_MESSAGE_CHARS]
