"""Engines that this server built, by what they were built from: a folder of this user's, never of the repository.

A key holds everything that an engine depends on: the bytes of the model, what was asked for, the machine, the versions
of the libraries. So what is found may be used, once `check` says so. Engines carry native code: the folder is made for
its owner alone, and one that others may write to is not used. It may be deleted at any time. Called by `accelerator`.
"""

import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

import penstock
from penstock.engine import ENGINE_SUFFIX, fingerprint
from penstock.engine.runtimes import LIBRARIES, onnx_file
from penstock.errors import ConfigError
from penstock.repository import Model

_CHUNK: Final = 1 << 20
_WORKING: Final = "building-"
_STALE_SECONDS: Final = 2 * 86400.0  # no build takes that long: what is older belongs to a server that was killed


def default_folder() -> Path:
    """Of this user, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # Relative paths in the variable are to be ignored, says the specification.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "penstock" / "engines"


class EngineCache:
    """One folder. Nothing is touched before an engine is asked for."""

    def __init__(self, folder: Path | None = None) -> None:
        """None: the default."""
        self._folder = folder
        self._ready = False

    def key(self, model: Model) -> str:
        """Reads all of the model's files. Raises OSError."""
        buildable = model.buildable
        if buildable is None:
            raise ConfigError(f"model {model.name!r} asks for no engine")
        digest = hashlib.sha256()
        path = buildable.path
        inside = [path.parent / name for name in sorted(onnx_file.inspect(path).external)]
        for file in [path, *inside, *([buildable.calibration] if buildable.calibration else [])]:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        asked = [
            buildable.acceleration.flags(),
            [(spec.name, spec.shape) for spec in buildable.inputs],
            model.config.max_batch_size,
            asdict(fingerprint.here(LIBRARIES)),
            penstock.__version__,
        ]
        digest.update(json.dumps(asked, default=dict).encode())
        return digest.hexdigest()

    def find(self, key: str) -> Path | None:
        path = self._place(key)
        return path if path.is_file() else None

    def put(self, key: str, engine: Path) -> Path:
        """Move an engine in, at once; it must lie in a working folder of this cache."""
        return engine.rename(self._place(key))

    def remove(self, key: str) -> None:
        self._place(key).unlink(missing_ok=True)

    def working_folder(self) -> Path:
        """A fresh folder for a build, beside the engines so that one can be moved in. The caller removes it."""
        return Path(tempfile.mkdtemp(prefix=_WORKING, dir=self._opened()))

    def _place(self, key: str) -> Path:
        return self._opened() / f"{key}{ENGINE_SUFFIX}"

    def _opened(self) -> Path:
        """The folder, once it is there and safe. Raises ConfigError and OSError."""
        folder = self._folder or default_folder()
        if not self._ready:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.stat()
            if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ConfigError(
                    f"the engine cache {folder.name!r} can be written to by others, who could put code there; "
                    "chmod go-w, or name another with --engine-cache"
                )
            _sweep(folder)
            self._ready = True
        return folder


def _sweep(folder: Path) -> None:
    for each in folder.glob(f"{_WORKING}*"):
        if each.is_dir() and time.time() - each.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(each, ignore_errors=True)
