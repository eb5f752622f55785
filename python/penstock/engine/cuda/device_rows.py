"""Rows on a GPU on their way into a batch: what a call holds until an instance takes it, and how a batch is laid out.

`Rows` is a tensor and when it may be read: nobody waits for that on the host. `lay` writes rows of the host and of the
device into a context's inputs, one after the other. Made by the data plane for calls of pipelines, through
`engine.device_calls`; taken by the runtime's instances.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from penstock.engine.cuda.contexts import Array, as_numpy
from penstock.engine.cuda.device_arrays import DeviceCall
from penstock.engine.cuda.sites import DTYPES
from penstock.errors import InvalidArgument, ResourceExhausted
from penstock.tensors import TensorSpec

_UNSIGNED: Final = {torch.uint16: "UINT16", torch.uint32: "UINT32", torch.uint64: "UINT64"}
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items() if name != "FP8"} | _UNSIGNED
"""Of the types that requests may have."""

_DEFAULT_STREAM: Final = 0


class Rows:
    """A tensor that another thread will read. It keeps the memory; nobody may write there until it is let go."""

    __slots__ = ("datatype", "ready", "row", "shape", "tensor")

    def __init__(self, array: Any, *, row: bool = False) -> None:
        """On the thread that made the array, or whose stream waits for it: that is what DLPack promises.

        `row`: it is passed without the batch dimension. Raises InvalidArgument for what is no tensor, or of a type that
        no model takes, and ResourceExhausted where a strided one finds no room to be laid out side by side.
        """
        try:
            tensor = array if isinstance(array, torch.Tensor) else torch.from_dlpack(array)
        except (TypeError, ValueError, RuntimeError, BufferError) as error:
            raise InvalidArgument(f"an array on a GPU can't be taken as a tensor: {error}") from error
        name = _NAMES.get(tensor.dtype)
        if name is None:
            expected = ", ".join(_NAMES.values())
            raise InvalidArgument(f"a tensor of {tensor.dtype} can't be passed to a model, expected one of {expected}")
        if tensor.layout is not torch.strided:
            raise InvalidArgument(f"a tensor has to be dense to be passed to a model, got {tensor.layout}")
        if tensor.requires_grad:
            tensor = tensor.detach()
        if not tensor.is_contiguous():
            try:
                tensor = tensor.contiguous()
            except torch.cuda.OutOfMemoryError as error:
                raise ResourceExhausted(
                    f"a tensor {list(tensor.shape)} is not contiguous, and the GPU has no memory left for one that is; "
                    "keep fewer tensors at a time"
                ) from error
        self.tensor: torch.Tensor = tensor
        self.row = row
        """The tensor lacks the batch dimension, which `shape` has: adding it there would cost as much as the rest."""
        self.shape = (1, *tensor.shape) if row else tuple(tensor.shape)
        self.datatype = name
        self.ready: torch.cuda.Event | None = None
        """None: once what the device's default stream had by now is done, behind which every batch goes anyway."""
        if tensor.is_cuda:
            stream = torch.cuda.current_stream(tensor.device)
            if stream.cuda_stream != _DEFAULT_STREAM:
                self.ready = stream.record_event()

    def on_host(self) -> Array:
        """A copy, waited for: for a model that computes there."""
        device = self.tensor.device
        if device.type != "cuda":
            return as_numpy(self.tensor.clone()).reshape(self.shape)
        ready = self.ready or torch.cuda.default_stream(device).record_event()
        # On a stream apart, so that it waits for nothing that comes later.
        with torch.cuda.stream(torch.cuda.Stream(device)):
            torch.cuda.current_stream(device).wait_event(ready)
            return as_numpy(self.tensor.cpu()).reshape(self.shape)

    def on(self, device: torch.device) -> torch.Tensor:
        """The tensor there, in the order of this thread's current stream, which comes behind the default one."""
        if self.ready is not None:
            torch.cuda.current_stream(self.tensor.device).wait_event(self.ready)
        return self.tensor if self.tensor.device == device else self.tensor.to(device, non_blocking=True)


Pieces = Mapping[str, Sequence[Rows | Array]]
"""Of each input, in the order of the rows."""


def lay(specs: Sequence[TensorSpec], pieces: Pieces, inputs: Mapping[str, torch.Tensor]) -> None:
    """Write the pieces into a context's inputs, on the current stream. Rows that are missing are like the first.

    They fit the specifications, and have to stay until the stream is done.
    """
    for spec in specs:
        target, several = inputs[spec.name], pieces[spec.name]
        if len(several) == 1 and several[0].shape == target.shape:
            target.copy_(_there(spec, several[0], target.device), non_blocking=True)
            continue
        at = 0
        if len(several) > 1 and all(isinstance(each, Rows) and each.row for each in several):
            at = len(several)
            torch.stack([_there(spec, each, target.device) for each in several], out=target[:at])
        else:
            for each in several:
                first, at = at, at + each.shape[0]
                target[first:at].copy_(_there(spec, each, target.device), non_blocking=True)
        if at < len(target):
            target[at:].copy_(target[:1].expand_as(target[at:]), non_blocking=True)


def joined(specs: Sequence[TensorSpec], pieces: Pieces, device: torch.device) -> DeviceCall:
    """The pieces of each input as one tensor, for what is more than a bucket; on this thread's current stream."""
    tensors: dict[str, torch.Tensor] = {}
    for spec in specs:
        parts = [
            _there(spec, each, device).to(device, non_blocking=True).reshape(each.shape) for each in pieces[spec.name]
        ]
        tensors[spec.name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    if device.type != "cuda":
        return DeviceCall(tensors, None, None)
    stream = torch.cuda.current_stream(device)
    return DeviceCall(tensors, stream, stream.record_event())


def _there(spec: TensorSpec, piece: Rows | Array, device: torch.device) -> torch.Tensor:
    """To be copied from: a tensor on the device, or on the host, where an instance's own memory is pinned."""
    if isinstance(piece, Rows):
        return piece.on(device)
    tensor = torch.from_numpy(piece)
    return tensor.view(torch.bfloat16) if spec.datatype == "BF16" else tensor  # which travels as uint16
