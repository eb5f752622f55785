"""Kernels whose text is written for one step, as Triton's functions.

Triton reads a function's source where Python keeps that of files; a written one is put there. Equal text is the same
function, in every process, so that machine code compiled in one is found by another. Called by what writes kernels and
by the processes that compile ahead.
"""

import hashlib
import linecache
import sys
from functools import cache
from typing import Any, Final

_HEAD: Final = "@triton.jit\ndef "


def named(family: str, body: str) -> str:
    """A kernel's text: `body` begins behind the name, with its parameters in brackets."""
    return f"{_HEAD}{family}_{hashlib.sha256(body.encode()).hexdigest()[:16]}{body}"


@cache
def function(module: str, text: str) -> Any:
    """The function of a text of `named`, which sees what the module of this name has as `SEEN`."""
    name = text.removeprefix(_HEAD).partition("(")[0]
    file = f"<{module}.{name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    space: dict[str, Any] = {"__name__": module, **sys.modules[module].SEEN}
    exec(compile(text, file, "exec"), space)  # noqa: S102  (text of ours: names from tables, and numbers)
    return space[name]


def text_of(kernel: object) -> str:
    """What a kernel was made from; empty where it stands in a module."""
    name, module = getattr(kernel, "__name__", ""), getattr(kernel, "__module__", "")
    entry = linecache.cache.get(f"<{module}.{name}>")
    return "" if entry is None else "".join(entry[2])  # type: ignore[misc]
