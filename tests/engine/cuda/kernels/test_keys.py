"""A kernel's key in Triton's cache is the same in every process, whatever each of them compiled before."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = pytest.mark.torch

KEYS = """
import importlib, json, sys
from triton.runtime import JITFunction
from penstock.engine.cuda.kernels.launching import settle
found = {}
for name in ("implicit_gemm_kernel", "bottleneck", "depthwise", "gated_mlp", "max_pool", "moves"):
    module = importlib.import_module("penstock.engine.cuda.kernels." + name)
    found |= {f"{name}.{key}": each for key, each in vars(module).items() if key.endswith("_kernel")}
order = sorted(key for key, each in found.items() if isinstance(each, JITFunction))
first = int(sys.argv[1])
order = order[first:] + order[:first]
keys = {}
for each in order:
    settle(found[each])
    keys[each] = found[each].cache_key
print(json.dumps(keys))
"""


def keys(first: int) -> dict[str, str]:
    compiled = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", KEYS, str(first)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=compiled)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 5
    return {str(name): str(key) for name, key in found.items()}


def test_keys_do_not_depend_on_what_was_compiled_before() -> None:
    assert keys(0) == keys(1) == keys(3)
