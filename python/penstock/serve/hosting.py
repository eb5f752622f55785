"""A model version in service: its queue in the data plane, and the threads that work it off.

Made by `catalogue`, which publishes it once `start` has returned and retires it when it was replaced. Retiring never
loses a request: the queue closes, the threads finish what is in it, then the backend closes.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from penstock import _core
from penstock.backends.base import DeviceInstance, Instance, input_memory
from penstock.repository import Model
from penstock.serve.event_loop import EventLoop
from penstock.serve.spec import Specification

log = logging.getLogger("penstock")


class Hosted:
    """One version. Owns the model: whoever makes a Hosted has handed the model over."""

    def __init__(self, model: Model, specification: Specification) -> None:
        self.model = model
        self.core = _core.Model(specification)
        self._on_device = specification.on_device
        self._instances: list[Instance] = []
        self._threads: list[threading.Thread] = []

    @property
    def version(self) -> int:
        return self.model.version

    def start(self, event_loop: EventLoop) -> None:
        """Let instances wait for batches, or the event loop for requests. What a backend raises here passes through."""
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
        for number, instance in enumerate(self._instances):
            there = instance.execute_on_device if self._on_device and isinstance(instance, DeviceInstance) else None
            self._thread(number, self.core.run, number, instance.execute, memories[number], there)

    def _thread(self, number: int, work: Callable[..., None], *args: Any) -> None:
        # Daemons: a program that never stops its server can still end.
        name = f"penstock-{self.model.name}-{self.version}-{number}"
        thread = threading.Thread(target=work, args=args, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def retire(self, timeout_seconds: float | None = None) -> bool:
        """Finish what is queued, then give everything back. False when the time was over before that."""
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


def host(models: Sequence[Model], specifications: Sequence[Specification], event_loop: EventLoop) -> list[Hosted]:
    """Start all versions of a model, or none: what fails closes the others again."""
    hosted: list[Hosted] = []
    try:
        for model, specification in zip(models, specifications, strict=True):
            hosted.append(Hosted(model, specification))
            hosted[-1].start(event_loop)
    except BaseException:
        for version in hosted:
            version.retire()
        for model in models[len(hosted) :]:
            model.close()
        raise
    return hosted
