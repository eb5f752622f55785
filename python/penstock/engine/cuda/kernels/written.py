"""Kernels whose text is written for one step, as Triton's functions.

Triton reads a function's source where Python keeps that of files; a written one is put there. Equal text is the same
function, in every process, so that machine code compiled in one is found by another. Called by what writes kernels and
by the processes that compile ahead.
"""

import hashlib
import linecache
import sys
from collections.abc import Mapping
from functools import cache
from types import CodeType, FunctionType
from typing import Any, Final

import triton

FLAG: Final = "PDL"
"""The one parameter that is known to the compiler; all others are tensors."""

_HEAD: Final = "@triton.jit\ndef "


def named(family: str, body: str) -> str:
    """A kernel's text: `body` begins behind the name, with its parameters in brackets."""
    return f"{_HEAD}{family}_{hashlib.sha256(body.encode()).hexdigest()[:16]}{body}"


@cache
def function(module: str, text: str) -> Any:
    """The function of a text of `named`, which sees what the module of this name has as `SEEN`.

    Python parses the text and runs nothing of it: Triton compiles it for the device.
    """
    name = text.removeprefix(_HEAD).partition("(")[0]
    file = f"<{module}.{name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    (code,) = (each for each in compile(text, file, "exec").co_consts if isinstance(each, CodeType))
    seen: Mapping[str, object] = sys.modules[module].SEEN
    made = FunctionType(code, {"__name__": module, **seen}, name)
    made.__annotations__ = {FLAG: triton.language.constexpr}
    return triton.jit(made)


def text_of(kernel: object) -> str:
    """What a kernel was made from; empty where it stands in a module."""
    name, module = getattr(kernel, "__name__", ""), getattr(kernel, "__module__", "")
    entry = linecache.cache.get(f"<{module}.{name}>")
    return "" if entry is None else "".join(entry[2])  # type: ignore[misc]
