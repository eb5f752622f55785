"""A built engine as a backend: its programs, its buckets, weights shared by all instances.

Batches of any size up to the engine's largest are run as its buckets say; a request whose shapes no profile takes is
refused with the engine's limits.
"""

from typing import Final

from penstock.backends.base import Instance
from penstock.engine import Engine
from penstock.tensors import TensorSpec

NAME: Final = "penstock_engine"
"""Backend and platform: no other server has one of the kind, and none should take it for its own."""

_ON_DEVICE_INSTANCES: Final = 2


class EngineBackend:
    """Wraps a loaded engine and owns it from then on."""

    name = NAME
    platform = NAME

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.outputs

    @property
    def max_batch_size(self) -> int:
        """What the configuration gets when it names none; 0: no batch dimension."""
        return self._engine.max_batch_size

    @property
    def default_instances(self) -> int:
        """What the configuration gets when it names none: on a GPU the host copies for one while another computes."""
        return _ON_DEVICE_INSTANCES if self._engine.on_device else 1

    @property
    def answers_on_device(self) -> bool:
        """Whether tensors on a GPU go in and come out without crossing the host."""
        return self._engine.answers_on_device

    @property
    def fresh_outputs(self) -> bool:
        """What every runtime promises (`engine/runtimes/base.py`)."""
        return True

    def instance(self, index: int, count: int, threads: int | None) -> Instance:
        """Threads and streams were divided when the engine was loaded (`engine.load(instances=, threads=)`).

        On a GPU it is ready for its first batch: nothing is captured while clients wait.
        """
        found = self._engine.instance()
        try:
            found.prepare()
        except BaseException:
            found.close()
            raise
        return found

    def close(self) -> None:
        self._engine.close()


class BorrowedEngineBackend(EngineBackend):
    """Wraps an engine that stays its maker's: closing the backend leaves it usable."""

    def close(self) -> None:
        """The engine is not ours to close."""
