"""Machine code of CUDA C++ on disk, for the builds that come after: what Triton's own cache is for its kernels.

A file is a kernel: its name says source, headers, options, architecture and compiler, its first line what the machine
code takes and its digest. A file that cannot be read, or is not whole, is compiled again, and a folder that cannot be
written is none. The oldest go when there are many. Called by the processes that compile.
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from .nvrtc import Compiled

MOST: Final = 4000
"""Files, of some 30 kB each."""

_SUFFIX: Final = ".cubin"


def default_folder() -> Path:
    """Of this user, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # Relative paths in the variable are to be ignored, says the specification.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "penstock" / "kernels"


class Cubins:
    """One folder. Nothing is touched before something is asked for."""

    def __init__(self, folder: Path, most: int = MOST) -> None:
        self._folder, self._most = folder, most

    def find(self, key: str) -> Compiled | None:
        path = self._folder / (key + _SUFFIX)
        try:
            head, _, cubin = path.read_bytes().partition(b"\n")
            told = json.loads(head)
            if told["sha256"] != hashlib.sha256(cubin).hexdigest():
                return None
            found = Compiled(cubin, int(told["registers"]), int(told["spilled_bytes"]))
            os.utime(path)  # what is used stays
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found

    def keep(self, key: str, made: Compiled) -> None:
        told = {
            "registers": made.registers,
            "spilled_bytes": made.spilled_bytes,
            "sha256": hashlib.sha256(made.cubin).hexdigest(),
        }
        beside = self._folder / f".{key}.{os.getpid()}"
        with suppress(OSError):  # a disk that is full, or nobody's home
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside.write_bytes(json.dumps(told).encode() + b"\n" + made.cubin)
            beside.replace(self._folder / (key + _SUFFIX))
            self._make_room()

    def _make_room(self) -> None:
        files = list(self._folder.glob("*" + _SUFFIX))
        if len(files) <= self._most:
            return
        # A tenth more than need be, so that it is not done with every file.
        for each in sorted(files, key=_age)[: len(files) - self._most + self._most // 10]:
            each.unlink(missing_ok=True)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process took it away
        return 0.0


def key_of(parts: list[str]) -> str:
    """A digest of texts, none of which runs into the next."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
