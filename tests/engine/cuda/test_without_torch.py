"""Processes that compile kernels need the names of torch that kernels' modules mention, and not torch."""

import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda.without_torch import _Name, _Tensor

pytestmark = pytest.mark.torch

PROGRAM = """
import sys
from penstock.engine.cuda import without_torch
without_torch.import_kernels()
from penstock.engine.cuda.precompile import serve
from penstock.engine.cuda.kernels.implicit_gemm_kernel import implicit_gemm_kernel
print(implicit_gemm_kernel.__name__, "torch._C" in sys.modules)
"""


def test_every_kernel_is_there_without_torch() -> None:
    told = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    assert told.stdout.split() == ["implicit_gemm_kernel", "False"]


@pytest.mark.parametrize(
    ("name", "size"), [("float16", 2), ("bfloat16", 2), ("float32", 4), ("int8", 1), ("uint8", 1), ("int64", 8),
                       ("float8_e4m3fn", 1), ("bool", 1)],
)  # fmt: skip
def test_types_have_their_sizes(name: str, size: int) -> None:
    tensor = _Tensor((4, 8), _Name(name, (), {}))
    assert tensor.element_size() == size
    assert tensor.stride() == (8, 1)
