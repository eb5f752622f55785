"""A model version in service: its queue in the data plane, and the threads that work it off.

Made by `catalogue`, which publishes it once `start` has returned and retires it when it was replaced. Retiring never
loses a request: the queue closes, the threads finish what is in it, then the backend closes.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import nullcontext
from typing import Any, Final

from penstock import _core
from penstock.backends.base import Array, DeviceInstance, Instance, input_memory
from penstock.repository import Model
from penstock.serve.event_loop import EventLoop
from penstock.serve.spec import Specification
from penstock.serve.warming import warm_up

log = logging.getLogger("penstock")

# The main thread sees a signal only when it wakes, and it may be the one that waits for a warm-up.
_LOOK_SECONDS: Final = 0.1


class Hosted:
    """One version. Owns the model: whoever makes a Hosted has handed the model over."""

    def __init__(self, model: Model, specification: Specification) -> None:
        self.model = model
        self.core = _core.Model(specification)
        self._on_device = specification.on_device
        self._instances: list[Instance] = []
        self._threads: list[threading.Thread] = []
        self._retiring = threading.Event()

    @property
    def version(self) -> int:
        return self.model.version

    def start(self, event_loop: EventLoop, stopped: Callable[[], bool]) -> None:
        """Let instances wait for batches, or the event loop for requests. What a backend raises here passes through.

        Each instance has run the model's warm-up samples by then, one instance after the other: they would take the
        cores of models in service, and memory, all at once. `stopped` ends that early: the server wants to finish.
        """
        concurrent = self.model.concurrent
        if concurrent is not None:
            begin = event_loop.host(self.model.name, concurrent)
            self._thread(0, self.core.run_concurrently, event_loop.exchange, begin, concurrent.max_concurrency)
            return
        config = self.model.config
        count = config.instance_count
        for number in range(count):
            self._instances.append(self.model.backend.instance(number, count, config.threads))
        memories = [dict(input_memory(instance)) for instance in self._instances]
        buildable = self.model.buildable
        with buildable.plain.batches.looking_away() if buildable is not None else nullcontext():
            for number, memory in enumerate(memories):
                self._begin(number, memory, stopped)

    def _begin(self, number: int, memory: dict[str, Array], stopped: Callable[[], bool]) -> None:
        """Start the thread of an instance and wait until it is warm; `memory` is what the instance lends."""
        warmed: Future[None] = Future()
        self._thread(number, self._work, number, memory, warmed, stopped)
        try:
            while not wait([warmed], _LOOK_SECONDS).done:
                pass
            warmed.result()
        finally:
            del warmed  # an error raised here would keep itself alive, and with it the batch in its frames

    def _work(self, number: int, memory: dict[str, Array], warmed: "Future[None]", stopped: Callable[[], bool]) -> None:
        """An instance's life on its thread."""
        instance = self._instances[number]
        try:
            warm_up(self.model, number, instance, memory, lambda: self._retiring.is_set() or stopped())
            warmed.set_result(None)
        except BaseException as error:
            warmed.set_exception(error)
            return
        finally:
            del warmed
        there = instance.execute_on_device if self._on_device and isinstance(instance, DeviceInstance) else None
        self.core.run(number, instance.execute, memory, there)

    def _thread(self, number: int, work: Callable[..., None], *args: Any) -> None:
        # Daemons: a program that never stops its server can still end.
        name = f"penstock-{self.model.name}-{self.version}-{number}"
        thread = threading.Thread(target=work, args=args, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def retire(self, timeout_seconds: float | None = None) -> bool:
        """Finish what is queued, then give everything back. False when the time was over before that."""
        self._retiring.set()
        self.core.close()
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self.core.abort()
            log.error(
                "model %r did not finish in time; its queued requests were answered with an error", self.model.name
            )
            return False
        for instance in self._instances:
            instance.close()
        self._instances.clear()
        self.model.close()
        return True


def host(
    models: Sequence[Model],
    specifications: Sequence[Specification],
    event_loop: EventLoop,
    stopped: Callable[[], bool],
) -> list[Hosted]:
    """Start all versions of a model, or none: what fails closes the others again. `stopped`: as for `Hosted.start`."""
    hosted: list[Hosted] = []
    try:
        for model, specification in zip(models, specifications, strict=True):
            hosted.append(Hosted(model, specification))
            hosted[-1].start(event_loop, stopped)
    except BaseException:
        for version in hosted:
            version.retire()
        for model in models[len(hosted) :]:
            model.close()
        raise
    return hosted
