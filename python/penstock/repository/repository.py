"""Directories of models in Triton's layout: NAME/config.pbtxt (optional) and NAME/VERSION/model.onnx (or model.engine).

Reads what is on disk at the moment of asking and keeps no state; what is loaded and ready is the serve layer's affair.
Every path is resolved and must lie beneath its root: a symbolic link may point inside the repository, never out of it.
Safe to call from several threads.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from penstock.backends.base import check_model_name
from penstock.backends.engine import NAME as ENGINE
from penstock.errors import ConfigError, InvalidArgument, ModelLoadError, NotFound, PenstockError, Unavailable
from penstock.repository import overrides, warmup
from penstock.repository.beneath import inside
from penstock.repository.complete import DEFAULT_MAX_BATCH
from penstock.repository.config import All, Config, Latest, Specific, parse
from penstock.repository.models import RUNTIME_OF_SUFFIX, SUPPORTED, Model, loaded

log = logging.getLogger("penstock")

_CONFIG: Final = "config.pbtxt"
# Backend or platform of a configuration -> runtime, and the file it looks for when none is named.
_RUNTIMES: Final = {
    "onnxruntime": "onnxruntime",
    "onnxruntime_onnx": "onnxruntime",
    "openvino": "openvino",
    ENGINE: ENGINE,
}
_FILES: Final = {
    "onnxruntime": ("model.onnx",),
    "openvino": ("model.xml", "model.onnx"),
    ENGINE: ("model.engine",),
    # An engine goes before the model it was built from.
    "": ("model.engine", "model.onnx", "model.xml"),
}
_MAX_FILES: Final = 65536  # entries of one model directory that a fingerprint looks at


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A model on disk and its version directories, oldest first; `problem` says why it can't be read."""

    name: str
    versions: tuple[int, ...]
    problem: str | None = None


class Repository:
    """One or several roots that hold model directories."""

    def __init__(self, roots: Sequence[str | Path]) -> None:
        self._roots: list[Path] = []
        self._passed_over: set[str] = set()  # said once
        for root in map(Path, roots):
            if not root.is_dir():
                raise NotFound(f"model repository {root.name!r} is not a directory")
            self._roots.append(root.resolve())

    def names(self) -> list[str]:
        """Names of all model directories, sorted. What can't be a model's name is passed over with a warning.

        Raises Unavailable when a repository can't be read.
        """
        found: set[str] = set()
        for root in self._roots:
            try:
                with os.scandir(root) as entries:
                    found.update(entry.name for entry in entries if entry.is_dir() and self._is_name(entry.name))
            except OSError as error:
                raise Unavailable(f"model repository {root.name!r} can't be read: {error.strerror}") from None
        return sorted(found)

    def index(self) -> list[IndexEntry]:
        """Everything on disk, readable or not."""
        return [self._entry(name) for name in self.names()]

    def versions(self, name: str) -> list[int]:
        """Version directories of a model, oldest first. Names that are not plain positive numbers are passed over."""
        return _versions(self._directory(name))

    def load(self, name: str, config: str | None = None, files: Mapping[str, bytes] | None = None) -> list[Model]:
        """Load the versions that the policy asks for, oldest first.

        config  JSON that replaces config.pbtxt for this load.
        files   {"1/model.onnx": bytes} that replaces the directory for this load; needs `config`, as with Triton.

        All or nothing: when one version fails, those loaded before it are closed again. Raises NotFound, ConfigError,
        ModelLoadError, InvalidArgument or ResourceExhausted.
        """
        check_model_name(name)
        if not files:
            directory = self._directory(name)
            return self._load(name, directory, directory.parent, config, _held_by_nobody)
        if config is None:
            raise InvalidArgument(f"load of {name!r} brings files but no configuration; add the parameter config")
        private = overrides.write(name, files)
        try:
            return self._load(name, private.path, private.path, config, lambda: _hold(private))
        finally:
            private.release()

    def fingerprint(self, name: str) -> str:
        """Changes when a file of the model does (name, size, modification time): what polling compares."""
        digest = hashlib.sha256()
        pending = [self._directory(name)]
        seen = 0
        while pending and seen < _MAX_FILES:
            directory = pending.pop()
            try:
                entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
            except OSError:
                continue
            for entry in entries:
                seen += 1
                try:
                    own, target = entry.stat(follow_symlinks=False), entry.stat()
                except OSError:
                    continue
                fields = (entry.path, own.st_mtime_ns, own.st_ino, target.st_mtime_ns, target.st_size, target.st_ino)
                digest.update(repr(fields).encode("utf-8", "surrogateescape"))
                # A link to a directory counts by its target's own time only: following it might never end.
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
        return digest.hexdigest()

    def _load(
        self, name: str, directory: Path, root: Path, override: str | None, hold: Callable[[], Callable[[], None]]
    ) -> list[Model]:
        config = parse(name, _config_text(directory, root) if override is None else None, override)
        calibration = _calibration(config, directory)
        models: list[Model] = []
        try:
            for version in _chosen(config, _versions(directory)):
                # Each version is completed from its own file, starting from what was written.
                written = Config(type(config.message).FromString(config.to_bytes()), config.written, config.notes)
                path = _model_file(written, directory / str(version), root)
                release = hold()
                try:
                    models.append(loaded(written, version, path, DEFAULT_MAX_BATCH, release, calibration))
                except BaseException:
                    release()
                    raise
                models[-1].warmup = warmup.samples(models[-1].config, directory, root)
        except BaseException:
            for model in models:
                model.close()
            raise
        return models

    def _directory(self, name: str) -> Path:
        check_model_name(name)
        found = [root / name for root in self._roots if (root / name).is_dir()]
        if not found:
            raise NotFound(f"model {name!r} is not in the repository")
        if len(found) > 1:
            raise ConfigError(f"model {name!r} is in {len(found)} repositories; keep it in one")
        inside(found[0], found[0].parent, f"model {name!r}")
        return found[0]

    def _entry(self, name: str) -> IndexEntry:
        try:
            return IndexEntry(name, tuple(self.versions(name)))
        except PenstockError as error:
            return IndexEntry(name, (), error.message)
        except OSError as error:
            return IndexEntry(name, (), f"its directory can't be read: {error.strerror}")

    def _is_name(self, name: str) -> bool:
        if name.startswith("."):
            return False  # hidden directories belong to version control and mounts
        try:
            check_model_name(name)
        except InvalidArgument as error:
            if name not in self._passed_over:
                self._passed_over.add(name)
                log.warning("a directory of the model repository is not served: %s", error)
            return False
        return True


def _held_by_nobody() -> Callable[[], None]:
    return lambda: None


def _hold(directory: overrides.FileDirectory) -> Callable[[], None]:
    directory.hold()
    return directory.release


def _versions(directory: Path) -> list[int]:
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    # Up to 18 digits: a version is an int64 on the wire.
    return sorted(
        int(name) for name in names if name.isascii() and name.isdigit() and name[0] != "0" and len(name) < 19
    )


def _calibration(config: Config, directory: Path) -> Path | None:
    """Of the accelerator, if it names one: a file of this model and of no other."""
    if config.acceleration is None or config.acceleration.calibration is None:
        return None
    where = f"model {config.name!r}: calibration"
    path = directory / config.acceleration.calibration
    if not inside(path, directory.resolve(), where).is_file():
        raise ConfigError(f"{where}: {path.name!r} is not a file")
    return path


def _config_text(directory: Path, root: Path) -> str | None:
    path = directory / _CONFIG
    if not path.exists() and not path.is_symlink():
        return None
    where = f"{_CONFIG} of model {directory.name!r}"
    inside(path, root, where)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ConfigError(f"{where} can't be read: {reason}") from None


def _chosen(config: Config, versions: list[int]) -> list[int]:
    match config.version_policy:
        case Latest(count):
            chosen = versions[-count:]
        case Specific(wanted):
            chosen = [version for version in versions if version in wanted]
        case All():
            chosen = versions
    if not chosen:
        found = ", ".join(map(str, versions)) or "none"
        raise ModelLoadError(f"model {config.name!r} has no version that its version_policy asks for (found: {found})")
    return chosen


def _model_file(config: Config, directory: Path, root: Path) -> Path:
    """The file to load, with `config.message.backend` set to the runtime that reads it."""
    message = config.message
    where = f"model {config.name!r} version {directory.name}"
    named = message.backend or message.platform
    runtime = _RUNTIMES.get(named, "")
    if named and not runtime:
        raise ModelLoadError(f"{where}: backend {named!r} is not served, expected {ENGINE}, onnxruntime or openvino")
    names: Sequence[str] = _FILES[runtime]
    if message.default_model_filename:
        names = (message.default_model_filename,)
        if "/" in names[0] or names[0] in (".", "..") or Path(names[0]).suffix not in RUNTIME_OF_SUFFIX:
            raise ConfigError(
                f"{where}: default_model_filename {names[0]!r} must be a plain name of *.engine, *.onnx or *.xml"
            )
    for name in names:
        if (directory / name).exists():
            message.backend = runtime or RUNTIME_OF_SUFFIX[Path(name).suffix]
            if (weights := (directory / name).with_suffix(".bin")).is_symlink():  # an .xml reads its weights from there
                inside(weights, root, where)
            return inside(directory / name, root, where)
    present = sorted(entry.name for entry in os.scandir(directory))[:5]
    raise ModelLoadError(
        f"{where} has {', '.join(present) or 'no files'}, expected {' or '.join(names)}; served are {SUPPORTED}"
    )
