"""What a machine is: read from /proc/cpuinfo and package metadata, without importing a library."""

import subprocess
import sys
from importlib import metadata

import pytest

from penstock.engine import cores, fingerprint

INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8488C
flags\t\t: fpu sse4_2 avx2 fma avx512f avx512_bf16 amx_bf16 amx_int8 hypervisor

processor\t: 1
model name\t: Another
flags\t\t: fpu avx2 avx512_fp16
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp bf16 i8mm sve
CPU part\t: 0xd40
"""


@pytest.mark.parametrize(
    ("text", "model", "features"),
    [
        (
            INTEL,
            "Intel(R) Xeon(R) Platinum 8488C",
            {"fpu", "sse4_2", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "hypervisor"},
        ),
        (ARM, "0xd40", {"fp", "asimd", "asimddp", "bf16", "i8mm", "sve"}),
        ("", "", set()),
        ("nonsense without a colon\n::\n", "", set()),
    ],
)
def test_the_first_processor_counts(text: str, model: str, features: set[str]) -> None:
    assert fingerprint.processor(text) == (model, features)


def test_here_is_this_machine() -> None:
    found = fingerprint.here(["onnxruntime", "no-such-library"])
    assert found.device == "cpu"
    assert found.model
    assert found.cores == cores.available()
    assert list(found.features) == sorted(set(found.features) & fingerprint.RELEVANT)
    assert found.libraries == {"onnxruntime": metadata.version("onnxruntime")}
    assert fingerprint.here(["onnxruntime", "no-such-library"]) == found


def test_no_library_is_imported_to_learn_its_version() -> None:
    code = (
        "import sys; from penstock.engine import fingerprint; found = fingerprint.here();"
        "assert set(found.libraries) == {'onnxruntime', 'openvino'};"
        "assert not {'onnxruntime', 'openvino', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
