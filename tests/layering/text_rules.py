"""Rules about every text file, and about files that must say the same; pure functions over {path: text}."""

import ast
import re
import tomllib
from typing import Final

from tests.layering.sources import Sources, below

CODE: Final = (".py", ".pyi", ".rs", ".lua", ".sh", ".js")
MAX_LINES: Final = 500  # beyond it a file holds two ideas

# A path that exists on one person's machine only.
_OWN_PATH: Final = re.compile(r"(?<![\w.$}~-])(?:/(?:home|Users)/\w[\w.-]*|/(?:root|work)/|[A-Z]:\\Users\b)")

# Where packages come from is the business of whoever installs them.
_HOST: Final = re.compile(
    r"\b(?:pypi\.org|pythonhosted\.org|crates\.io|npmjs\.(?:org|com)|anaconda\.(?:org|com)|download\.pytorch\.org|"
    r"deb\.debian\.org|archive\.ubuntu\.com)\b|--(?:extra-)?index-url|--find-link[s]\b|\bindex-url\s*="
)
# How Cargo spells its default registry in every lock file.
_CARGO: Final = re.compile(r"registry\+https://github\.com/rust-lang/crates\.io-index")

_RUNS_TEXT: Final = frozenset(
    {"eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "asyncio.create_subprocess_shell"}
)

_SOURCE: Final = "python/penstock/limits.toml"
_CONSTANTS: Final = "python/penstock/limits.py"
_GENERATOR: Final = "crates/schema/build.rs"


def _lines(sources: Sources, pattern: re.Pattern[str], why: str) -> list[str]:
    return [
        f"{path}:{number}: {found[0]}: {why}"
        for path, text in sources.items()
        for number, line in enumerate(text.splitlines(), 1)
        if (found := pattern.search(_CARGO.sub("", line) if path.endswith("Cargo.lock") else line))
    ]


def own_paths(sources: Sources) -> list[str]:
    return _lines(sources, _OWN_PATH, "a path of one machine; use one relative to the checkout, or an option")


def package_hosts(sources: Sources) -> list[str]:
    return _lines(sources, _HOST, "names where packages come from; leave that to whoever installs")


def long_files(sources: Sources) -> list[str]:
    counts = {path: len(text.splitlines()) for path, text in below(sources, "", *CODE).items()}
    return [
        f"{path}: {count} lines, expected at most {MAX_LINES}" for path, count in counts.items() if count > MAX_LINES
    ]


def requirements(sources: Sources) -> list[str]:
    """requirements/runtime.in repeats the dependencies of pyproject.toml, for environments built before the package."""
    declared = set(tomllib.loads(sources["pyproject.toml"])["project"]["dependencies"])
    lines = (line.partition("#")[0].strip() for line in sources["requirements/runtime.in"].splitlines())
    repeated = {line for line in lines if line}
    return [f"{name}: in pyproject.toml, not in requirements/runtime.in" for name in sorted(declared - repeated)] + [
        f"{name}: in requirements/runtime.in, not in pyproject.toml" for name in sorted(repeated - declared)
    ]


def runs_text(sources: Sources) -> list[str]:
    """The package hands no text to Python or to a shell to run: names and files of strangers pass through it."""
    complaints: list[str] = []
    for path, text in below(sources, "python/", ".py").items():
        for node in ast.walk(ast.parse(text, path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            # The builtins only: `network.eval()` is a method that runs nothing.
            if called.removeprefix("builtins.") in _RUNS_TEXT:
                complaints.append(f"{path}:{node.lineno}: {called}: runs text; call what is meant")
            if any(each.arg == "shell" and ast.unparse(each.value) != "False" for each in node.keywords):
                complaints.append(f"{path}:{node.lineno}: {called}: shell: pass a list of arguments, without a shell")
    return complaints


def limit_constants(text: str) -> dict[str, str]:
    """Constant -> the limit that it reads: `NAME: Final = LIMITS["name"].value` of limits.py."""
    found: dict[str, str] = {}
    for node in ast.parse(text).body:
        if not isinstance(node, ast.AnnAssign) or node.value is None or not isinstance(node.target, ast.Name):
            continue
        if read := re.fullmatch(r"LIMITS\['(\w+)'\]\.value", ast.unparse(node.value)):
            found[node.target.id] = read[1]
    return found


def limits(sources: Sources) -> list[str]:
    """One source: the Python module has a constant for each bound, Rust generates its own from the same file."""
    bounds, constants = set(tomllib.loads(sources[_SOURCE])), limit_constants(sources[_CONSTANTS])
    complaints = [f"{_CONSTANTS}: no constant reads {name}" for name in sorted(bounds - set(constants.values()))]
    for constant, name in constants.items():
        if name not in bounds:
            complaints.append(f"{_CONSTANTS}: {constant} reads {name}, which {_SOURCE} does not have")
        if constant != name.upper():
            complaints.append(f"{_CONSTANTS}: {constant} reads {name}, expected the name {name.upper()}")
    if _SOURCE not in sources[_GENERATOR]:
        complaints.append(f"{_GENERATOR}: does not read {_SOURCE}")
    return complaints


def _named_limits(code: str) -> set[str]:
    named = set(re.findall(r"\blimits(?:::|\.)([A-Z][A-Z0-9_]*)\b", code))
    # `use penstock_schema::limits::{A, B};`
    for group in re.findall(r"\blimits::\{([^}]*)\}", code):
        named |= set(re.findall(r"\b[A-Z][A-Z0-9_]*\b", group))
    return named


def unknown_limits(sources: Sources) -> list[str]:
    """Every bound that Rust code names is in the one source; the compiler sees this only where the code is built."""
    bounds = {name.upper() for name in tomllib.loads(sources[_SOURCE])}
    return [
        f"{path}: names limits::{name}, which {_SOURCE} does not have"
        for path, text in below(sources, "crates/", ".rs").items()
        for name in sorted(_named_limits(text) - bounds)
    ]


def unread_limits(sources: Sources) -> list[str]:
    """Bounds that no code names: they bound nothing, whatever the file says."""
    code = [text for path, text in below(sources, "crates/", ".rs").items() if "/src/" in path]
    code += [text for path, text in below(sources, "python/penstock/", ".py").items() if path != _CONSTANTS]
    named = _named_limits("\n".join(code))
    return sorted(name for name in tomllib.loads(sources[_SOURCE]) if name.upper() not in named)
