"""An engine in the place of a model, and the model still there for shapes that the engine was not built for.

A model may take shapes of any size; an engine takes those of its profiles. A request that was answered before the
engine came has to be answered after. Where the engine takes everything that the model may be asked, it stands alone
(`EngineBackend`).
"""

from collections.abc import Mapping
from typing import Final

from penstock.backends.base import Array, Instance, input_memory
from penstock.backends.engine import EngineBackend
from penstock.backends.observed import ObservedBackend
from penstock.engine import Engine
from penstock.errors import InvalidArgument

_ROUTES: Final = 4096  # combinations of shapes for which the way is remembered

_Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class AcceleratedBackend(EngineBackend):
    """Owns the engine, and one share of the model."""

    def __init__(self, engine: Engine, plain: ObservedBackend) -> None:
        """`plain` is held already."""
        super().__init__(engine)
        self._plain = plain
        self._takes: dict[_Shapes, bool] = {}

    @property
    def answers_on_device(self) -> bool:
        """Not of the shapes that the model runs, and a caller can't know which those are."""
        return False

    def instance(self, index: int, count: int, threads: int | None) -> Instance:
        return _AcceleratedInstance(self, super().instance(index, count, threads), self._plain.unseen())

    def takes(self, inputs: Mapping[str, Array]) -> bool:
        """Whether the engine has a profile for these shapes."""
        shapes = tuple((name, array.shape) for name, array in inputs.items())
        found = self._takes.get(shapes)
        if found is None:
            if len(self._takes) >= _ROUTES:
                self._takes.clear()
            found = self._takes[shapes] = self._routed(inputs)
        return found

    def _routed(self, inputs: Mapping[str, Array]) -> bool:
        if inputs.keys() != {spec.name for spec in self.inputs}:
            return False
        try:
            self._engine.route(inputs)
        except InvalidArgument:
            return False
        return True

    def close(self) -> None:
        super().close()
        self._plain.close()


class _AcceleratedInstance:
    def __init__(self, backend: AcceleratedBackend, engine: Instance, plain: Instance) -> None:
        self._backend = backend
        self._engine = engine
        self._plain = plain

    def input_memory(self) -> Mapping[str, Array]:
        return input_memory(self._engine)

    def execute(self, inputs: dict[str, Array]) -> Mapping[str, Array]:
        return (self._engine if self._backend.takes(inputs) else self._plain).execute(inputs)

    def close(self) -> None:
        self._engine.close()
        self._plain.close()
