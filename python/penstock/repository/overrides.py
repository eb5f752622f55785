"""Files that come with a load request: checked as a whole, then written to a private directory that goes away again.

Nothing is written before every name and the total size have passed. The directory lives as long as a model of it does.
"""

import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from penstock import limits
from penstock.errors import InvalidArgument, ResourceExhausted
from penstock.repository.beneath import plain

_PREFIX: Final = "file:"  # how the parameters of a load request name files


class FileDirectory:
    """A private temporary directory shared by the models loaded from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._users = 0

    def hold(self) -> None:
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """Remove the directory when the last user is gone."""
        with self._lock:
            self._users -= 1
            if self._users > 0:
                return
        shutil.rmtree(self.path, ignore_errors=True)


def checked_names(name: str, files: Mapping[str, bytes]) -> dict[str, tuple[str, ...]]:
    """The parts of each file's path below the model directory; raises before anything was written."""
    if len(files) > limits.REPOSITORY_OVERRIDE_FILES:
        raise ResourceExhausted(
            f"load of {name!r} brings {len(files)} files, expected at most {limits.REPOSITORY_OVERRIDE_FILES}"
        )
    size = sum(map(len, files.values()))
    if size > limits.REPOSITORY_OVERRIDE_BYTES:
        raise ResourceExhausted(
            f"load of {name!r} brings {size} bytes of files, expected at most {limits.REPOSITORY_OVERRIDE_BYTES}"
        )
    found: dict[str, tuple[str, ...]] = {}
    for key in files:
        path = key.removeprefix(_PREFIX)
        if not plain(path):
            raise InvalidArgument(
                f"load of {name!r}: file {key[:80]!a} is refused, expected VERSION/FILE of A-Z a-z 0-9 . _ - "
                f"with at most {limits.NAME_BYTES} characters each"
            )
        found[key] = tuple(path.split("/"))
    places = set(found.values())
    if len(places) != len(found) or any(parts[:end] in places for parts in places for end in range(1, len(parts))):
        raise InvalidArgument(f"load of {name!r}: a file is given twice, or is also the directory of another")
    return found


def write(name: str, files: Mapping[str, bytes]) -> FileDirectory:
    """Write the files below a fresh private directory, held once by the caller."""
    names = checked_names(name, files)
    directory = FileDirectory(Path(tempfile.mkdtemp(prefix="penstock-load-")).resolve())
    directory.hold()
    try:
        for key, parts in names.items():
            place = directory.path.joinpath(*parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(files[key])
    except BaseException:
        directory.release()
        raise
    return directory
