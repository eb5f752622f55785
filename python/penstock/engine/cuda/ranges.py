"""Names for profilers: NVTX ranges around calls and around steps, where PENSTOCK_NVTX=1 asks for them.

Off they cost nothing. Replays of a graph show as one range; the steps show while a graph is captured and where regions
are timed. Called by contexts and the executor.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

import torch

NVTX: Final = "PENSTOCK_NVTX"
"""The environment variable, read when the runtime is imported."""

ON: Final = os.environ.get(NVTX, "") not in ("", "0")
_NOTHING: Final = nullcontext()


def named(name: str) -> AbstractContextManager[None]:
    """A range of this name on the calling thread, where they are wanted."""
    return _range(name) if ON else _NOTHING


@contextmanager
def _range(name: str) -> Iterator[None]:
    torch.cuda.nvtx.range_push(name)
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()
