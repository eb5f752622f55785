"""The container of an engine file: a zip of plain members that can be read without trusting it.

Members are stored as they are and start at multiples of 64 bytes. Reading takes the zip's directory as a claim: names,
sizes and places are bounded and compared with the bytes before anything is allocated or read. Files are replaced in one
step: there is a whole one or none. Called by `sealed`, which knows what members mean.
"""

import hashlib
import os
import re
import struct
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from penstock import limits
from penstock.errors import InvalidArgument, ModelLoadError, NotFound

# One level of plain names: nothing that could lead out of a folder, hide, or be taken for another.
_NAMES: Final = re.compile(r"[a-z]+\.[a-z]+|artifacts/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")

_ALIGNMENT: Final = 64  # a cache line, and what the widest vector loads want
_CHUNK: Final = 1 << 20
_TIME: Final = (1980, 1, 1, 0, 0, 0)  # the same engine gives the same bytes
_PADDING_FIELD: Final = 0xD935  # the extra field that Android's zipalign pads with
# Records of PKWARE's APPNOTE 6.3.10: local header (4.3.7), end of the directory (4.3.16) and its 64-bit form (4.3.14).
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_END: Final = struct.Struct("<4s4H2IH")
_LOCATOR: Final = struct.Struct("<4sIQI")
_END_64: Final = struct.Struct("<4sQ2H2I4Q")
_MAGICS: Final = {_LOCAL: b"PK\x03\x04", _END: b"PK\x05\x06", _LOCATOR: b"PK\x06\x07", _END_64: b"PK\x06\x06"}
_MODE: Final = 0o644
_DIRECTORY_ENTRY_BYTES: Final = 512  # header, name and extra fields of one member, generously


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member's bytes lie."""

    offset: int
    size: int


class Archive:
    """An open file and where its members lie. It stays open as long as this lives, whatever happens to its name."""

    def __init__(self, path: Path) -> None:
        """Raises NotFound, and ModelLoadError for anything that `write` can't have written."""
        self.name = path.name
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"engine {path.name!r} does not exist") from None
        except OSError as error:
            raise ModelLoadError(f"{path.name} can't be read: {error.strerror}") from None
        weakref.finalize(self, os.close, self._file)
        try:
            self.size = os.fstat(self._file).st_size
            self.places: Mapping[str, Place] = self._members(self._directory_offset())
        except OSError as error:
            raise ModelLoadError(f"{path.name} can't be read: {error.strerror or error}") from None
        except (zipfile.BadZipFile, struct.error, ValueError, EOFError, NotImplementedError) as error:
            raise ModelLoadError(f"{self.name} is no engine, or it is cut ({error}); build it again") from None

    def read(self, name: str) -> memoryview:
        """One member, from the file as it is now."""
        place = self.places[name]
        data = bytearray(place.size)
        view = memoryview(data)
        at = 0
        while at < place.size:
            count = os.preadv(self._file, [view[at : at + _CHUNK]], place.offset + at)
            if count == 0:
                raise ModelLoadError(f"{self.name}: the file was cut while it was in use; build it again")
            at += count
        return view.toreadonly()

    def digest(self, name: str) -> str:
        """sha256 of one member, without holding it."""
        place = self.places[name]
        found = hashlib.sha256()
        at = 0
        while at < place.size:
            data = os.pread(self._file, min(_CHUNK, place.size - at), place.offset + at)
            if not data:
                raise ModelLoadError(f"{self.name}: the file was cut while it was in use; build it again")
            found.update(data)
            at += len(data)
        return found.hexdigest()

    def copy(self, path: Path) -> None:
        """The same bytes under another name."""

        def fill(file: IO[bytes]) -> None:
            at = 0
            while data := os.pread(self._file, _CHUNK, at):
                file.write(data)
                at += len(data)

        replace(path, fill)

    def _directory_offset(self) -> int:
        """Where the directory begins, once its size is bounded: a library makes an object of each of its entries."""
        at = self.size - _END.size
        end = self._record(_END, at)
        size, comment = end[5], end[7]
        if comment:
            raise ValueError("something follows the directory")
        locator_at = at - _LOCATOR.size
        if locator_at >= 0 and os.pread(self._file, 4, locator_at) == _MAGICS[_LOCATOR]:
            at = self._record(_LOCATOR, locator_at)[2]
            size = self._record(_END_64, at)[8]
        if size > limits.ENGINE_MEMBERS * _DIRECTORY_ENTRY_BYTES:
            raise ValueError(f"its directory has {size} bytes")
        return at - size

    def _record(self, record: struct.Struct, offset: int) -> tuple[int, ...]:
        if not 0 <= offset <= self.size - record.size:
            raise ValueError("its directory is not at the end")
        found = record.unpack(os.pread(self._file, record.size, offset))
        if found[0] != _MAGICS[record]:
            raise ValueError("its directory is not at the end")
        return found

    def _members(self, directory: int) -> dict[str, Place]:
        """Members lie one after the other from the first byte to the directory: nothing is between or before them."""
        with os.fdopen(os.dup(self._file), "rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        if len(entries) > limits.ENGINE_MEMBERS:
            raise ValueError(f"{len(entries)} members, expected at most {limits.ENGINE_MEMBERS}")
        found: dict[str, Place] = {}
        end = 0
        for entry in sorted(entries, key=lambda each: each.header_offset):
            if _NAMES.fullmatch(entry.orig_filename) is None or entry.filename in found:
                raise ValueError(f"member {entry.orig_filename[:100]!a} has no place in an engine")
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits:
                raise ValueError(f"member {entry.filename!r} is packed; engines hold plain members only")
            header = self._record(_LOCAL, entry.header_offset)
            name_at = entry.header_offset + _LOCAL.size
            name = entry.filename.encode()
            first = name_at + header[-2] + header[-1]
            same = header[2] == header[3] == 0 and os.pread(self._file, header[-2], name_at) == name
            if not same or entry.header_offset != end or first + entry.file_size > directory:
                raise ValueError(f"member {entry.filename!r} is not where the directory says")
            end = first + entry.file_size
            found[entry.filename] = Place(first, entry.file_size)
        if end != directory:
            raise ValueError("something lies between its members and its directory")
        return found


def check_place(path: Path) -> None:
    """Whether a file can be written there, before the work that gives its content. Raises NotFound, InvalidArgument."""
    if not path.parent.is_dir():
        raise NotFound(f"directory {path.parent.name!r} for {path.name} does not exist; make it first")
    if path.is_dir():
        raise InvalidArgument(f"{path.name} is a directory, expected the name of a file to write")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidArgument(f"{path.name} can't be written there: permission denied")


def write(path: Path, members: Mapping[str, bytes | Path], *, lasting: bool = True) -> None:
    """Write an archive; what was at `path` is replaced in one step.

    lasting  whether it is on the disk when this returns; one that is only read and copied need not be.

    Raises OSError (the disk), and leaves `path` alone then.
    """

    def fill(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, data in members.items():
                assert _NAMES.fullmatch(name), name
                _add(archive, file, name, data)

    replace(path, fill, lasting=lasting)


def replace(path: Path, fill: Callable[[IO[bytes]], None], *, lasting: bool = True) -> None:
    """Write beside the place, to the disk, and rename. Raises OSError with the name that was given."""
    try:
        _replace(path, fill, lasting=lasting)
    except OSError as error:
        if error.errno is None or not (error.filename is None or f"/.{path.name}." in f"/{error.filename}"):
            raise  # of what goes into it
        raise OSError(error.errno, error.strerror, str(path)) from None


def _replace(path: Path, fill: Callable[[IO[bytes]], None], *, lasting: bool) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            fill(file)
            file.flush()
            os.fchmod(file.fileno(), _MODE)
            if lasting:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    # The rename itself lives in the folder.
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def digest(data: bytes | Path) -> str:
    """sha256 of what will be a member."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add(archive: zipfile.ZipFile, file: IO[bytes], name: str, data: bytes | Path) -> None:
    entry = zipfile.ZipInfo(name, _TIME)
    entry.external_attr = _MODE << 16
    size = len(data) if isinstance(data, bytes) else data.stat().st_size
    big = size >= zipfile.ZIP64_LIMIT
    # ZIP64 puts 20 bytes of its own before what is written here.
    before = file.tell() + _LOCAL.size + len(name) + (20 if big else 0)
    padding = -(before + 4) % _ALIGNMENT
    entry.extra = struct.pack("<HH", _PADDING_FIELD, padding) + bytes(padding)
    with archive.open(entry, "w", force_zip64=big) as target:
        if isinstance(data, bytes):
            target.write(data)
            return
        with data.open("rb") as source:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
