"""What one step of each value is worth, from runs of an executor: for graphs that no Q/DQ form came with.

`Calibrator.see` runs once on inputs and looks at what layers read; `grids` answers for all it has seen. Ranges are
symmetric, and of a few thresholds the one with the least squared error is taken. Used by benches; needs a graph whose
layers are not in eight bits yet.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from penstock.engine.cuda.eight_bits import quantized
from penstock.engine.cuda.executor import Executor
from penstock.engine.eight_bits import LEAST_SCALE, TOP, Grids

_SHARES: Final = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Of the largest number: thresholds that are tried for INT8. e4m3 has its own exponents, and clipping gains nothing."""

_LAYERS: Final = ("conv", "gemm")


class Calibrator:
    """Of one executor, in a precision of 16 bits or more."""

    def __init__(self, executor: Executor, datatype: str = "INT8") -> None:
        self._executor, self._datatype = executor, datatype
        self._type = torch.int8 if datatype == "INT8" else torch.float8_e4m3fn
        self._errors: dict[str, list[torch.Tensor]] = {}
        self._largest: dict[str, torch.Tensor] = {}

    def see(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """The first inputs say how large numbers are, all of them which threshold is best."""
        seen: set[str] = set()

        def watch(number: int, operands: Sequence[torch.Tensor]) -> None:
            step = self._executor.graph.steps[number]
            for operand, tensor in zip(step.inputs, operands, strict=True):
                wanted = step.kind in _LAYERS and operand.role in ("x", "residual")
                if wanted and operand.value in self._executor.graph.values and operand.value not in seen:
                    seen.add(operand.value)
                    self._look(operand.value, tensor.float())

        self._executor.run(inputs, watch)

    def _look(self, name: str, x: torch.Tensor) -> None:
        largest = torch.maximum(self._largest.get(name, x.new_zeros(())), x.abs().max())
        self._largest[name] = largest
        if self._datatype != "INT8":
            return
        errors = self._errors.setdefault(name, [x.new_zeros(()) for _ in _SHARES])
        top = float(largest)
        for at, share in enumerate(_SHARES):
            scale = max(top * share / TOP[self._datatype], LEAST_SCALE)
            errors[at] = errors[at] + (quantized(x, self._type, scale).float() * scale - x).square().sum()

    def grids(self, weights: Mapping[str, torch.Tensor]) -> Grids:
        """Of the values seen, and of the weights of layers by their largest number in each row."""
        top = TOP[self._datatype]
        values = {}
        for name, largest in self._largest.items():
            errors = [float(each) for each in self._errors.get(name, ())]
            share = _SHARES[errors.index(min(errors))] if errors else 1.0
            values[name] = max(float(largest) * share / top, LEAST_SCALE)
        rows: dict[str, torch.Tensor] = {}
        for step in self._executor.graph.steps:
            weight = step.operand("weight")
            if step.kind in _LAYERS and weight is not None and weight.value in weights:
                array = weights[weight.value]
                rows[weight.value] = (array.float().abs().flatten(1).amax(1) / top).clamp(min=LEAST_SCALE)
        return Grids(values, rows)
