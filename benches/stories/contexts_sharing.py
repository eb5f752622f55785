"""One execution context and many threads: shared as it is, behind a lock, and one of several for each call.

An execution context is one set of buffers: a row is copied in, the network runs, its answer is copied out. `Bound` is
one on the CPU, ONNX Runtime with its inputs and outputs bound to memory; `contexts_cuda.Captured` one on a GPU.
`shared` is the mistake that the story is about: while one thread's row is computed another's is copied over it. Called
by `contexts` and the tests.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from examples.clip.preprocessing import Floats

Embedding = npt.NDArray[Any]
Call = Callable[[Floats], Embedding]
"""A row, without its batch, to its embedding; from any thread."""


class Context(Protocol):
    def run(self, row: Floats) -> Embedding:
        """The embedding of one row, by way of this context's buffers."""
        ...


def shared(context: Context) -> Call:
    """Wrong: every thread uses the same buffers."""
    return context.run


def locked(context: Context) -> Call:
    """Right: one call at a time."""
    lock = threading.Lock()

    def call(row: Floats) -> Embedding:
        with lock:
            return context.run(row)

    return call


def pooled(contexts: Sequence[Context]) -> Call:
    """Right: a call has a context of its own until it is answered; who finds none waits."""
    idle: queue.SimpleQueue[Context] = queue.SimpleQueue()
    for each in contexts:
        idle.put(each)

    def call(row: Floats) -> Embedding:
        context = idle.get()
        try:
            return context.run(row)
        finally:
            idle.put(context)

    return call


class Session:
    """A model in ONNX Runtime on the CPU, FP32: weights once, for any number of contexts. Of batch 1."""

    def __init__(self, model: Path, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # What Penstock asks of the library as well: idle threads that spin take the cores from the other contexts.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.name: Final[str] = self.session.get_inputs()[0].name
        self.row: Final = tuple(int(size) for size in self.session.get_inputs()[0].shape[1:])
        self.output: Final[str] = self.session.get_outputs()[0].name
        self.numbers: Final = int(self.session.get_outputs()[0].shape[1])


class Bound:
    """One set of buffers of a session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._given = np.zeros((1, *session.row), np.float32)
        self._found = np.zeros((1, session.numbers), np.float32)
        # The library's object that names the buffers is not made for two threads, and a crash would count no wrong
        # answers: each thread has one of its own, of the same buffers.
        self._bindings = threading.local()

    def run(self, row: Floats) -> Embedding:
        np.copyto(self._given[0], row)
        self._session.session.run_with_iobinding(self._binding())
        found: Embedding = self._found[0].copy()
        return found

    def _binding(self) -> Any:
        if not hasattr(self._bindings, "own"):
            binding = self._session.session.io_binding()
            for bind, name, buffer in (
                (binding.bind_input, self._session.name, self._given),
                (binding.bind_output, self._session.output, self._found),
            ):
                bind(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
            self._bindings.own = binding
        return self._bindings.own
