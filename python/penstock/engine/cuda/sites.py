"""A step on a device: what an implementation is bound to, and what it answers.

An implementation looks at a `Site` once, prepares weights and numbers, and gives a function of tensors. That function
gets every operand in the step's order, views applied, and gives the outputs, dense and of the stored shape and type. It
never synchronises, so that it can be captured. Used by every module of this package.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from penstock.engine.cuda.kernels.driver import HOPPER
from penstock.engine.cuda.workspace import Needs
from penstock.engine.lowered import LoweredGraph, Operand, Step
from penstock.engine.plan import Shape
from penstock.errors import Internal

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT8": torch.uint8,
    "FP8": torch.float8_e4m3fn,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}

Run = Callable[[Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]
RunInto = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], None]
"""For kernels that write where they are told: operands, outputs."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a step is to run."""

    step: Step
    graph: LoweredGraph
    weights: Mapping[str, torch.Tensor]
    """On the device, in the type they are computed in."""

    device: torch.device
    precision: str
    """Of `executor.PRECISIONS`."""

    config: tuple[int, ...] = ()
    """How a parametrised implementation is to do it; empty: its own first idea."""

    early: bool = False
    """Whether the kernels wait for the one ahead themselves, so that they may be launched before it has ended."""

    behind: bool = False
    """Whether the kernel ahead is one of ours: only then is the step's first one launched early."""

    needs: Needs = field(default_factory=Needs)
    """Asked while binding for what a workspace must hold."""

    def index(self, role: str) -> int | None:
        """Which operand plays this role."""
        return next((number for number, each in enumerate(self.step.inputs) if each.role == role), None)

    def weight(self, role: str) -> torch.Tensor | None:
        """The tensor of a role that is constant; None where there is none."""
        operand = self.step.operand(role)
        if operand is None:
            return None
        if operand.value not in self.weights:
            raise Internal(f"step {self.step.name!r}: {role} is no weight")
        return seen(self.weights[operand.value], operand)

    def shape(self, role: str) -> Shape:
        operand = self.step.operand(role)
        assert operand is not None, role
        return self.graph.shape(operand)

    def out_shape(self, index: int = 0) -> Shape:
        return self.graph.values[self.step.outputs[index]].shape

    def out_dtype(self, index: int = 0) -> torch.dtype:
        return DTYPES[self.graph.values[self.step.outputs[index]].datatype]

    def scale(self, index: int) -> float | None:
        """What one step of an operand is worth; None: it is what it is."""
        value = self.graph.values.get(self.step.inputs[index].value)
        return None if value is None else value.scale

    def out_scale(self, index: int = 0) -> float | None:
        return self.graph.values[self.step.outputs[index]].scale

    # Attributes, by type; Internal where the lowering wrote another.

    def text(self, name: str, default: str = "") -> str:
        value = self.step.attributes.get(name, default)
        if not isinstance(value, str):
            raise Internal(f"step {self.step.name!r}: attribute {name} is {value!r}, expected text")
        return value

    def number(self, name: str, default: float = 0.0) -> float:
        value = self.step.attributes.get(name, default)
        if not isinstance(value, int | float):
            raise Internal(f"step {self.step.name!r}: attribute {name} is {value!r}, expected a number")
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        value = self.step.attributes.get(name)
        if not isinstance(value, tuple):
            raise Internal(f"step {self.step.name!r}: attribute {name} is {value!r}, expected numbers")
        return tuple(float(each) for each in value)

    def integers(self, name: str) -> tuple[int, ...]:
        return tuple(int(each) for each in self.numbers(name))

    def integer(self, name: str) -> int:
        return int(self.number(name))


def seen(tensor: torch.Tensor, operand: Operand) -> torch.Tensor:
    """The operand's view of a stored tensor."""
    view = operand.view
    if view is None:
        return tensor
    return torch.as_strided(tensor, view.shape, view.strides, tensor.storage_offset() + view.offset)


def narrow(dtype: torch.dtype) -> bool:
    return dtype in (torch.float16, torch.bfloat16)


def eight_bits(dtype: torch.dtype) -> bool:
    """What values with a scale are stored in."""
    return dtype in (torch.int8, torch.float8_e4m3fn)


def capability(device: torch.device) -> int:
    """90 for compute capability 9.0; of the CPU, which only stands in for one, too."""
    if device.type != "cuda":
        return HOPPER
    major, minor = torch.cuda.get_device_capability(device)
    return int(10 * major + minor)


def launches_early(device: torch.device) -> bool:
    """Older GPUs have no programmatic dependent launch, and kernels that wait for it don't compile for them."""
    return capability(device) >= HOPPER
