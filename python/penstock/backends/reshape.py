"""A backend seen through the `reshape` fields of a configuration: clients send one shape, the model sees another.

Sizes that are free (-1) on one side are taken, in order, from the free sizes of the other. Reshaping is a view.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from penstock.backends.base import Array, Backend, Instance, input_memory
from penstock.errors import ConfigError
from penstock.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Reshape:
    """Full shapes on both sides, batch dimension included."""

    client: tuple[int, ...]
    model: tuple[int, ...]


class ReshapedBackend:
    """Offers the clients' shapes of some inputs and outputs and gives the wrapped backend its own."""

    def __init__(self, backend: Backend, inputs: Mapping[str, Reshape], outputs: Mapping[str, Reshape]) -> None:
        self._backend = backend
        self._inward = {name: (shapes.client, shapes.model) for name, shapes in inputs.items()}
        self._outward = {name: (shapes.model, shapes.client) for name, shapes in outputs.items()}
        for name, (source, target) in (self._inward | self._outward).items():
            if source.count(-1) != target.count(-1):
                raise ConfigError(
                    f"reshape of {name!r}: {list(source)} and {list(target)} must have equally many sizes of -1"
                )
        self.name = backend.name
        self.platform = backend.platform
        self.inputs = tuple(_seen(spec, inputs) for spec in backend.inputs)
        self.outputs = tuple(_seen(spec, outputs) for spec in backend.outputs)

    @property
    def fresh_outputs(self) -> bool:
        return self._backend.fresh_outputs

    def instance(self, index: int, count: int, threads: int | None) -> Instance:
        return _ReshapedInstance(self._backend.instance(index, count, threads), self._inward, self._outward)

    def close(self) -> None:
        self._backend.close()


_Shapes = tuple[tuple[int, ...], tuple[int, ...]]


class _ReshapedInstance:
    def __init__(self, instance: Instance, inward: Mapping[str, _Shapes], outward: Mapping[str, _Shapes]) -> None:
        self._instance = instance
        self._inward = inward
        self._outward = outward

    def input_memory(self) -> Mapping[str, Array]:
        return input_memory(self._instance)

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        answers = self._instance.execute(_reshaped(inputs, self._inward))
        return _reshaped(answers, self._outward)

    def close(self) -> None:
        self._instance.close()


def _seen(spec: TensorSpec, reshapes: Mapping[str, Reshape]) -> TensorSpec:
    return replace(spec, shape=reshapes[spec.name].client, axes=()) if spec.name in reshapes else spec


def _reshaped(arrays: Mapping[str, Array], shapes: Mapping[str, _Shapes]) -> dict[str, Array]:
    found = dict(arrays)
    for name, (source, target) in shapes.items():
        if name in found:
            array = found[name]
            free = iter([size for size, fixed in zip(array.shape, source, strict=True) if fixed == -1])
            found[name] = array.reshape([next(free) if size == -1 else size for size in target])
    return found
