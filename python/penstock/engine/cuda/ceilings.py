"""The ceilings of the GPU at hand, measured in a fraction of a second: arithmetic, memory, and a launch.

Nothing is known beforehand of any chip: a product of matrices that is large for every one, a copy that no cache holds,
and a kernel of one element, each in a CUDA graph. On the CPU, which stands in for a GPU in tests, they are small and by
the clock. Called by the runtime.
"""

from collections.abc import Callable
from functools import cache
from typing import Final

import torch

from penstock.engine.cuda.executor import PRECISIONS
from penstock.engine.cuda.sites import DTYPES
from penstock.engine.cuda.timers import timer_for
from penstock.engine.roofline import Ceilings

_SIDE: Final = 8192  # of the product: 1.1 TFLOP
_COPIED: Final = 1 << 29  # bytes: ten times the largest cache there is
_SHARE_OF_MEMORY: Final = 8  # the copy takes no more than one part in so many of what is free
_SMALL_SIDE: Final = 256
_SMALL_COPY: Final = 1 << 22


def _product(left: torch.Tensor, precision: str) -> Callable[[], object]:
    """Of a matrix with itself. Of e4m3 with fast sums, which our kernels don't have: a ceiling may be out of reach."""
    if precision == "int8":
        whole = (left * 32).clamp(-127, 127).to(torch.int8)
        return lambda: torch._int_mm(whole, whole.t())
    if precision == "fp8" and left.device.type == "cuda":
        one, small = torch.ones((), device=left.device), left.to(torch.float8_e4m3fn)
        return lambda: torch._scaled_mm(
            small, small.t(), scale_a=one, scale_b=one, out_dtype=torch.float16, use_fast_accum=True
        )
    narrow = left.to(DTYPES[PRECISIONS[precision]])
    product = torch.empty_like(narrow)
    return lambda: torch.mm(narrow, narrow, out=product)


@cache
def measured(device: torch.device, precision: str) -> Ceilings:
    """Once for each process; raises torch.cuda.OutOfMemoryError where not even these tensors fit."""
    timer = timer_for(device)
    side, size = _SMALL_SIDE, _SMALL_COPY
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        side, size = _SIDE, min(_COPIED, free // _SHARE_OF_MEMORY)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        with torch.no_grad():
            arithmetic = timer(_product(torch.randn(side, side, device=device), precision))
            source = torch.empty(size, dtype=torch.uint8, device=device)
            target = torch.empty_like(source)
            copy = timer(lambda: target.copy_(source))
            one = torch.zeros(1, device=device)
            launch = timer(lambda: one.add_(1))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return Ceilings(2e6 * side**3 / arithmetic, 2e6 * size / copy, launch)
