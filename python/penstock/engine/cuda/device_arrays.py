"""Calls whose arrays lie on the GPU and whose answers stay there: DLPack in, torch tensors out, nothing by the host.

`taken` runs on the caller's thread and orders what follows behind the caller's stream; `DeviceContext` is one batch in
flight at the shapes of one bucket. Answers are written before a call returns and belong to the caller's stream, so
that any stream may use them and any library take them. Called by engine contexts; on torch's CPU device for tests.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from penstock.engine.cuda.contexts import Array, GraphContext, as_numpy, waited_for
from penstock.engine.cuda.executor import Captured, Executor
from penstock.engine.cuda.sites import DTYPES
from penstock.engine.cuda.turns import Turns
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

    def __init__(self, executor: Executor, beside: GraphContext | None = None) -> None:
        """`beside`: whose memory it takes, so that one of the two runs at a time."""
        self._executor = executor
        self._captured: Captured | None = None
        self._turns: Turns | None = None
        self._pinned: Tensors | None = None
        self._milliseconds = math.inf
        if beside is not None:
            self._captured, self._turns = beside.without_copies()
            self._milliseconds, self._pinned = beside.milliseconds, beside.answers
        elif executor.device.type == "cuda":
            self._captured = executor.capture()
        self._inputs = self._captured.inputs if self._captured else executor.blank_inputs()
        if self._captured is not None:
            self._entered, self._computed = torch.cuda.Event(), torch.cuda.Event()

    def run(self, call: DeviceCall, rows: int | None) -> dict[str, torch.Tensor]:
        """Answers of as many of the bucket's rows; None: of all, for buckets without rows."""
        if self._captured is None or call.stream is None:
            self._fill(call.tensors)
            return self._cut(self._executor.run(self._inputs), rows)
        if call.ready is not None:
            self._captured.stream.wait_event(call.ready)
        with torch.cuda.stream(call.stream):
            answers = self._blank(rows)
            self._entered.record(call.stream)
        self._compute(self._captured, lambda: self._fill(call.tensors), rows, answers, None)
        return answers

    def run_laid(
        self, lay: Callable[[Tensors], None], rows: int | None, *, stays: bool, host: bool
    ) -> tuple[dict[str, torch.Tensor], dict[str, Array] | None]:
        """As `run`, of inputs that `lay` writes, on the current stream; behind what this thread's stream had before.

        stays  whether answers are wanted on the device; without a batch of rows in between, nothing is made there.
        host   whether they are wanted on the host.
        """
        if self._captured is None:
            lay(self._inputs)
            answers = self._cut(self._executor.run(self._inputs), rows)
            return answers, ({name: as_numpy(each).copy() for name, each in answers.items()} if host else None)
        pinned = self._views(self._pinned, rows) if host and self._pinned is not None else None
        answers = self._blank(rows) if stays or (host and pinned is None) else {}
        # By its name: a thread's current device is another one unless something has told it.
        self._entered.record(torch.cuda.current_stream(self._executor.device))
        self._compute(self._captured, lambda: lay(self._inputs), rows, answers, pinned)
        if not host:
            return answers, None
        if pinned is None:
            return answers, {name: as_numpy(each.cpu()) for name, each in answers.items()}
        return answers, {name: as_numpy(each).copy() for name, each in pinned.items()}

    def _compute(
        self,
        captured: Captured,
        fill: Callable[[], None],
        rows: int | None,
        answers: Tensors,
        pinned: Tensors | None,
    ) -> None:
        """Behind `_entered`: memory of the answers may still be read by what was enqueued before it was freed there."""
        own = captured.stream
        own.wait_event(self._entered)
        with torch.cuda.stream(own):
            fill()
            if self._turns is not None:
                self._turns.take(own, captured.replay, self._computed)
            else:
                captured.replay()
            found = self._views(captured.outputs, rows)
            for targets in (answers, pinned or {}):
                for name, target in targets.items():
                    target.copy_(found[name], non_blocking=True)
        waited_for(own, self._milliseconds)

    def _blank(self, rows: int | None) -> dict[str, torch.Tensor]:
        outputs = self._captured.outputs if self._captured else {}
        return {name: torch.empty_like(part) for name, part in self._views(outputs, rows).items()}

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
        whole = len(next(iter(self._inputs.values()))) if rows is not None else 0
        if rows is None or rows == whole:
            return dict(outputs)
        return {name: tensor[: len(tensor) // whole * rows] for name, tensor in outputs.items()}

    def _cut(self, outputs: Tensors, rows: int | None) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self._views(outputs, rows).items()}
