"""Which models are in service, and the only place where that changes: load, reload, unload, index, poll.

Operations on one model take turns; different models load side by side. A reload keeps the old versions in service
until the new ones are ready, replaces them at once, and retires them behind the scenes; a failed one changes nothing.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from penstock import _core
from penstock.backends.base import Concurrent
from penstock.errors import AlreadyExists, Internal, NotFound, PenstockError, Unavailable
from penstock.repository import Model, Repository
from penstock.serve.accelerator import Accelerator
from penstock.serve.engine_cache import EngineCache
from penstock.serve.event_loop import EventLoop
from penstock.serve.hosting import Hosted, host
from penstock.serve.options import Batching
from penstock.serve.spec import specification

log = logging.getLogger("penstock")

Row = tuple[str, str, str, str]  # name, version, state, reason


@dataclass(slots=True)
class _Entry:
    """What is known of one model name."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    hosted: list[Hosted] = field(default_factory=list)
    failure: str | None = None
    """Why the latest load failed."""
    unloaded: bool = False
    added: bool = False
    """By the program: a model of that name in the repository is refused."""
    fingerprint: str | None = None
    """Of the files when they were last loaded, or tried; for polling. None: nothing of it came from the repository."""


class Catalogue:
    """All models of one server."""

    def __init__(
        self,
        front: _core.Front,
        repository: Repository | None,
        batching: Batching,
        engines: EngineCache,
        event_loop: EventLoop,
    ) -> None:
        self._front = front
        self._event_loop = event_loop
        self._repository = repository
        self._batching = batching
        self._accelerator = Accelerator(engines, self._swap)
        self._lock = threading.Lock()  # guards the two below
        self._entries: dict[str, _Entry] = {}
        self._retiring: list[threading.Thread] = []
        self._closed = False

    def load(self, name: str, config: str | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """Load or reload from the repository. Raises what `Repository.load` raises."""
        repository = self._repository
        if repository is None:
            raise NotFound(f"failed to load {name!r}: this server has no model repository")
        if self._entry(name).added:
            raise AlreadyExists(f"failed to load {name!r}: the program added a model of that name; rename one of them")
        fingerprint = _fingerprint(repository, name)
        self._install(name, lambda: repository.load(name, config, files), fingerprint)

    def add(self, name: str, load: Callable[[], list[Model]]) -> None:
        """Put models in service that did not come from a repository."""
        self._install(name, load, None)
        self._entry(name).added = True

    def unload(self, name: str) -> None:
        """Take a model out of service; its queued requests are still answered. Unloading what is not loaded is done."""
        with self._lock:
            entry = self._entries.get(name)
        if entry is None:
            return
        with entry.lock:
            self._front.withdraw(name)
            self._retire(entry.hosted)
            entry.hosted, entry.failure, entry.fingerprint, entry.unloaded = [], None, None, True

    def concurrent(self, name: str) -> Concurrent:
        """What answers the requests of a model on the event loop. Raises NotFound for others."""
        with self._lock:
            entry = self._entries.get(name)
        for hosted in entry.hosted if entry else []:
            if hosted.model.concurrent is not None:
                return hosted.model.concurrent
        raise NotFound(f"no pipeline named {name!r} is in service")

    def index(self, *, ready_only: bool) -> list[Row]:
        """One row for each version in service, and one for each known model that is not."""
        on_disk = {entry.name: entry for entry in self._repository.index()} if self._repository else {}
        with self._lock:
            entries = dict(self._entries)
        rows: list[Row] = []
        for name in sorted(entries.keys() | on_disk.keys()):
            entry = entries.get(name)
            hosted = list(entry.hosted) if entry else []
            rows += [(name, str(each.version), "READY", self._accelerator.reason(each)) for each in hosted]
            if hosted or ready_only:
                continue
            versions = on_disk[name].versions if name in on_disk else ()
            latest = str(versions[-1]) if versions else ""
            if entry and entry.failure is not None:
                rows.append((name, latest, "UNAVAILABLE", entry.failure))
            elif entry and entry.unloaded:
                rows.append((name, latest, "UNAVAILABLE", "unloaded"))
            elif name in on_disk:
                rows.append((name, "", "", on_disk[name].problem or ""))
        return rows

    def poll(self) -> None:
        """Compare the repository with what is loaded: load what is new or changed, unload what is gone."""
        repository = self._repository
        if repository is None:
            return
        with self._lock:
            added = {name for name, entry in self._entries.items() if entry.added}
            known = {name: entry.fingerprint for name, entry in self._entries.items() if entry.fingerprint is not None}
        names = set(repository.names()) - added
        for name in sorted(known.keys() - names):
            log.info("model %r is gone from the repository", name)
            self.unload(name)
        for name in sorted(names):
            if _fingerprint(repository, name) != known.get(name):
                try:
                    self.load(name)
                except NotFound:
                    log.info("model %r went while it was looked at", name)  # the next look finds it gone
                except PenstockError as error:
                    log.error("%s", error)

    def stop_building(self) -> None:
        """End what is built behind models in service: the machine is wanted for finishing."""
        self._accelerator.close()

    def close(self, timeout_seconds: float) -> bool:
        """Retire everything; True when every instance ended in time."""
        self.stop_building()
        with self._lock:
            self._closed = True
            entries = list(self._entries.values())
            retiring = list(self._retiring)
        deadline = time.monotonic() + timeout_seconds
        done = True
        for entry in entries:
            for hosted in entry.hosted:
                hosted.core.close()
        for entry in entries:
            for hosted in entry.hosted:
                done = hosted.retire(max(0.0, deadline - time.monotonic())) and done
            entry.hosted = []
        for thread in retiring:
            thread.join(max(0.0, deadline - time.monotonic()))
        return done

    def _install(self, name: str, load: Callable[[], list[Model]], fingerprint: str | None) -> None:
        entry = self._entry(name)
        with entry.lock:
            serving = bool(entry.hosted)
            if not serving:
                self._front.set_pending(name, "loading")
            entry.fingerprint = fingerprint
            started = time.perf_counter()
            try:
                hosted = self._start(load(), started)
            except NotFound as error:
                # A name that nobody knows leaves nothing behind, however often it is asked for.
                if not serving:
                    self._front.forget(name)
                    with self._lock:
                        self._entries.pop(name, None)
                raise NotFound(f"failed to load {name!r}: {error.message}") from error
            except Exception as error:
                entry.failure = str(error) if isinstance(error, PenstockError) else type(error).__name__
                if not serving:
                    self._front.set_pending(name, entry.failure)
                if isinstance(error, PenstockError):
                    raise type(error)(f"failed to load {name!r}: {error.message}") from error
                log.exception("model %r could not be loaded", name)
                raise Internal(f"failed to load {name!r}: {type(error).__name__}; the server's log has more") from error
            self._front.publish(name, [version.core for version in hosted])
            replaced, entry.hosted, entry.failure, entry.unloaded = entry.hosted, hosted, None, False
            self._retire(replaced)
            for version in hosted:
                self._accelerator.consider(version)
        versions = ", ".join(str(version.version) for version in hosted)
        log.info("model %r, version %s, is ready after %.2f s", name, versions, time.perf_counter() - started)

    def _swap(self, hosted: Hosted, model: Model) -> bool:
        """Put another model in the place of one version in service; False, and closed, when that is gone."""
        name = hosted.model.name
        entry = self._entry(name)
        with entry.lock:
            if hosted not in entry.hosted:
                model.close()
                return False
            (fresh,) = self._start([model], time.perf_counter())
            entry.hosted = [fresh if each is hosted else each for each in entry.hosted]
            self._front.publish(name, [version.core for version in entry.hosted])
            self._retire([hosted])
        return True

    def _start(self, models: list[Model], started: float) -> list[Hosted]:
        if self._closed:
            for model in models:
                model.close()
            raise Unavailable("server is shutting down")
        for model in models:
            for note in model.config.notes:
                log.warning("model %r: %s", model.name, note)
        models = [self._accelerator.ready_made(model) for model in models]
        seconds = time.perf_counter() - started
        specifications = [specification(model, self._batching, seconds) for model in models]
        return host(models, specifications, self._event_loop, lambda: self._closed)

    def _entry(self, name: str) -> _Entry:
        with self._lock:
            return self._entries.setdefault(name, _Entry())

    def _retire(self, replaced: list[Hosted]) -> None:
        """Let them finish without holding up whoever replaced them."""
        for hosted in replaced:
            self._accelerator.forget(hosted)
            hosted.core.close()
        if not replaced:
            return
        thread = threading.Thread(target=_retire_all, args=(replaced,), name="penstock-retire", daemon=True)
        thread.start()
        with self._lock:
            self._retiring = [other for other in self._retiring if other.is_alive()]
            self._retiring.append(thread)


def _retire_all(replaced: list[Hosted]) -> None:
    for hosted in replaced:
        hosted.retire()


def _fingerprint(repository: Repository, name: str) -> str:
    """Also of what can't be read: it differs from every fingerprint of files, and changes with the reason."""
    try:
        return repository.fingerprint(name)
    except PenstockError as error:
        return str(error)
