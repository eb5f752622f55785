"""Calls whose arrays lie on the GPU and whose answers stay there: DLPack in, torch tensors out, nothing by the host.

`taken` runs on the caller's thread and orders what follows behind the caller's stream; `DeviceContext` is one batch in
flight at the shapes of one bucket. Answers are written before a call returns and belong to the caller's stream, so
that any stream may use them and any library take them. Called by engine contexts; on torch's CPU device for tests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from penstock.engine.cuda.contexts import as_numpy
from penstock.engine.cuda.executor import Executor
from penstock.engine.cuda.sites import DTYPES
from penstock.errors import InvalidArgument
from penstock.tensors import TensorSpec

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class DeviceCall:
    """Inputs on the device. They may be read once `ready`, which is None where nothing is asynchronous."""

    tensors: Tensors
    stream: torch.cuda.Stream | None
    """The caller's."""

    ready: torch.cuda.Event | None

    def rows(self, first: int, last: int) -> "DeviceCall":
        cut = {name: tensor[first:last] for name, tensor in self.tensors.items()}
        return DeviceCall(cut, self.stream, self.ready)

    def joined(self, parts: Sequence[Tensors]) -> dict[str, torch.Tensor]:
        """One after the other by rows, on the caller's stream, and written when this returns."""
        if len(parts) == 1:
            return dict(parts[0])
        if self.stream is None:
            return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        with torch.cuda.stream(self.stream):
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            done = self.stream.record_event()
        done.synchronize()
        return whole

    def on_host(self, answers: Tensors) -> dict[str, Any]:
        """As NumPy arrays; bfloat16 as it travels, in uint16."""
        return {name: as_numpy(tensor.cpu().contiguous()) for name, tensor in answers.items()}


def taken(specs: Sequence[TensorSpec], arrays: Mapping[str, Any], device: torch.device) -> DeviceCall:
    """The arrays as tensors on the device, without a copy where they are there already.

    Anything that speaks DLPack, and what NumPy takes. Raises InvalidArgument for names, types and shapes that don't
    fit.
    """
    expected = {spec.name: spec for spec in specs}
    for name in arrays:
        if name not in expected:
            raise InvalidArgument(f"unexpected input {name!r}, the model has {', '.join(map(str, specs))}")
    found: dict[str, torch.Tensor] = {}
    for spec in specs:
        if spec.name not in arrays:
            raise InvalidArgument(f"input {spec.name!r} is missing, the model has {', '.join(map(str, specs))}")
        tensor = _tensor(spec, arrays[spec.name])
        if tensor.dtype != DTYPES[spec.datatype]:
            raise InvalidArgument(f"input {spec.name!r} is {spec.datatype}, got a tensor of {tensor.dtype}; convert it")
        if not spec.accepts(tuple(tensor.shape)):
            raise InvalidArgument(f"input {spec.name!r} has shape {list(spec.shape)}, got {list(tensor.shape)}")
        found[spec.name] = tensor.detach().to(device)
    if device.type != "cuda":
        return DeviceCall(found, None, None)
    # Whoever made the tensors did so on, or has them wait for, this thread's stream: that is what DLPack promises.
    stream = torch.cuda.current_stream(device)
    return DeviceCall(found, stream, stream.record_event())


def _tensor(spec: TensorSpec, array: Any) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array
    try:
        tensor = torch.from_dlpack(array) if hasattr(array, "__dlpack__") else torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise InvalidArgument(f"input {spec.name!r} can't be taken as a tensor: {error}") from error
    # NumPy has no bfloat16: such arrays travel as uint16.
    travels = spec.datatype == "BF16" and tensor.dtype == torch.uint16
    return tensor.view(torch.bfloat16) if travels else tensor


class DeviceContext:
    """A captured graph without copies to the host. Used by one call at a time."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        on_gpu = executor.device.type == "cuda"
        self._captured = executor.capture() if on_gpu else None
        self._inputs = self._captured.inputs if self._captured else executor.blank_inputs()

    def run(self, call: DeviceCall, rows: int | None) -> dict[str, torch.Tensor]:
        """Answers of as many of the bucket's rows; None: of all, for buckets without rows."""
        if self._captured is None or call.stream is None:
            self._fill(call.tensors)
            return self._cut(self._executor.run(self._inputs), rows)
        own, theirs = self._captured.stream, call.stream
        if call.ready is not None:
            own.wait_event(call.ready)
        with torch.cuda.stream(own):
            self._fill(call.tensors)
        self._captured.replay()
        # Memory of the caller's stream may still be read by what the caller enqueued before it was freed.
        with torch.cuda.stream(theirs):
            answers = {name: torch.empty_like(part) for name, part in self._views(self._captured.outputs, rows).items()}
            own.wait_event(theirs.record_event())
        with torch.cuda.stream(own):
            for name, part in self._views(self._captured.outputs, rows).items():
                answers[name].copy_(part, non_blocking=True)
            own.record_event(done := torch.cuda.Event(blocking=True))
        done.synchronize()
        return answers

    def _fill(self, given: Tensors) -> None:
        """Rows that are missing are like the first."""
        for name, target in self._inputs.items():
            tensor = given[name]
            if tensor.shape == target.shape:
                target.copy_(tensor, non_blocking=True)
            else:
                target[: len(tensor)].copy_(tensor, non_blocking=True)
                target[len(tensor) :].copy_(tensor[:1].expand_as(target[len(tensor) :]), non_blocking=True)

    def _views(self, outputs: Tensors, rows: int | None) -> dict[str, torch.Tensor]:
        if rows is None:
            return dict(outputs)
        whole = len(next(iter(self._inputs.values())))
        return {name: tensor[: len(tensor) // whole * rows] for name, tensor in outputs.items()}

    def _cut(self, outputs: Tensors, rows: int | None) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self._views(outputs, rows).items()}
