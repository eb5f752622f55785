"""What an engine is built for: the device asked for, or the best there is. Called by the driver."""

import importlib.util
import os
from typing import Final

from penstock.engine.gpus import gpus
from penstock.errors import Unsupported

CPU: Final = "cpu"
_DEVICE: Final = "PENSTOCK_DEVICE"  # as the runtime `cuda` reads it, here and in child processes


def target(device: str) -> str:
    """`cpu` or `cuda:N`; `auto` is the first GPU where there is one and torch to drive it.

    Raises Unsupported for a GPU that can't be used; the GPU is also that of this process and its children from now on.
    """
    able = importlib.util.find_spec("torch") is not None
    if device == CPU or (device == "auto" and not (able and gpus())):
        return CPU
    if not able:
        raise Unsupported(f"device {device}: torch drives GPUs and is not installed; pip install 'penstock[cuda]'")
    found = "cuda:0" if device == "auto" else device
    if int(found.partition(":")[2]) >= len(gpus()):
        there = ", ".join(f"cuda:{each.number} ({each.name})" for each in gpus()) or "no NVIDIA GPU"
        raise Unsupported(f"device {device}: there is {there} here; expected one that is, auto or cpu")
    os.environ[_DEVICE] = found
    return found
