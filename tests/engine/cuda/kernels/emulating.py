"""Kernels in CUDA C++ compiled for the CPU, a thread for every lane, and run on tensors there."""

import ctypes
import subprocess
from dataclasses import fields
from pathlib import Path

from penstock.engine.cuda.kernels.cpp_launching import CppLaunch, text
from penstock.engine.cuda.kernels.driver import AnyMap, PixelsMap, TensorMap, WindowMap

HERE = Path(__file__).parent
_NAMES = list(dict.fromkeys(each.name for kind in (TensorMap, PixelsMap, WindowMap) for each in fields(kind)))


class EmulatedMap(ctypes.Structure):
    """`TensorMap` of `emulated_warpgroups.hpp`."""

    _fields_ = [("base", ctypes.c_void_p), *((name, ctypes.c_longlong) for name in _NAMES)]

    @classmethod
    def of(cls, address: int, seen: AnyMap) -> "EmulatedMap":
        return cls(address, **{each.name: getattr(seen, each.name) for each in fields(seen)})


def run_on_the_cpu(launch: CppLaunch, folder: Path) -> None:
    library = _compiled(launch, folder)
    bound = [int(each) for each in launch.bound()]
    maps = [EmulatedMap.of(address, one) for address, one in zip(bound, launch.maps, strict=False)]
    arguments = [*(ctypes.addressof(one) for one in maps), *bound[len(maps) :]]
    library.run((ctypes.c_void_p * len(arguments))(*arguments))


def _compiled(launch: CppLaunch, folder: Path) -> ctypes.CDLL:
    source = text(launch.source)
    for declared, found in (
        ('#include "primitives.cuh"\n#include "warpgroup.cuh"', '#include "emulated_warpgroups.hpp"'),
        ("extern __shared__ Quad memory[];", "Quad* memory = block_memory();"),
    ):
        assert declared in source
        source = source.replace(declared, found)
    count = len(launch.bound())
    given = ", ".join(
        f"*static_cast<TensorMap*>(arguments[{number}])"
        if number < len(launch.maps)
        else f"Pointer{{arguments[{number}]}}"
        for number in range(count)
    )
    source += f"""
struct Pointer {{
  void* to;
  template <class T>
  operator T*() const {{ return static_cast<T*>(to); }}
}};
extern "C" void run(void** arguments) {{
  launch({launch.grid[0]}, {launch.cluster}, {launch.threads}, [=] {{ {launch.symbol}({given}); }});
}}
"""
    file, library = folder / "kernel.cpp", folder / "kernel.so"
    file.write_text(source)
    macros = [f"-D{name}={value}" for name, value in launch.constants.items()]
    command = ["g++", "-std=c++20", "-O2", "-w", "-shared", "-fPIC", "-pthread", f"-I{HERE}", *macros, str(file)]
    subprocess.run([*command, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))
