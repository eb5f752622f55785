"""A launch of a kernel in CUDA C++ as data, for what Triton has no words for: clusters of blocks and their memory.

The twin of `launching.Launch`: run it, compile it for a GPU that need not be there, or seal it into an engine, which
then launches it without any compiler. Sources lie in `cpp/`; what a launch knows beforehand are constants in them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import torch

from . import nvrtc, replay
from .cubins import Cubins, default_folder, key_of
from .driver import HOPPER, AnyMap, LoadedKernel, LoadedModule, SealedKernel
from .nvrtc import Compiled

_FOLDER: Final = Path(__file__).parent / "cpp"
_HEADERS: Final = ("primitives.cuh", "walk.cuh", "warpgroup.cuh")


@dataclass(frozen=True, slots=True)
class CppLaunch:
    source: str
    """A file in `cpp/`."""
    symbol: str
    """An `extern "C"` kernel whose parameters are the `arguments` that are there, in order."""
    grid: tuple[int, int, int]
    threads: int
    arguments: tuple[torch.Tensor | None, ...]
    constants: Mapping[str, int]
    """Macros."""
    shared_bytes: int = 0
    """Beyond what the source itself declares."""
    cluster: int = 1
    """As the source declares it."""
    pdl: bool = False
    """As `Launch.pdl`."""
    maps: tuple[AnyMap, ...] = ()
    """Through these the kernel sees the first of its arguments, as many as there are."""
    alone: bool = False
    """As `Launch.alone`."""

    def run(self) -> None:
        stream = torch.cuda.current_stream()
        launcher = replay.current()
        if launcher is None or not launcher.launch(self, stream.cuda_stream):
            major, minor = torch.cuda.get_device_capability(stream.device)
            _loaded(self.seal(10 * major + minor), stream.device.index).launch(self.bound(), stream.cuda_stream)

    def compile(self, capability: int = HOPPER) -> Compiled:
        """Raises CompilerError; the same launch is compiled once in a process, or in another one that it asked."""
        return compiled(self.source, self.options, capability)

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(f"-D{name}={value}" for name, value in self.constants.items())

    def is_compiled(self, capability: int) -> bool:
        return (self.source, self.options, capability) in _known

    def remember(self, made: Compiled, capability: int) -> None:
        """As another process compiled it."""
        _known.setdefault((self.source, self.options, capability), made)

    def build(self, capability: int = HOPPER) -> None:
        self.compile(capability)

    def seal(self, capability: int = HOPPER) -> SealedKernel:
        """Its machine code and all that launching it takes, but for `bound`, which holds where the tensors are now."""
        parameters = "m" * len(self.maps) + "p" * (len(self.bound()) - len(self.maps))
        return SealedKernel(
            self.compile(capability).cubin, self.symbol, self.grid, self.threads, self.shared_bytes, parameters,
            self.pdl and not self.alone, self.cluster, self.maps,
        )  # fmt: skip

    def bound(self) -> list[int | float]:
        """The arguments of a `driver.LoadedKernel.launch`. They do not keep the tensors alive."""
        return [each.data_ptr() for each in self.arguments if each is not None]


def text(name: str) -> str:
    """Of a source."""
    return (_FOLDER / name).read_text()


_known: Final[dict[tuple[str, tuple[str, ...], int], Compiled]] = {}


def compiled(source: str, options: tuple[str, ...], capability: int) -> Compiled:
    """Of a file in `cpp/`, now or by whoever compiled it here before. Raises CompilerError."""
    found = _known.get((source, options, capability))
    if found is None:
        # What Hopper alone has, Hopper's own architecture has.
        architecture = f"sm_{capability}a" if capability == HOPPER else f"sm_{capability}"
        body, headers = text(source), [(name, text(name)) for name in _HEADERS]
        key = key_of([nvrtc.version(), architecture, *options, body, *(each for _, each in headers)])
        cubins = Cubins(default_folder())
        found = cubins.find(key)
        if found is None:
            found = nvrtc.compile_cpp(body, headers, options, architecture)
            cubins.keep(key, found)
        _known[source, options, capability] = found
    return found


@cache
def _loaded(sealed: SealedKernel, device: int) -> LoadedKernel:
    """Stays on the GPU: a graph that was captured with it may be replayed at any time."""
    del device  # of the current context
    return LoadedKernel(sealed, LoadedModule(sealed.cubin))
