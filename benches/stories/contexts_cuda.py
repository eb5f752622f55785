"""An execution context on a GPU: a captured CUDA graph of a torch module in FP16, with buffers and a stream of its own.

The way that engines are run where they are run well: pinned memory on the host, static memory on the device, a replay,
an event to wait for. Needs torch and a GPU. Called by `contexts_measuring`.
"""

import threading
from typing import Any

import numpy as np
import torch

from examples.clip.preprocessing import Floats

_WARM_UP = 3  # calls before a capture, in which libraries choose and allocate


class Captured:
    """Of batch 1. `module` is on the device and in FP16."""

    def __init__(self, module: torch.nn.Module, row: tuple[int, ...]) -> None:
        self._stream = torch.cuda.Stream()
        self._pinned = torch.zeros((1, *row), dtype=torch.float32, pin_memory=True)
        self._given = torch.zeros((1, *row), dtype=torch.float32, device="cuda")
        with torch.no_grad(), torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):
                module(self._given.half())
            self._stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._found = module(self._given.half()).float()
        self._answer = torch.zeros(self._found.shape, dtype=torch.float32, pin_memory=True)
        # CUDA's graphs are not made for two threads that launch them, and a crash would count no wrong answers: what is
        # shared by threads without a lock is the memory.
        self._launching = threading.Lock()

    def run(self, row: Floats) -> Any:
        np.copyto(self._pinned.numpy()[0], row)
        done = torch.cuda.Event()
        with self._launching, torch.cuda.stream(self._stream):
            self._given.copy_(self._pinned, non_blocking=True)
            self._graph.replay()
            self._answer.copy_(self._found, non_blocking=True)
            done.record()
        done.synchronize()
        return self._answer.numpy()[0].copy()
