"""What this machine is, as far as timings and compiled programs depend on it.

Called by the builder, which writes it into engines and cache keys, and by `check`, which compares. No library is
imported: versions come from the installed packages' metadata.
"""

import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Final

from penstock.engine import cores
from penstock.engine.plan import Fingerprint

# Instruction sets that CPU kernels are chosen by, as Linux names them (x86, then Arm).
RELEVANT: Final = frozenset(
    {
        *("sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx_ne_convert", "avx10"),
        *("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
        *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
        *("asimd", "asimdhp", "asimddp", "fphp", "i8mm", "bf16", "sve", "sve2", "svebf16", "svei8mm"),
    }
)
_CPUINFO: Final = Path("/proc/cpuinfo")


def here(libraries: Iterable[str] = ("onnxruntime", "openvino")) -> Fingerprint:
    """This machine's CPU, and the versions of those libraries that are installed."""
    model, features = processor(_read(_CPUINFO))
    return Fingerprint(
        device="cpu",
        model=model or platform.processor() or platform.machine(),
        features=tuple(sorted(features & RELEVANT)),
        cores=cores.available(),
        libraries={name: version for name in sorted(set(libraries)) if (version := _version(name)) is not None},
    )


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
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
