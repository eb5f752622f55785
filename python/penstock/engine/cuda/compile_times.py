"""How long a kernel takes to compile, about: what a tuner with few seconds has processes do first depends on it.

Seconds of one core, as Triton 3.6 and NVRTC 13 took for Hopper. Most kernels are alike; those whose loops are written
out for the compiler take it many times as long. Called by `candidates`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from penstock.engine.cuda.ways import Launched

_USUAL: Final = 0.35
_CPP: Final = 0.2
_SLOW: Final[Mapping[str, float]] = {
    "bottleneck_kernel": 0.8,
    "expand_depthwise_kernel": 1.0,
    "fork_kernel": 1.0,
    "stem.cu": 0.9,
    "bottleneck.cu": 0.8,
}
_WRITTEN_OUT: Final = 0.015  # for each product of one thread's, and each filter's number it loads


def seconds(launch: "Launched") -> float:
    from penstock.engine.cuda.kernels.cpp_launching import CppLaunch

    if isinstance(launch, CppLaunch):
        return _SLOW.get(launch.source, _CPP)
    told = launch.constants
    taps = int(told.get("TAPS_HIGH", 0)) * int(told.get("TAPS_WIDE", 0))
    if taps and "COLUMNS" in told:
        return _USUAL / 2 + _WRITTEN_OUT * taps * (1 + int(told["COLUMNS"]))
    return _SLOW.get(launch.symbol, _USUAL)
