"""The stack on which a thread takes signals (sigaltstack), kept as it was while a library is loaded.

OpenVINO's CPU plug-in gives the thread that loads it a stack for signals of its own, and frees that memory when it is
unloaded. With two of its cores in one process, as when a model's own code uses the library too, a thread can be left
with the freed one: the next signal, such as Ctrl-C, then ends the process as a crash would. What the plug-in needs the
large stack for, the permission to use AMX, is given once and for all threads.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_DISABLED: Final = 2  # SS_DISABLE


class _Stack(ctypes.Structure):
    """stack_t of signal.h."""

    _fields_ = (("memory", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


_KEPT: Final[list[ctypes.Array[ctypes.c_char]]] = []


@contextmanager
def kept() -> Iterator[None]:
    """The calling thread has its stack for signals back afterwards, or one as large as the library's, never freed."""
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    before = _current(libc)
    try:
        yield
    finally:
        after = _current(libc)
        # A small stack from before is refused by the kernel once signals carry AMX's registers.
        if (
            after.memory != before.memory
            and libc.sigaltstack(ctypes.byref(before), None)
            and not after.flags & _DISABLED
        ):
            memory = ctypes.create_string_buffer(after.size)
            _KEPT.append(memory)
            libc.sigaltstack(ctypes.byref(_Stack(ctypes.addressof(memory), 0, after.size)), None)


def _current(libc: ctypes.CDLL) -> _Stack:
    found = _Stack()
    libc.sigaltstack(None, ctypes.byref(found))
    return found
