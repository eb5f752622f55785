"""A file of what each request did, one JSON document in each line. Written beside the event loop, by one thread.

The records are the pipelines'; here they are text. Lines are appended as soon as their requests are done, and whole: a
process that is killed leaves no half of one. A disk that is full or gone costs the records, never a request.
"""

import json
import logging
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

log = logging.getLogger("penstock")

# Steps that wait for the disk, each some hundred bytes: seconds of a busy server, and some 20 MiB. The requests of
# further ones are left out and counted.
_WAITING: Final = 65536

# A disk that does not answer must not hold up the end of the server.
_CLOSE_SECONDS: Final = 5.0


class Trace:
    """Opened at once, so that a path that can't be written is an error of the start (OSError).

    `write` is for one thread at a time: each counter below is written by one thread alone, which needs no lock.
    """

    def __init__(self, path: Path) -> None:
        try:
            # Unbuffered: what is buffered when a disk is full would be tried again with every line.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise type(error)(
                f"trace {path.name!r} can't be opened: {error.strerror}; name a file in a folder that exists, and that "
                "may be written to"
            ) from None
        self._name = path.name
        self._records: queue.SimpleQueue[tuple[Mapping[str, Any], int] | None] = queue.SimpleQueue()
        self._given = self._taken = 0
        """Steps."""
        self._dropped = self._lost = 0
        """Requests that found no room, and that the disk did not take."""
        self._thread = threading.Thread(target=self._run, name="penstock-trace", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any], steps: int) -> None:
        """Never waits. `steps`: how many there are in the record."""
        size, waiting = steps + 1, self._given - self._taken
        if waiting and waiting + size > _WAITING:
            self._dropped += 1
            return
        self._given += size
        self._records.put((record, size))

    def close(self) -> None:
        """Write what waits, then close."""
        self._records.put(None)
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            log.error("trace %r is left behind: the disk does not answer", self._name)
        if missing := self._dropped + self._lost:
            log.warning("%d requests are missing in trace %r: the disk was full or too slow", missing, self._name)

    def _run(self) -> None:
        failed = ended = False
        while not ended:
            waiting = [self._records.get()]
            while not self._records.empty():
                waiting.append(self._records.get())
            records = [each for each in waiting if each is not None]
            ended = len(records) < len(waiting)
            if not failed:
                failed = not self._append("".join(json.dumps(record) + "\n" for record, _ in records))
            if failed:
                self._lost += len(records)
            self._taken += sum(size for _, size in records)
        try:
            self._file.close()
        except OSError as error:
            log.error("trace %r can't be closed: %s", self._name, error.strerror)

    def _append(self, text: str) -> bool:
        """False once that failed: what follows half of a line could not be read."""
        left = memoryview(text.encode())
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            log.error("trace %r ends here: %s; requests are answered all the same", self._name, error.strerror)
            return False
        return True
