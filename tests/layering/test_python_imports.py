"""Who imports whom among the Python folders; each rule is held by the checkout and broken by an example."""

from collections.abc import Callable

import pytest

from tests.layering import python_rules as rules
from tests.layering.sources import Sources, checkout

Rule = Callable[[Sources], list[str]]
SERVE = "python/penstock/serve/server.py"
RULES = [rules.layers, rules.leaves, rules.frameworks, rules.owners, rules.pickles]
RUNTIME = "python/penstock/engine/runtimes/torch.py"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_checkout_keeps_the_rule(rule: Rule) -> None:
    assert rule(checkout()) == []


def test_the_checkout_is_seen() -> None:
    """A rule over no files would always hold."""
    sources = checkout()
    found = [each for path in sources if path.startswith(rules.PACKAGE) and path.endswith(".py")
             for each in rules.imports(path, sources[path])]  # fmt: skip
    assert {each.path for each in found if each.target == "penstock._core"} >= {SERVE, "python/penstock/bench/load.py"}
    assert {each.package for each in found} >= {"onnxruntime", "openvino", "ml_dtypes", "numpy", "typer"}


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("python/penstock/backends/base.py", "from penstock import _core", "backends must not know _core"),
        ("python/penstock/backends/base.py", "import penstock.serve.server", "backends must not know serve"),
        ("python/penstock/backends/base.py", "from ..repository import Model", "backends must not know repository"),
        ("python/penstock/backends/base.py", "def f():\n  from penstock.serve import Server", "must not know serve"),
        ("python/penstock/repository/models.py", "from penstock import serve", "repository must not know serve"),
        (
            "python/penstock/engine/cores.py",
            "from penstock.backends.base import Backend",
            "engine must not know backends",
        ),
        ("python/penstock/serve/server.py", "from penstock.build import build", "serve must not know build"),
        ("python/penstock/build/driver.py", "from penstock.backends import base", "build must not know backends"),
        ("python/penstock/graph/fold.py", "from penstock.tactics import timer", "graph must not know tactics"),
        ("python/penstock/tune/search.py", "from penstock.serve import Server", "tune must not know serve"),
        ("python/penstock/serve/server.py", "from penstock.cli import main", "serve must not know cli"),
        (SERVE, "import importlib\nimportlib.import_module('penstock.cli')", "serve must not know cli"),
        (SERVE, "def f():\n  __import__('penstock.cli.serve')", "serve must not know cli"),
        ("python/penstock/__init__.py", "from penstock.cli import main", "penstock must not know cli"),
        ("python/penstock/__init__.py", "from . import _core", "penstock must not know _core"),
        ("python/penstock/errors.py", "from penstock import limits", "errors is a leaf"),
        ("python/penstock/limits.py", "from penstock.serve import Server", "limits is a leaf"),
        ("python/penstock/attic/old.py", "", "attic: has no row in MAY_IMPORT"),
    ],
)
def test_an_import_across_the_layers_is_found(path: str, text: str, words: str) -> None:
    package = {"python/penstock/cli/__init__.py": "", "python/penstock/serve/__init__.py": ""}
    (complaint,) = rules.layers({**package, path: text})
    assert words in complaint


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("python/penstock/cli/serve.py", "from penstock import _core, serve\nimport penstock.build.driver"),
        ("python/penstock/bench/client.py", "from penstock import _core, errors"),
        ("python/penstock/serve/server.py", "import penstock\nfrom penstock import __version__, limits"),
        ("python/penstock/tactics/timer.py", "from penstock.engine import load\nfrom penstock.graph import regions"),
        ("python/penstock/errors.py", "import typing\nimport numpy.typing"),
    ],
)
def test_an_import_down_the_layers_is_allowed(path: str, text: str) -> None:
    assert rules.layers({path: text}) == []
    assert rules.leaves({path: text}) == []


@pytest.mark.parametrize("text", ["import requests", "import ml_dtypes", "from google.protobuf import message"])
def test_a_leaf_that_needs_a_library_is_found(text: str) -> None:
    assert len(rules.leaves({"python/penstock/tensors.py": text})) == 1


def test_a_leaf_may_import_ml_dtypes_inside_a_function() -> None:
    assert rules.leaves({"python/penstock/tensors.py": "def f():\n    import ml_dtypes"}) == []


def test_a_framework_imported_by_two_modules_is_found() -> None:
    both = {RUNTIME: "import torch.cuda", "python/penstock/engine/contexts.py": "from torch import cuda"}
    assert len(rules.frameworks(both)) == 2
    assert rules.frameworks({RUNTIME: "import torch.cuda"}) == []


def test_a_folder_about_a_framework_may_import_it_throughout() -> None:
    inside = {
        "python/penstock/engine/cuda/executor.py": "import torch\nfrom penstock.engine.cuda import steps",
        "python/penstock/engine/cuda/steps.py": "import torch",
    }
    assert rules.frameworks(inside) == []
    outside = inside | {"python/penstock/engine/engine.py": "from penstock.engine.cuda.steps import conv"}
    assert len(rules.frameworks(outside)) == 1
    assert len(rules.frameworks(inside | {"python/penstock/engine/other.py": "import torch"})) == 3


@pytest.mark.parametrize(
    "text", ["from penstock.engine.runtimes.torch import Torch", "import penstock.engine.runtimes.torch",
             "from .runtimes import torch"],
)  # fmt: skip
def test_a_module_with_a_framework_is_imported_lazily(text: str) -> None:
    sources = {RUNTIME: "import torch", "python/penstock/engine/__init__.py": text}
    assert len(rules.frameworks(sources)) == 1
    sources["python/penstock/engine/__init__.py"] = f"def f():\n    {text}"
    assert rules.frameworks(sources) == []
    sources["python/penstock/engine/__init__.py"] = f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {text}"
    assert rules.frameworks(sources) == []


@pytest.mark.parametrize(
    "text",
    [
        "if not TYPE_CHECKING:\n    import torch",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import torch",
        "if typing.TYPE_CHECKING or True:\n    import torch",
        "class A:\n    import torch",
        "try:\n    import torch\nexcept ImportError:\n    pass",
        "torch = import_module('torch')",
    ],
)
def test_what_runs_when_a_module_is_imported_is_eager(text: str) -> None:
    assert [each.eager for each in rules.imports(RUNTIME, text)] == [True]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (SERVE, "import typer"),
        ("python/penstock/bench/table.py", "from rich.table import Table"),
        ("python/penstock/repository/config.py", "from google.protobuf import message"),
    ],
)
def test_a_package_of_another_place_is_found(path: str, text: str) -> None:
    (complaint,) = rules.owners({path: text})
    assert "belongs to" in complaint
    assert rules.owners({path: f"def f():\n    {text}"}) == []


def test_a_package_is_imported_where_it_belongs() -> None:
    for package, owners in rules.OWNERS.items():
        for owner in (owners,) if isinstance(owners, str) else owners:
            path = owner if owner.endswith(".py") else f"{owner}a.py"
            assert rules.owners({path: f"import {package}"}) == []
            assert [each for each in checkout() if each.startswith(owner)], f"{package}: nothing is at {owner}"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("benches/a.py", "import pickle"),
        ("tests/a.py", "def f():\n    from joblib import load"),
        ("examples/a.py", "import numpy as np\nnp.load('a.npy', allow_pickle=True)"),
        ("python/penstock/serve/a.py", "from multiprocessing import Queue"),
    ],
)
def test_a_pickle_is_found_anywhere(path: str, text: str) -> None:
    assert len(rules.pickles({path: text})) == 1


@pytest.mark.parametrize("text", ["from multiprocessing import shared_memory", "np.load('a.npy', allow_pickle=False)"])
def test_what_does_not_pickle_is_allowed(text: str) -> None:
    assert rules.pickles({"python/penstock/serve/a.py": text}) == []
