"""`import penstock` is light: no package but its own comes with it. `tests/cli/test_import.py` measures the time."""

import subprocess
import sys

SCRIPT = """
import sys
before = set(sys.modules)
import {module}
packages = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(packages - set(sys.stdlib_module_names)))
if "penstock._core" in sys.modules:
    print("penstock._core")
"""


def brought_by(module: str) -> set[str]:
    """Packages outside the standard library that importing the module brings into a fresh interpreter."""
    script = SCRIPT.format(module=module)
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    return set(done.stdout.split())


def test_importing_the_package_brings_no_other() -> None:
    assert brought_by("penstock") == {"penstock"}


def test_a_framework_would_be_seen() -> None:
    assert "onnxruntime" in brought_by("penstock.engine.runtimes.onnxruntime")


def test_the_data_plane_would_be_seen() -> None:
    assert "penstock._core" in brought_by("penstock.serve")
