"""What this machine is, as far as timings and compiled programs depend on it.

Called by the builder, which writes it into engines and cache keys, and by `check`, which compares. No library is
imported: versions come from the installed packages' metadata.
"""

import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Final

from penstock.engine import cores, gpus
from penstock.engine.plan import CUDA, Fingerprint
from penstock.errors import Unsupported

# Instruction sets that CPU kernels are chosen by, as Linux names them (x86, then Arm).
RELEVANT: Final = frozenset(
    {
        *("sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx_ne_convert", "avx10"),
        *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
        *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
        *("asimd", "asimdhp", "asimddp", "fphp", "i8mm", "bf16", "sve", "sve2", "svebf16", "svei8mm"),
    }
)
# Packages that programs for a GPU are compiled or executed by.
_OF_GPUS: Final = ("torch", "triton")
# Builds of a library that are packages of other names.
_OTHER_NAMES: Final = {"onnxruntime": ("onnxruntime-gpu",)}
_SM: Final = "sm_"
_MULTIPROCESSORS: Final = "multiprocessors_"
_CPUINFO: Final = Path("/proc/cpuinfo")


def here(libraries: Iterable[str] = ("onnxruntime", "openvino"), device: str = "cpu") -> Fingerprint:
    """This machine's CPU, or one of its GPUs, and the versions of those libraries that are installed.

    device  `cpu`, or `cuda:N`, whose libraries come on top. Raises Unsupported where there is no such GPU.
    """
    model, features = processor(_read(_CPUINFO))
    found = Fingerprint(
        device="cpu",
        model=model or platform.processor() or platform.machine(),
        features=tuple(sorted(features & RELEVANT)),
        cores=cores.available(),
        libraries=_versions(libraries),
    )
    if device == "cpu":
        return found
    gpu = _gpu(device)
    return Fingerprint(
        device=f"{CUDA}:{gpu.name}",
        model=found.model,
        features=tuple(sorted({*found.features, f"{_MULTIPROCESSORS}{gpu.multiprocessors}", f"{_SM}{gpu.capability}"})),
        cores=found.cores,
        libraries={**found.libraries, **_versions(_OF_GPUS), "cuda-driver": gpu.driver},
    )


def like(built: Fingerprint, libraries: Iterable[str] = ("onnxruntime", "openvino")) -> Fingerprint:
    """This machine as far as an engine of that machine could run on it: for a GPU's the GPU that it would be loaded on.

    Nothing is asked of a GPU's driver for an engine of a CPU.
    """
    if kind(built) == CUDA and any(f"{CUDA}:{each.number}" == gpus.chosen() for each in gpus.gpus()):
        return here(libraries, gpus.chosen())
    return here(libraries)


def of_gpu(fingerprint: Fingerprint) -> frozenset[str]:
    """The features that are a GPU's; the others are the processor's."""
    return frozenset(each for each in fingerprint.features if each.startswith((_SM, _MULTIPROCESSORS)))


def kind(fingerprint: Fingerprint) -> str:
    """`cpu` or `cuda`."""
    return fingerprint.device.partition(":")[0]


def _gpu(device: str) -> gpus.Gpu:
    number = int(device.partition(":")[2] or 0)
    for each in gpus.gpus():
        if each.number == number:
            return each
    there = ", ".join(f"cuda:{each.number} ({each.name})" for each in gpus.gpus()) or "no NVIDIA GPU with a driver"
    raise Unsupported(f"device {device}: there is {there} here; expected one that is, or cpu")


def _versions(packages: Iterable[str]) -> dict[str, str]:
    return {name: version for name in sorted(set(packages)) if (version := _version(name)) is not None}


def processor(cpuinfo: str) -> tuple[str, frozenset[str]]:
    """Model name and flags in the text of /proc/cpuinfo; the first processor's, since all are alike."""
    model, features = "", frozenset[str]()
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "CPU part") and not model:
            model = value.strip()
        elif key.strip() in ("flags", "Features") and not features:
            features = frozenset(value.split())
        if model and features:
            break
    return model, features


def _version(package: str) -> str | None:
    for name in (package, *_OTHER_NAMES.get(package, ())):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
