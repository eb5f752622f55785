"""The NVIDIA GPUs of this machine, asked of the driver itself: no library is imported, and none need be installed.

Promises: an empty tuple where there is no driver or no GPU, never an exception. Order and numbers are CUDA's own, as
`cuda:N` counts them (CUDA_VISIBLE_DEVICES included). Called by fingerprints and by the builder.
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

# Of cuda.h.
_MULTIPROCESSORS: Final = 16
_MAJOR: Final = 75
_MINOR: Final = 76
_NAME_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class Gpu:
    number: int
    name: str
    """`NVIDIA H200`."""

    capability: int
    """90 for compute capability 9.0."""

    multiprocessors: int
    bytes: int
    """Of its memory."""

    driver: str
    """The newest CUDA version that the driver runs: `13.0`."""


DEVICE: Final = "PENSTOCK_DEVICE"
"""The environment variable that says on which GPU engines are loaded: `cuda:1`. Without it the first."""


def chosen() -> str:
    """`cuda:N` as the environment has it; it is for whoever uses the GPU to say that there is none."""
    return os.environ.get(DEVICE, "").strip().lower() or "cuda:0"


@cache
def gpus() -> tuple[Gpu, ...]:
    """Asked once: GPUs neither come nor go while a process runs."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count, version = ctypes.c_int(), ctypes.c_int()
    if library.cuInit(0) or library.cuDriverGetVersion(ctypes.byref(version)):
        return ()
    if library.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    found = (_gpu(library, number, driver) for number in range(count.value))
    return tuple(each for each in found if each is not None)


def _gpu(library: Any, number: int, driver: str) -> Gpu | None:
    device, size = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    if library.cuDeviceGet(ctypes.byref(device), number):
        return None
    if library.cuDeviceGetName(name, _NAME_BYTES, device) or library.cuDeviceTotalMem_v2(ctypes.byref(size), device):
        return None
    major, minor, multiprocessors = (_attribute(library, device, each) for each in (_MAJOR, _MINOR, _MULTIPROCESSORS))
    return Gpu(
        number, name.value.decode(errors="replace"), 10 * major + minor, multiprocessors, int(size.value), driver
    )


def _attribute(library: Any, device: ctypes.c_int, attribute: int) -> int:
    value = ctypes.c_int()
    library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value
