"""Paths that stay beneath a root: what a configuration or a load request names, and where a link on disk leads.

A symbolic link may point anywhere inside the repository, never out of it. Called by whoever opens or writes a file of a
model.
"""

import re
from pathlib import Path
from typing import Final

from penstock import limits
from penstock.errors import ModelLoadError

_PART: Final = re.compile(r"[A-Za-z0-9._-]+")
_MAX_PARTS: Final = 8  # VERSION/DIRECTORY/.../FILE: deeper than any model keeps its weights


def inside(path: Path, root: Path, what: str) -> Path:
    """The path itself, once it is certain that it leads nowhere outside the root, which is resolved already."""
    try:
        path.resolve(strict=True).relative_to(root)
    except (OSError, ValueError, RuntimeError):
        raise ModelLoadError(f"{what}: {path.name!r} is missing, or a link that leads out of the repository") from None
    return path


def plain(text: str) -> bool:
    """Whether this is a relative path of plain names, which goes nowhere but down."""
    parts = text.split("/")
    return len(parts) <= _MAX_PARTS and all(
        _PART.fullmatch(part) and part not in (".", "..") and len(part) <= limits.NAME_BYTES for part in parts
    )
