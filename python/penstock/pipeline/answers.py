"""From what a body returned to the arrays that its signature promises.

A list becomes an array: of bytes or text for BYTES, of arrays of one shape on top of each other. Types and shapes are
checked where every model's are, in the data plane.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from penstock.backends.base import Array
from penstock.engine.device_calls import lies_on_gpu
from penstock.errors import ExecutionError
from penstock.tensors import TensorSpec


class Answers:
    """The outputs of one pipeline."""

    def __init__(self, outputs: Sequence[TensorSpec]) -> None:
        self._outputs = tuple(outputs)

    def arrays(self, returned: Any) -> dict[str, Array]:
        """Raises ExecutionError for what can't become the outputs."""
        if len(self._outputs) == 1 and not isinstance(returned, Mapping):
            (only,) = self._outputs
            return {only.name: self._array(only, returned)}
        names = ", ".join(spec.name for spec in self._outputs)
        if not isinstance(returned, Mapping):
            raise ExecutionError(f"the body returned {type(returned).__name__}, expected a dict with {names}")
        if missing := [spec.name for spec in self._outputs if spec.name not in returned]:
            raise ExecutionError(f"the body returned no {', '.join(missing)}, expected a dict with {names}")
        return {spec.name: self._array(spec, returned[spec.name]) for spec in self._outputs}

    def _array(self, spec: TensorSpec, value: Any) -> Array:
        if isinstance(value, np.ndarray):
            return value.view(np.uint16) if value.dtype.name == "bfloat16" else value
        if lies_on_gpu(value):
            raise ExecutionError(
                f"output {spec.name!r} lies on a GPU, expected an array of the host; copy it in a step, such as "
                "await ps.cpu(torch.Tensor.cpu, tensor)"
            )
        if isinstance(value, list | tuple) and not value:
            return np.empty([max(size, 0) for size in spec.shape], spec.dtype)
        try:
            if isinstance(value, list | tuple) and all(isinstance(item, np.ndarray) for item in value):
                return np.stack(value)
            # Objects for BYTES: NumPy's own text types drop zeros at the end. No type for others: a wrong one is an
            # error.
            return np.array(value, dtype=object) if spec.datatype == "BYTES" else np.asarray(value)
        except ValueError as error:
            raise ExecutionError(f"output {spec.name!r}: what the body returned makes no array: {error}") from error
