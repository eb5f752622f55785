"""The tracker's search branch as torch runs it on a CPU: plainly, channels last, in BF16, and compiled.

Arrays in and arrays out, as every other way of the story. Needs torch. Called by `tracker_cpu`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy.typing as npt
import torch
from torch import nn

from benches.stories.tracker_results import EAGER
from examples.tracker import engines, network

Arrays = Mapping[str, npt.NDArray[Any]]
Way = tuple[str, Callable[[Arrays], dict[str, npt.NDArray[Any]]], str]

_FORMATS: Final = {False: torch.contiguous_format, True: torch.channels_last}


def ways(*, compiled: bool) -> dict[str, Way]:
    """By name: precision, call and note. torch.compile with frozen weights where it is asked for."""
    found: dict[str, Way] = {}
    for title, dtype, last, compiles in (
        ("FP32", torch.float32, False, False),
        ("FP32, channels last", torch.float32, True, False),
        ("BF16, channels last", torch.bfloat16, True, False),
        ("FP32, channels last", torch.float32, True, True),
        ("BF16, channels last", torch.bfloat16, True, True),
    ):
        if compiles and not compiled:
            continue
        start = "torch.compile" if compiles else EAGER
        found[f"{start} {title}"] = title[:4], _call(dtype, last=last, compiles=compiles), ""
    return found


def _call(dtype: torch.dtype, *, last: bool, compiles: bool) -> Callable[[Arrays], dict[str, npt.NDArray[Any]]]:
    form = _FORMATS[last]
    module: nn.Module = network.SearchBranch(engines.tracker()).to(dtype=dtype, memory_format=form)
    compute: Any = torch.compile(module, dynamic=False) if compiles else module

    def call(arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        with torch.no_grad(), _frozen(compiles):
            given = [torch.from_numpy(each).to(dtype=dtype, memory_format=form) for each in arrays.values()]
            answers = compute(*given)
            return {name: each.float().numpy() for name, each in zip(engines.OUTPUTS, answers, strict=True)}

    return call


@contextmanager
def _frozen(compiles: bool) -> Iterator[None]:
    if not compiles:
        yield
        return
    from torch._inductor import config

    with config.patch(freezing=True):
        yield
