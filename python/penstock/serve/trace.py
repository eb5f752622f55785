"""A file of what each request did, one JSON document in each line. Written beside the event loop, by one thread.

The records are the pipelines'; here they are text. A disk that is full or gone costs the records, never a request.
"""

import json
import logging
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

log = logging.getLogger("penstock")

# Records that wait for the disk: seconds of a busy server, and a few MiB. Further ones are dropped and counted.
_WAITING: Final = 16384


class Trace:
    """Opened at once, so that a path that can't be written is an error of the start (OSError)."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._records: queue.Queue[Mapping[str, Any] | None] = queue.Queue(_WAITING)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="penstock-trace", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Never waits."""
        try:
            self._records.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, then close."""
        self._records.put(None)
        self._thread.join()
        if self._dropped:
            log.warning("%d requests are missing in the trace: the disk was too slow", self._dropped)

    def _run(self) -> None:
        failed = False
        while (record := self._records.get()) is not None:
            try:
                self._file.write(json.dumps(record) + "\n")
                if self._records.empty():
                    self._file.flush()
            except OSError as error:
                if not failed:
                    log.error("the trace can't be written: %s", error.strerror)
                failed = True
        try:
            self._file.close()
        except OSError as error:
            log.error("the trace can't be written: %s", error.strerror)
