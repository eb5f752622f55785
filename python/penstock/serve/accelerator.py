"""Engines for models that ask for one: built behind a model in service, compared with it, and put in its place.

One thread, and one build at a time for the whole server: builds take cores and memory from what is served. Whatever
goes wrong is a line in the log and the model's reason in the repository index, and the model stays in service as it is.
A model that is unloaded or replaced takes its build with it. Called by `catalogue`, which does the replacing.
"""

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from penstock import engine
from penstock.backends.observed import Batch
from penstock.engine import Engine
from penstock.errors import ConfigError, InvalidArgument, PenstockError, Unavailable
from penstock.repository import Buildable, Model, accelerated
from penstock.repository.acceleration import fixed_shapes, middle, shapes_text
from penstock.serve.comparing import Comparison, compare, noise
from penstock.serve.engine_build import EngineBuild
from penstock.serve.engine_cache import EngineCache
from penstock.serve.hosting import Hosted

log = logging.getLogger("penstock")

# Batches that a model with free dimensions has to serve before its shapes are known well enough to build for.
ENOUGH_BATCHES: Final = 100

# The budget is the builder's aim; it finishes the step that it is in. Beyond this something hangs.
_OVERTIME: Final = 3.0
_OVERTIME_SECONDS: Final = 120.0

_LOOK_SECONDS: Final = 0.5  # how often the thread looks whether enough was served
_JOIN_SECONDS: Final = 5.0

# Where an engine does not say what it was held to. Its own gate has seen it; this is for what only live inputs show.
_LEAST_LIKENESS: Final = 0.99


class _State(Enum):
    WAITING = "serves as it is: an engine is built once enough requests have shown their shapes"
    QUEUED = "serves as it is: an engine waits to be built"
    BUILDING = "serves as it is: an engine is being built"
    REFUSED = "serves as it is: "


@dataclass(slots=True, eq=False)
class _Job:
    """One model version that asks for an engine."""

    hosted: Hosted
    buildable: Buildable
    key: str
    state: _State
    problem: str = ""
    """Of a refused one."""

    build: EngineBuild | None = None
    forgotten: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        return f"model {self.hosted.model.name!r} version {self.hosted.version}"

    @property
    def shapes_known(self) -> bool:
        asked = self.buildable.acceleration.shape_flags
        return bool(asked) or fixed_shapes(self.buildable.inputs, 0) is not None

    @property
    def reason(self) -> str:
        return self.state.value + self.problem


class Accelerator:
    """All builds of one server. The thread starts with the first of them."""

    def __init__(self, cache: EngineCache, swap: Callable[[Hosted, Model], bool]) -> None:
        """`swap` puts a model in the place of a version in service, and owns it; False when that is gone."""
        self._cache = cache
        self._swap = swap
        self._changed = threading.Condition()
        self._jobs: dict[Hosted, _Job] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def ready_made(self, model: Model) -> Model:
        """The model by an engine of an earlier day, if there is one; else the model itself. Closes what it replaces."""
        buildable = model.buildable
        if buildable is None:
            return model
        try:
            key = self._cache.key(model)
            path = self._cache.find(key)
            if path is None:
                return model
            found = accelerated(model, _opened(model, path))
            # Its warm-up may read files that came with the load.
            found.release, model.release = model.release, found.release
        except (PenstockError, OSError) as error:
            log.warning("model %r: the engine in the cache is not used: %s", model.name, _sentence(error))
            return model
        buildable.plain.batches.stop()
        model.close()
        log.info("model %r version %d is served by the engine in the cache", model.name, model.version)
        return found

    def consider(self, hosted: Hosted) -> None:
        """Take note of a version in service; one that asks for an engine gets it when its turn comes."""
        buildable = hosted.model.buildable
        if buildable is None:
            return
        problem = ""
        try:
            key = self._cache.key(hosted.model)
        except (PenstockError, OSError) as error:
            key, problem = "", f"no engine can be built: {_sentence(error)}"
        job = _Job(hosted, buildable, key, _State.QUEUED)
        job.state = _State.QUEUED if job.shapes_known else _State.WAITING
        if problem:
            self._refuse(job, problem)
        with self._changed:
            if self._closed:
                return
            self._jobs[hosted] = job
            if self._thread is None:
                # A daemon: it may wait for a library that compiles, which can't be interrupted.
                self._thread = threading.Thread(target=self._work, name="penstock-accelerator", daemon=True)
                self._thread.start()
            self._changed.notify()

    def forget(self, hosted: Hosted) -> None:
        """The version is out of service: end what is done for it. Does not wait."""
        with self._changed:
            job = self._jobs.pop(hosted, None)
        if job is not None:
            self._end(job)

    def reason(self, hosted: Hosted) -> str:
        """What the index says of a version: empty when there is nothing to say."""
        with self._changed:
            job = self._jobs.get(hosted)
        return job.reason if job is not None else ""

    def close(self) -> None:
        """End every build, and wait until its process is gone."""
        with self._changed:
            self._closed = True
            jobs = list(self._jobs.values())
            self._jobs.clear()
            self._changed.notify()
        for job in jobs:
            self._end(job)
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)

    def _end(self, job: _Job) -> None:
        job.forgotten.set()
        if (build := job.build) is not None:
            build.cancel()

    # ---- the thread ----

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._carry_out(job)
            except Unavailable as error:
                if not job.forgotten.is_set():
                    self._refuse(job, _sentence(error))
            except Exception as error:
                if not isinstance(error, (PenstockError, OSError)):
                    log.exception("%s: building an engine failed", job.name)
                self._refuse(job, f"building an engine failed: {_sentence(error)}")

    def _next(self) -> _Job | None:
        """The next one that can be built; None at the end."""
        with self._changed:
            while not self._closed:
                waiting = False
                for job in self._jobs.values():
                    if job.state is _State.WAITING:
                        waiting = True
                        if job.buildable.plain.batches.total >= ENOUGH_BATCHES:
                            job.state = _State.QUEUED
                    if job.state is _State.QUEUED:
                        job.state = _State.BUILDING
                        return job
                self._changed.wait(_LOOK_SECONDS if waiting else None)
            return None

    def _carry_out(self, job: _Job) -> None:
        started = time.monotonic()
        acceleration = job.buildable.acceleration
        build = EngineBuild(
            job.buildable.path,
            _flags(job),
            self._cache.working_folder(),
            limit_seconds=_OVERTIME * acceleration.budget_seconds + _OVERTIME_SECONDS,
        )
        try:
            job.build = build
            if job.forgotten.is_set():  # before there was anything to cancel
                return
            log.info("%s: an engine is being built", job.name)
            problem = build.run()
            if problem:
                self._refuse(job, f"the build failed: {problem}")
                return
            self._take_over(job, build.engine, time.monotonic() - started)
        finally:
            build.clean()

    def _take_over(self, job: _Job, path: Path, seconds: float) -> None:
        model, plain = job.hosted.model, job.buildable.plain
        if not plain.hold():  # unloaded meanwhile
            return
        try:
            opened = _opened(model, path)
            try:
                found = _compared(job, opened)
                if not found.problem:
                    self._cache.put(job.key, path)
            except BaseException:
                opened.close()
                raise
            if found.problem:
                opened.close()
                self._refuse(job, f"the engine was built and is not used: {found.problem}")
                return
            took_over = self._swap(job.hosted, accelerated(model, opened))
        finally:
            plain.close()
        if took_over:
            plain.batches.stop()
            log.info(
                "%s: an engine took over from %s after %.0f s: %.3g ms a batch, before %.3g ms, likeness %.6f",
                job.name, plain.name, seconds, found.engine_ms, found.plain_ms, found.likeness,
            )  # fmt: skip

    def _refuse(self, job: _Job, problem: str) -> None:
        job.problem, job.state = problem, _State.REFUSED
        job.buildable.plain.batches.stop()
        if not job.forgotten.is_set():
            log.warning("%s %s", job.name, job.reason)


def _flags(job: _Job) -> list[str]:
    buildable, largest = job.buildable, job.hosted.model.config.max_batch_size
    flags = buildable.acceleration.flags()
    if buildable.calibration is not None:
        flags.append(f"--calibration={buildable.calibration}")
    if buildable.acceleration.shape_flags:
        return flags
    shapes = fixed_shapes(buildable.inputs, largest)
    if shapes is None:
        head = 1 if largest else 0
        seen = buildable.plain.batches.ranges().items()
        shapes = shapes_text({name: tuple(side[head:] for side in sides) for name, sides in seen}, largest)
    return [*flags, f"--shapes={shapes}"]


def _opened(model: Model, path: Path) -> Engine:
    """Raises ConfigError for an engine that does not run here as it was timed."""
    verdict = engine.check(path)
    if verdict.action != "run":
        raise ConfigError(f"the engine does not run here as it is: {'; '.join(verdict.reasons)}")
    config = model.config
    return engine.open_engine(path, threads=config.threads, instances=config.instance_count)


def _compared(job: _Job, opened: Engine) -> Comparison:
    """On the latest batches that were served; on noise where there were none."""
    buildable, largest = job.buildable, job.hosted.model.config.max_batch_size
    batches = buildable.plain.batches.kept()
    if not batches and fixed_shapes(buildable.inputs, 0) is not None:
        batches = noise(buildable.inputs, largest, middle(largest))
    usable = [batch for batch in batches if _takes(opened, batch)]
    if not usable:
        # Where the model goes on serving what the engine does not take, that may well be everything so far.
        raise ConfigError(
            f"none of the latest {len(batches)} kinds of batches fits the engine, so that it can't be compared; check "
            "the parameter shapes"
        )
    plain, built = buildable.plain.unseen(), opened.instance()
    try:
        return compare(plain, built, usable, buildable.plain.outputs, _least(opened))
    finally:
        plain.close()
        built.close()


def _takes(opened: Engine, batch: Batch) -> bool:
    try:
        opened.route(batch.inputs)
    except InvalidArgument:
        return False
    return True


def _least(opened: Engine) -> float:
    """What the engine was held to when it was built."""
    found = re.fullmatch(r"cosine>=([0-9.]+)", str(opened.manifest.options.get("accuracy", "")))
    return float(found[1]) if found else _LEAST_LIKENESS


def _sentence(error: Exception) -> str:
    """For logs and the index: no path of this host."""
    if isinstance(error, PenstockError):
        return error.message
    return error.strerror or "a file failed" if isinstance(error, OSError) else type(error).__name__
