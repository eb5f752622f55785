"""What an engine is built for: the device asked for, or the best there is. Called by the driver."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from penstock.build.options import AUTO
from penstock.engine import gpus
from penstock.errors import Unsupported

CPU: Final = "cpu"


def target(device: str) -> str:
    """`cpu` or `cuda:N`; `auto` is the GPU that the environment names, or the first, where torch is there to drive it.

    Raises Unsupported for a GPU that can't be used.
    """
    able = importlib.util.find_spec("torch") is not None
    if device == CPU or (device == AUTO and not (able and gpus.gpus())):
        return CPU
    if not able:
        raise Unsupported(f"device {device}: torch drives GPUs and is not installed; pip install 'penstock[cuda]'")
    found = gpus.chosen() if device == AUTO else device
    if found not in {f"cuda:{each.number}" for each in gpus.gpus()}:
        there = ", ".join(f"cuda:{each.number} ({each.name})" for each in gpus.gpus()) or "no NVIDIA GPU"
        raise Unsupported(f"device {found}: there is {there} here; expected one that is, auto or cpu")
    return found


@contextmanager
def on(device: str) -> Iterator[None]:
    """This process and its children use that GPU meanwhile: the environment says so, and says what it said after."""
    before = os.environ.get(gpus.DEVICE)
    if device != CPU:
        os.environ[gpus.DEVICE] = device
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(gpus.DEVICE, None)
        else:
            os.environ[gpus.DEVICE] = before
