"""Who may depend on whom among the crates, and what must be absent from each; pure functions over {path: text}."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from tests.layering.sources import Sources, below

_PREFIX: Final = "penstock-"

# Crate -> the other crates that it may know, in code and in tests.
MAY_DEPEND: Final[Mapping[str, frozenset[str]]] = {
    "schema": frozenset(),
    "wire": frozenset({"schema"}),
    "dispatch": frozenset({"schema"}),
    "front": frozenset({"schema", "wire", "dispatch"}),
    "load": frozenset({"schema", "wire"}),
    "bridge": frozenset({"schema", "front", "dispatch", "load"}),
}
KNOWS_PYTHON: Final = "bridge"
_PYTHON: Final = frozenset({"pyo3", "pyo3-ffi", "numpy"})

# What a crate may not be built from, since it promises to be free of it.
NOT_WITH: Final[Mapping[str, frozenset[str]]] = {
    "schema": frozenset({"tokio", "hyper", "mio", "socket2"}),
    "wire": frozenset({"tokio", "hyper", "mio", "socket2", "futures"}),
    "dispatch": frozenset({"hyper", "http", "mio", "socket2", "prost", "serde", "serde_json"}),
}

# Sources -> what they don't say, outside comments: the promise, and a pattern of its breach.
ABSENT: Final[tuple[tuple[str, str, str], ...]] = (
    ("crates/schema/src/", "no I/O", r"\bstd::(net|fs|process|thread)\b"),
    ("crates/wire/src/", "no I/O, no clock, no async", r"\bstd::(net|fs|process|thread|time)\b|\basync\b|\bInstant\b"),
    ("crates/dispatch/src/", "no I/O", r"\bstd::(net|fs|process)\b|\btokio::(net|fs|io)\b"),
    ("crates/dispatch/src/", "time comes from Clock", r"\b(Instant|SystemTime)\b"),
    ("crates/dispatch/src/policy.rs", "a pure function", r"\b(Mutex|RwLock|Condvar|Cell|RefCell|Atomic\w+|static)\b"),
    ("crates/front/src/", "knows no Python", r"\bpyo3\b"),
)
_CLOCK: Final = "crates/dispatch/src/clock.rs"

_DEPENDENCIES: Final = ("dependencies", "dev-dependencies", "build-dependencies")


def _dependencies(manifest: Mapping[str, Any], shared: Mapping[str, Any]) -> Iterator[str]:
    """The packages of one manifest by their own names, whatever it or the workspace calls them."""
    for table in (manifest, *manifest.get("target", {}).values()):
        for kind in _DEPENDENCIES:
            for name, wanted in table.get(kind, {}).items():
                inherited = isinstance(wanted, dict) and wanted.get("workspace", False)
                entry = shared.get(name, {}) if inherited else wanted
                yield entry.get("package", name) if isinstance(entry, dict) else name


def crates(sources: Sources) -> dict[str, frozenset[str]]:
    """Crate -> everything its manifest depends on."""
    shared = tomllib.loads(sources.get("Cargo.toml", "")).get("workspace", {}).get("dependencies", {})
    manifests = {path: text for path, text in sources.items() if PurePosixPath(path).match("crates/*/Cargo.toml")}
    return {
        path.split("/")[1]: frozenset(_dependencies(tomllib.loads(text), shared)) for path, text in manifests.items()
    }


def dependencies(sources: Sources) -> list[str]:
    complaints: list[str] = []
    for crate, wanted in crates(sources).items():
        where = f"crates/{crate}/Cargo.toml"
        if crate not in MAY_DEPEND:
            complaints.append(f"{where}: has no row in MAY_DEPEND; decide what it may know")
            continue
        own = {name.removeprefix(_PREFIX) for name in wanted if name.startswith(_PREFIX)}
        complaints += [f"{where}: {crate} must not know {name}" for name in sorted(own - MAY_DEPEND[crate])]
        for name in sorted(wanted & NOT_WITH.get(crate, frozenset())):
            complaints.append(f"{where}: {crate} promises to be free of what {name} is for")
        if crate != KNOWS_PYTHON:
            complaints += [f"{where}: only {KNOWS_PYTHON} knows Python, not by {name}" for name in wanted & _PYTHON]
    return complaints


def unsafe_code(sources: Sources) -> list[str]:
    """Every crate root but that of the bridge forbids unsafe code; each program of src/bin is a root of its own."""
    complaints: list[str] = []
    for crate in crates(sources):
        roots = [path for path in (f"crates/{crate}/src/lib.rs", f"crates/{crate}/src/main.rs") if path in sources]
        if not roots:
            complaints.append(f"crates/{crate}: has no src/lib.rs or src/main.rs to look at")
        roots += [path for path in sources if re.fullmatch(rf"crates/{crate}/src/bin/([^/]+|[^/]+/main)\.rs", path)]
        for path in roots if crate != KNOWS_PYTHON else []:
            if not re.search(r"^#!\[forbid\(unsafe_code\)\]", sources[path], re.MULTILINE):
                complaints.append(f"{path}: lacks #![forbid(unsafe_code)]")
    return complaints


def absent(sources: Sources) -> list[str]:
    """What ABSENT promises. A pattern over the text: it also sees what a macro or a full path would hide from `use`."""
    complaints: list[str] = []
    for prefix, promise, pattern in ABSENT:
        for path, text in below(sources, prefix, ".rs").items():
            if path == _CLOCK and promise == "time comes from Clock":
                continue
            for number, line in enumerate(text.splitlines(), 1):
                if found := re.search(pattern, line.partition("//")[0]):
                    complaints.append(f"{path}:{number}: {found[0]}: {prefix} promises: {promise}")
    return complaints
