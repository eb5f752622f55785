"""CUDA C++ to machine code by NVRTC, the compiler that torch brings along as a library; no GPU is needed.

`compile_cpp` gives a cubin for one architecture and what the assembler said of registers and spills. The library is
found beside torch's other ones or where the system looks; `available` says whether there is one.
"""

import ctypes
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

_NAMES: Final = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
_USAGE: Final = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers", re.DOTALL
)


class CompilerError(RuntimeError):
    """The source is no CUDA C++, or there is no compiler."""


@dataclass(frozen=True, slots=True)
class Compiled:
    cubin: bytes
    registers: int
    """Of each thread, in the kernel that takes most."""
    spilled_bytes: int
    """Local memory of each thread, stack and spills: anything but 0 is slow."""


@cache
def _library() -> ctypes.CDLL:
    for path in (*_installed(), *_NAMES):
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    raise CompilerError("expected the library NVRTC, which comes with torch for CUDA; found none")


def _installed() -> list[str]:
    """Where packages put it, the newest first."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [path for folder in folders for path in Path(folder).glob("*/lib/libnvrtc.so*")]
    return [str(path) for path in sorted(found, key=lambda path: path.name, reverse=True) if "alt" not in path.name]


def available() -> bool:
    try:
        _library()
    except CompilerError:
        return False
    return True


@cache
def version() -> str:
    """Raises CompilerError."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def compile_cpp(source: str, headers: Sequence[tuple[str, str]], options: Sequence[str], architecture: str) -> Compiled:
    """headers       name as the source includes it, and text.
    architecture  such as sm_90a.
    Raises CompilerError with what the compiler said.
    """
    program = ctypes.c_void_p()
    texts = (ctypes.c_char_p * len(headers))(*(text.encode() for _, text in headers))
    names = (ctypes.c_char_p * len(headers))(*(name.encode() for name, _ in headers))
    _call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"kernel.cu", len(headers), texts, names)
    try:
        every = (f"--gpu-architecture={architecture}", "--std=c++17", "--ptxas-options=-v", *options)
        given = (ctypes.c_char_p * len(every))(*(each.encode() for each in every))
        status = _library().nvrtcCompileProgram(program, len(every), given)
        log = _text(program, "Program").decode(errors="replace")
        if status != 0:
            raise CompilerError(f"{_reason(status)}: {log.strip()[:2000]}")
        usages = [tuple(map(int, each)) for each in _USAGE.findall(log)]
        registers = max((each[3] for each in usages), default=0)
        return Compiled(_text(program, "CUBIN"), registers, max((sum(each[:3]) for each in usages), default=0))
    finally:
        _call("nvrtcDestroyProgram", ctypes.byref(program))


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    get, size = ("nvrtcGetProgramLog" if what == "Program" else f"nvrtcGet{what}"), ctypes.c_size_t()
    _call(f"{get}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    _call(get, program, buffer)
    return buffer.raw.rstrip(b"\0") if what == "Program" else buffer.raw


def _call(name: str, *arguments: Any) -> None:
    status = getattr(_library(), name)(*arguments)
    if status != 0:
        raise CompilerError(f"{name}: {_reason(status)}")


def _reason(status: int) -> str:
    return str(_library().nvrtcGetErrorString(status).decode())
