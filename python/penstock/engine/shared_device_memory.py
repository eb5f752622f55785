"""Memory of a GPU that another process shares through CUDA IPC, by the driver alone: no library is imported.

`open` maps what a handle of `cudaIpcGetMemHandle` names, `read` and `write` copy between it and addresses of this
process without holding the GIL, `close` gives it back. Ranges are the caller's to check against the size that was
opened. A client that frees its memory while it is open here breaks CUDA's rules for it: its requests fail or get
garbage. Called by the data plane for clients' CUDA shared memory.
"""

import ctypes
import itertools
import threading
from dataclasses import dataclass
from typing import Any, Final

from penstock.engine import gpus
from penstock.errors import ExecutionError, InvalidArgument, Unsupported

# Of cuda.h.
_HANDLE_BYTES: Final = 64
_LAZY_PEER_ACCESS: Final = 1


class _Handle(ctypes.Structure):
    """CUipcMemHandle, which is passed by value."""

    _fields_ = [("reserved", ctypes.c_char * _HANDLE_BYTES)]


@dataclass(frozen=True, slots=True)
class _Mapping:
    context: ctypes.c_void_p
    address: int


def available() -> bool:
    """Whether there is a GPU whose memory could be shared."""
    return bool(gpus.gpus())


class SharedDeviceMemory:
    """What is open. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._open: dict[int, _Mapping] = {}
        self._contexts: dict[int, ctypes.c_void_p] = {}

    def open(self, region: str, handle: bytes, device: int, byte_size: int) -> int:
        """A number by which the other calls know it.

        Raises InvalidArgument for a handle or device that is none, or less memory than `byte_size`; Unsupported without
        a driver.
        """
        if not available():
            raise Unsupported(f"CUDA shared memory region {region!r}: this server has no NVIDIA GPU")
        if not 0 <= device < len(gpus.gpus()):
            count = len(gpus.gpus())
            raise InvalidArgument(f"CUDA shared memory region {region!r}: device_id is {device}, there are {count}")
        context = self._context(device)
        address = ctypes.c_uint64()
        raw = _Handle()
        ctypes.memmove(ctypes.byref(raw), handle, _HANDLE_BYTES)
        driver = _driver()
        _current(context)
        if status := driver.cuIpcOpenMemHandle_v2(ctypes.byref(address), raw, _LAZY_PEER_ACCESS):
            raise InvalidArgument(
                f"CUDA shared memory region {region!r}: the handle can't be opened on device {device} "
                f"({_words(status)}); expected that of another process's cudaMalloc, on the same GPU"
            )
        mapping = _Mapping(context, int(address.value))
        try:
            _check_size(region, mapping, byte_size)
        except BaseException:
            driver.cuIpcCloseMemHandle(address)
            raise
        with self._lock:
            number = next(self._numbers)
            self._open[number] = mapping
        return number

    def read(self, number: int, offset: int, address: int, length: int) -> None:
        """Copy to this process's memory at `address`."""
        mapping = self._open[number]
        _current(mapping.context)
        source = ctypes.c_uint64(mapping.address + offset)
        _call("cuMemcpyDtoH_v2", ctypes.c_void_p(address), source, ctypes.c_size_t(length))

    def write(self, number: int, offset: int, address: int, length: int) -> None:
        """Copy from this process's memory at `address`; the client sees it once this has returned."""
        mapping = self._open[number]
        _current(mapping.context)
        target = ctypes.c_uint64(mapping.address + offset)
        _call("cuMemcpyHtoD_v2", target, ctypes.c_void_p(address), ctypes.c_size_t(length))
        # From pageable memory the copy may still be under way to the device when the call returns; and the client waits
        # for the answer only, not for our stream.
        _call("cuStreamSynchronize", ctypes.c_void_p())

    def close(self, number: int) -> None:
        with self._lock:
            mapping = self._open.pop(number)
        _current(mapping.context)
        _call("cuIpcCloseMemHandle", ctypes.c_uint64(mapping.address))

    def _context(self, device: int) -> ctypes.c_void_p:
        """The primary context, which torch uses, too. Kept as long as the process."""
        with self._lock:
            if device not in self._contexts:
                ordinal, context = ctypes.c_int(), ctypes.c_void_p()
                _call("cuDeviceGet", ctypes.byref(ordinal), device)
                _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ordinal)
                self._contexts[device] = context
            return self._contexts[device]


def _check_size(region: str, mapping: _Mapping, byte_size: int) -> None:
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(mapping.address))
    left = int(base.value) + int(size.value) - mapping.address
    if byte_size > left:
        raise InvalidArgument(
            f"CUDA shared memory region {region!r}: expected memory of {byte_size} bytes, the handle names {left}"
        )


def _current(context: ctypes.c_void_p) -> None:
    """Of this thread: threads of the data plane come and go without one."""
    _call("cuCtxSetCurrent", context)


def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")  # there, or nothing would have been opened


def _call(name: str, *arguments: Any) -> None:
    if status := getattr(_driver(), name)(*arguments):
        raise ExecutionError(f"CUDA shared memory: {name} failed ({_words(status)})")


def _words(status: int) -> str:
    text = ctypes.c_char_p()
    _driver().cuGetErrorString(status, ctypes.byref(text))
    return f"error {status}, {(text.value or b'unknown').decode()}"
