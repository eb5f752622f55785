"""The checkout as a mapping of paths to texts: what the rules of this folder are checked on.

A rule is a pure function over such a mapping, so that a test can hand it a violation made up for the purpose. Files
that `.gitignore` names are left out; of the others every one that is UTF-8 text is there, committed or not.
"""

import fnmatch
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

CHECKOUT = Path(__file__).resolve().parents[2]
Sources = Mapping[str, str]


class Ignored:
    """The patterns of one `.gitignore` that this project uses: names, paths from the root, `*` within a name."""

    def __init__(self, text: str) -> None:
        patterns = [line.strip().rstrip("/") for line in text.splitlines() if line.strip() and line[0] != "#"]
        self._paths = [pattern.lstrip("/") for pattern in patterns if "/" in pattern]
        self._names = [pattern for pattern in patterns if "/" not in pattern]

    def __contains__(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self._paths) or any(
            fnmatch.fnmatchcase(name, pattern) for pattern in self._names
        )


def _files(ignored: Ignored) -> Iterator[str]:
    for folder, folders, names in os.walk(CHECKOUT):
        here = Path(folder).relative_to(CHECKOUT)
        folders[:] = sorted(each for each in folders if each != ".git" and (here / each).as_posix() not in ignored)
        yield from (path for name in sorted(names) if (path := (here / name).as_posix()) not in ignored)


@cache
def checkout() -> Sources:
    """Every text file, by its path from the root with forward slashes."""
    found: dict[str, str] = {}
    for path in _files(Ignored((CHECKOUT / ".gitignore").read_text(encoding="utf-8"))):
        data = (CHECKOUT / path).read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            found[path] = text
    return MappingProxyType(found)


def below(sources: Sources, prefix: str, *suffixes: str) -> dict[str, str]:
    """The files whose paths start with the prefix and end in one of the suffixes."""
    return {path: text for path, text in sources.items() if path.startswith(prefix) and path.endswith(suffixes)}
