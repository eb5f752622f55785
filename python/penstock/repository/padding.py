"""The `padding` parameter: lets requests whose sizes are near, but not equal, share a batch.

    {"inputs": {"x": {"axis": 3, "multiple": 32, "value": 0}}, "outputs": {"y": {"axis": 1, "divisor": 8}}}

Every input row is filled up with `value` along `axis` to the largest size of the batch, rounded up to `multiple`. Each
output named is cut back along its axis to the row's own size over `divisor`, rounded up; with several padded inputs
the first one counts. Axes count the batch dimension. A list of such objects pads several axes.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from penstock.errors import ConfigError
from penstock.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class InputPadding:
    """Fill this input along one axis."""

    name: str
    axis: int
    multiple: int
    value: float


@dataclass(frozen=True, slots=True)
class OutputCut:
    """Cut this output along one axis: its size there is the padded input's over `divisor`."""

    name: str
    axis: int
    divisor: int


@dataclass(frozen=True, slots=True)
class Padding:
    inputs: tuple[InputPadding, ...]
    outputs: tuple[OutputCut, ...]


def parse(
    text: str, max_batch_size: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], where: str
) -> Padding:
    """Read and check the rule against the full shapes of a model; `where` names the model. Raises ConfigError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: parameter padding is not JSON: {error}") from None
    check = _Check(where)
    if max_batch_size == 0:
        check.fail("needs max_batch_size > 0: without batches there is nothing to pad for")
    if not isinstance(value, dict) or not value.get("inputs") or set(value) - {"inputs", "outputs"}:
        check.fail('expected {"inputs": {NAME: {"axis": N, "multiple": N, "value": N}}, "outputs": {...}}')
    padded = [
        InputPadding(spec.name, check.axis(spec, rule), check.count(spec, rule, "multiple"), check.filler(spec, rule))
        for spec, rule in check.rules(value["inputs"], inputs, {"axis", "multiple", "value"})
    ]
    cut = [
        OutputCut(spec.name, check.axis(spec, rule), check.count(spec, rule, "divisor"))
        for spec, rule in check.rules(value.get("outputs", {}), outputs, {"axis", "divisor"})
    ]
    for items in (padded, cut):
        places = [(item.name, item.axis) for item in items]
        if len(set(places)) != len(places):
            check.fail("names the same axis of a tensor twice")
    if len({item.name for item in cut}) != len(cut):
        check.fail("cuts an output along several axes; the size of one input axis is all that a cut can follow")
    if len({(item.name, item.value) for item in padded}) != len({item.name for item in padded}):
        check.fail("fills the axes of one input with different values; the corner would belong to both")
    for item in cut:
        if any(spec.name == item.name and spec.datatype == "BYTES" for spec in outputs):
            check.fail(f"of {item.name!r}: BYTES can't be cut")
    return Padding(tuple(padded), tuple(cut))


@dataclass(frozen=True, slots=True)
class _Check:
    where: str

    def fail(self, why: str) -> NoReturn:
        raise ConfigError(f"{self.where}: parameter padding {why}")

    def rules(
        self, value: Any, specs: Sequence[TensorSpec], keys: set[str]
    ) -> Iterator[tuple[TensorSpec, Mapping[str, Any]]]:
        known = {spec.name: spec for spec in specs}
        if not isinstance(value, dict):
            self.fail("expects inputs and outputs to be objects by tensor name")
        for name, rules in value.items():
            if name not in known:
                self.fail(f"names {name!r}, the model has {', '.join(known)}")
            for rule in rules if isinstance(rules, list) else [rules]:
                if not isinstance(rule, dict) or set(rule) - keys or "axis" not in rule:
                    self.fail(f"of {name!r}: expected an object of {', '.join(sorted(keys))}")
                yield known[name], rule

    def axis(self, spec: TensorSpec, rule: Mapping[str, Any]) -> int:
        axis = rule["axis"]
        if type(axis) is not int or not 1 <= axis < len(spec.shape):
            self.fail(f"of {spec.name!r}: axis is {axis!r}, expected 1 to {len(spec.shape) - 1} (0 is the batch)")
        if spec.shape[axis] != -1:
            self.fail(
                f"of {spec.name!r}: axis {axis} has the fixed size {spec.shape[axis]}, only a size of -1 can vary"
            )
        return axis

    def count(self, spec: TensorSpec, rule: Mapping[str, Any], key: str) -> int:
        value = rule.get(key, 1)
        if type(value) is not int or not 1 <= value < 2**31:
            self.fail(f"of {spec.name!r}: {key} is {value!r}, expected an integer from 1")
        return value

    def filler(self, spec: TensorSpec, rule: Mapping[str, Any]) -> float:
        value = rule.get("value", 0)
        if spec.datatype == "BYTES":
            self.fail(f"of {spec.name!r}: BYTES can't be padded")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            self.fail(f"of {spec.name!r}: value is {value!r}, expected a finite number")
        if spec.dtype.kind in "iu" and spec.datatype != "BF16":
            bounds = np.iinfo(spec.dtype)
            # Above 2^53 a JSON number, and the data plane's double, no longer says which integer is meant.
            if value != int(value) or not max(bounds.min, -(2**53)) <= value <= min(bounds.max, 2**53):
                self.fail(f"of {spec.name!r}: value {value!r} is no {spec.datatype}")
        return float(value)
