"""What a kernel takes to compile, about: less for what comes first."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from penstock.engine.cuda import compile_times
from penstock.engine.cuda.kernels.cpp_launching import CppLaunch
from penstock.engine.cuda.kernels.depthwise import depthwise_kernel
from penstock.engine.cuda.kernels.fork import fork_kernel
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.moves import planes_kernel

pytestmark = pytest.mark.torch


def depthwise(high: int, wide: int, columns: int) -> float:
    constants = {"TAPS_HIGH": high, "TAPS_WIDE": wide, "COLUMNS": columns}
    return compile_times.seconds(Launch(depthwise_kernel, (1, 1, 1), (), constants, 4))


def test_a_loop_that_is_written_out_takes_longer_the_longer_it_is() -> None:
    times = [depthwise(3, 3, 1), depthwise(1, 7, 4), depthwise(5, 5, 2), depthwise(5, 5, 4), depthwise(7, 7, 4)]
    assert times == sorted(times)
    assert times[-1] > 3


def test_cpp_is_compiled_sooner_than_triton_and_blocks_of_layers_later() -> None:
    short, stem = (CppLaunch(name, "kernel", (1, 1, 1), 32, (), {}) for name in ("short.cu", "stem.cu"))
    usual, fork = (Launch(kernel, (1, 1, 1), (), {}, 4) for kernel in (planes_kernel, fork_kernel))
    assert compile_times.seconds(short) < compile_times.seconds(usual)
    assert compile_times.seconds(usual) < min(map(compile_times.seconds, (fork, stem)))
