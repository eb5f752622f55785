"""Who may import whom among the Python folders, as tables, and the functions that hold a tree of sources to them.

Every function takes {path: text} and returns complaints, one line each; no complaint is a pass.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tests.layering.sources import Sources, below

PACKAGE: Final = "python/penstock/"
ROOT: Final = "penstock"  # the package's own __init__: the public face
CORE: Final = "_core"  # the native data plane

LEAVES: Final = frozenset({"errors", "limits", "tensors"})

# Folder -> folders that it may import, besides the leaves and itself. Two chains that meet in `engine` alone, tools
# that reach a server as a client, and the command line on top. A folder without a row has no place in the house yet.
MAY_IMPORT: Final[Mapping[str, frozenset[str]]] = {
    "engine": frozenset(),
    "graph": frozenset({"engine"}),
    "quantize": frozenset({"graph", "engine"}),
    "tactics": frozenset({"graph", "quantize", "engine"}),
    "build": frozenset({"graph", "quantize", "tactics", "engine"}),
    "backends": frozenset({"engine"}),
    "repository": frozenset({"backends", "engine"}),
    "serve": frozenset({"repository", "backends", "engine", CORE, ROOT}),
    "pipeline": frozenset({"serve", "repository", "backends", "engine"}),
    "report": frozenset(),
    "bench": frozenset({"report", CORE}),
    "tune": frozenset({"bench", "report"}),
    "doctor": frozenset({"bench", "report"}),
    ROOT: frozenset({"engine", "backends", "serve", "pipeline", "build"}),
}
IMPORTS_EVERYTHING: Final = "cli"

# Third-party packages of the leaves, and those that leaves may import inside functions only.
OF_LEAVES: Final = frozenset({"numpy"})
LAZY_IN_LEAVES: Final = frozenset({"ml_dtypes"})

# What takes long to import, is an extra, or both.
FRAMEWORKS: Final = frozenset(
    {
        *("cupy", "cv2", "jax", "ml_dtypes", "onnxruntime", "openvino", "optuna"),
        *("pandas", "PIL", "plotly", "ray", "scipy", "tensorflow", "tensorrt", "torch", "torchvision"),
        *("transformers", "triton"),
    }
)

# Folders that are about a framework throughout: who is inside may import it, and its neighbours there; who is outside
# imports them inside functions.
FOLDERS_OF_FRAMEWORKS: Final[Mapping[str, str]] = {
    "torch": f"{PACKAGE}engine/cuda/",
    "triton": f"{PACKAGE}engine/cuda/kernels/",
}

# What belongs to one place, which may import it eagerly without being lazy itself; elsewhere inside functions only.
_BUILDER: Final = tuple(f"{PACKAGE}{folder}/" for folder in ("graph", "quantize", "build"))
OWNERS: Final[Mapping[str, str | tuple[str, ...]]] = {
    "onnx": _BUILDER,
    "onnx_ir": _BUILDER,
    "onnxscript": _BUILDER,
    "typer": "python/penstock/cli/",
    "click": "python/penstock/cli/",
    "rich": "python/penstock/cli/",
    "google": "python/penstock/repository/messages.py",  # protobuf
}

_PICKLES: Final = frozenset({"_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"})


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, as a whole dotted name."""

    path: str
    line: int
    target: str
    eager: bool
    """Carried out when the module is imported: neither inside a function nor for type checkers only."""

    @property
    def package(self) -> str:
        return self.target.partition(".")[0]

    def complain(self, why: str) -> str:
        return f"{self.path}:{self.line}: imports {self.target}: {why}"


def _module(path: str) -> list[str]:
    """`python/penstock/serve/server.py` -> [penstock, serve, server]."""
    parts = path.removeprefix("python/").removesuffix(".py").split("/")
    return parts[:-1] if parts[-1] == "__init__" else parts


def _walk(node: ast.AST, eager: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom | ast.Call, bool]]:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
        yield node, eager
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        eager = False
    # Only the body is for type checkers: `else`, and `if not TYPE_CHECKING`, are what runs.
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for checked in node.body:
            yield from _walk(checked, False)
        for run in node.orelse:
            yield from _walk(run, eager)
        return
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, eager)


def _named_by_call(call: ast.Call) -> str | None:
    """The module that `import_module("a.b")` or `__import__("a.b")` imports; names made at run time are not seen."""
    if ast.unparse(call.func).rpartition(".")[2] not in ("import_module", "__import__") or not call.args:
        return None
    name = call.args[0]
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else None


def imports(path: str, text: str) -> list[Import]:
    """Every import of one file. `from a import b` gives `a.b`, since only the tree tells whether b is a module."""
    found: list[Import] = []
    package = _module(path) if path.endswith("/__init__.py") else _module(path)[:-1]
    for node, eager in _walk(ast.parse(text, path), eager=True):
        if isinstance(node, ast.Import):
            found += [Import(path, node.lineno, alias.name, eager) for alias in node.names]
            continue
        if isinstance(node, ast.Call):
            if name := _named_by_call(node):
                found.append(Import(path, node.lineno, name, eager))
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        prefix = ".".join([*base, *([node.module] if node.module else [])])
        found += [Import(path, node.lineno, f"{prefix}.{alias.name}", eager) for alias in node.names]
    return found


def _all_imports(sources: Sources) -> list[Import]:
    return [each for path, text in below(sources, PACKAGE, ".py").items() for each in imports(path, text)]


def _unit(dotted: list[str], units: Collection[str]) -> str:
    """The folder or leaf that a module of the package belongs to; names that are no module belong to the root."""
    return dotted[1] if len(dotted) > 1 and dotted[1] in units else ROOT


def layers(sources: Sources) -> list[str]:
    """Folders import only what MAY_IMPORT says, and every folder is in it."""
    units = {CORE, IMPORTS_EVERYTHING, *LEAVES, *MAY_IMPORT}
    units |= {parts[1] for path in below(sources, PACKAGE, ".py") if len(parts := _module(path)) > 1}
    complaints = [
        f"{PACKAGE}{unit}: has no row in MAY_IMPORT; decide what it may import"
        for unit in sorted(units - {CORE, IMPORTS_EVERYTHING} - LEAVES - MAY_IMPORT.keys())
    ]
    for each in _all_imports(sources):
        if each.package != "penstock":
            continue
        source, target = _unit(_module(each.path), units), _unit(each.target.split("."), units)
        if source in (target, IMPORTS_EVERYTHING):
            continue
        if source in LEAVES:
            complaints.append(each.complain(f"{source} is a leaf and imports nothing of the package"))
        elif target not in LEAVES and target not in MAY_IMPORT.get(source, frozenset()):
            complaints.append(each.complain(f"{source} must not know {target}"))
    return complaints


def leaves(sources: Sources) -> list[str]:
    """Leaves import the standard library and NumPy; ml_dtypes only where it is needed, inside a function."""
    complaints: list[str] = []
    for each in _all_imports(sources):
        module = _module(each.path)
        if len(module) != 2 or module[1] not in LEAVES or each.package in ("penstock", *sys.stdlib_module_names):
            continue
        lazily = each.package in LAZY_IN_LEAVES and not each.eager
        if each.package not in OF_LEAVES and not lazily:
            complaints.append(
                each.complain("leaves import the standard library and numpy, and ml_dtypes inside functions")
            )
    return complaints


def frameworks(sources: Sources) -> list[str]:
    """A framework is imported inside functions, or by the module or folder about it, imported lazily itself."""
    eager = [each for each in _all_imports(sources) if each.eager]
    carriers: dict[str, dict[str, Import]] = defaultdict(dict)
    for each in eager:
        if each.package in FRAMEWORKS:
            carriers[each.package].setdefault(each.path, each)
    complaints: list[str] = []
    for framework, by_path in carriers.items():
        home = FOLDERS_OF_FRAMEWORKS.get(framework)
        if len(by_path) > 1 and not (home and all(path.startswith(home) for path in by_path)):
            complaints += [each.complain(f"{framework} belongs to one module; import it inside a function")
                           for each in by_path.values()]  # fmt: skip
    heavy = {".".join(_module(path)): path for by_path in carriers.values() for path in by_path}
    homes = FOLDERS_OF_FRAMEWORKS.values()
    for each in eager:
        for module, path in sorted(heavy.items()):
            neighbours = any(each.path.startswith(home) and path.startswith(home) for home in homes)
            # `from a.b import c` is the name a.b.c, whether c is a module or something in it.
            if not neighbours and (each.target == module or each.target.startswith(f"{module}.")):
                complaints.append(each.complain(f"{module} imports a framework; import it inside a function"))
    return complaints


def _places(owner: str | tuple[str, ...]) -> tuple[str, ...]:
    return (owner,) if isinstance(owner, str) else owner


def owners(sources: Sources) -> list[str]:
    """What OWNERS gives to one place is imported there, and elsewhere inside functions only."""
    return [
        each.complain(f"{each.package} belongs to {' '.join(_places(owner))}; import it inside a function")
        for each in _all_imports(sources)
        if each.eager and (owner := OWNERS.get(each.package)) and not each.path.startswith(owner)
    ]


def pickles(sources: Sources) -> list[str]:
    """No module that turns bytes into arbitrary objects; in the package no queues of multiprocessing, which do."""
    complaints: list[str] = []
    for path, text in below(sources, "", ".py").items():
        for each in imports(path, text):
            if each.package in _PICKLES:
                complaints.append(each.complain("reading a pickle runs code"))
            shared_memory = each.target.startswith("multiprocessing.shared_memory")
            if each.package == "multiprocessing" and path.startswith(PACKAGE) and not shared_memory:
                complaints.append(each.complain("its queues and pools pickle; send framed messages"))
        for node in ast.walk(ast.parse(text, path)):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                complaints.append(f"{path}:{node.value.lineno}: allow_pickle: reading a pickle runs code")
    return complaints
