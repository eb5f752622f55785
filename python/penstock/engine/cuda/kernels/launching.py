"""A kernel launch as data: which kernel, over which grid, with which arguments and constants.

`run` launches it on the current stream. `compile` builds the same machine code for a GPU that need not be there and
says what it takes; the result lands in Triton's cache, where `run` finds it. `seal` makes it data that `driver` can
launch without Triton. The functions of this package make these.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from . import replay
from .driver import HOPPER, SealedKernel, TensorMap

TYPES: Final[Mapping[torch.dtype, str]] = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
# What Triton assumes of an address it is handed, if it is so; it must be said again to compile without the address.
_ALIGNED: Final = 16


@dataclass(frozen=True, slots=True)
class Resources:
    """What one block of a compiled kernel takes of a multiprocessor."""

    registers: int
    """Of each thread; at most 255."""
    spilled_bytes: int
    """Local memory of each thread: anything but 0 is slow."""
    shared_bytes: int
    uses_wgmma: bool
    """Whether matrix products run on Hopper's warpgroup units; the older ones reach about 60 % of their rate."""


@dataclass(frozen=True, slots=True)
class Tiled:
    """A matrix that a kernel takes block by block through its unit for copies (TMA); what lies outside is zero.

    Its address and its rows are multiples of 16 bytes.
    """

    tensor: torch.Tensor
    block: tuple[int, int]

    def __post_init__(self) -> None:
        across, along = self.tensor.stride()
        itemsize = self.tensor.element_size()
        if along != 1 or across * itemsize % _ALIGNED or self.tensor.data_ptr() % _ALIGNED:
            raise ValueError(f"expected a matrix with rows of multiples of {_ALIGNED} bytes, got {(across, along)}")

    @property
    def type(self) -> str:
        return f"tensordesc<{TYPES[self.tensor.dtype]}{list(self.block)}>"

    def descriptor(self) -> TensorDescriptor:
        return TensorDescriptor.from_tensor(self.tensor, list(self.block))


Argument: TypeAlias = torch.Tensor | Tiled | float | None


@dataclass(frozen=True, slots=True)
class Launch:
    kernel: Any
    """A `triton.jit` function whose parameters are `arguments`, in order, and then `constants`."""
    grid: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    constants: Mapping[str, int | float | str | bool]
    num_warps: int
    num_stages: int = 1
    pdl: bool = False
    """Launch before the kernel ahead has ended (programmatic dependent launch); every kernel here waits for it before
    it touches memory that another may write."""
    most_registers: int = 0
    """Of a thread, so that more blocks share a multiprocessor; 0: as many as the compiler likes."""
    alone: bool = False
    """Launch only when the kernel ahead has ended, whatever the machine code is prepared for."""

    @property
    def symbol(self) -> str:
        """What its machine code's name begins with."""
        return str(self.kernel.__name__)

    def run(self) -> None:
        launcher = replay.current()
        if launcher is None or not launcher.launch(self, torch.cuda.current_stream().cuda_stream):
            settle(self.kernel)
            given = (each.descriptor() if isinstance(each, Tiled) else each for each in self.arguments)
            self.kernel[self.grid](*given, **self.constants, **self._options())

    def compile(self, capability: int = HOPPER) -> Resources:
        """Build it for a GPU that need not be there. Raises whatever the compiler does."""
        compiled = self._compiled(capability)
        registers, spilled = _usage(compiled.asm["cubin"])
        return Resources(registers, spilled, int(compiled.metadata.shared), "wgmma" in compiled.asm["ptx"])

    def build(self, capability: int = HOPPER) -> None:
        """The same for its place in Triton's cache alone."""
        self._compiled(capability)

    def seal(self, capability: int = HOPPER) -> SealedKernel:
        """Its machine code and all that launching it takes, but for `bound`, which holds where the tensors are now."""
        compiled = self._compiled(capability)
        metadata = compiled.metadata
        if metadata.global_scratch_size or metadata.profile_scratch_size or metadata.num_ctas != 1:
            raise ValueError(f"{metadata.name}: expected a kernel that needs neither scratch nor clusters")
        kinds = (_KINDS.get(type(value), "f") for value in self.arguments if value is not None)
        matrices = [value for value in self.arguments if isinstance(value, Tiled)]
        said = metadata.tensordesc_meta or ()
        if len(said) != len(matrices):
            raise ValueError(f"{metadata.name}: expected {len(matrices)} matrices by blocks, got {len(said)}")
        tiled = tuple(_sealed(each, how) for each, how in zip(matrices, said, strict=True))
        threads = 32 * metadata.num_warps  # with those that the compiler adds to bring what the others compute with
        return SealedKernel(
            compiled.asm["cubin"],
            metadata.name,
            self.grid,
            threads,
            metadata.shared,
            "".join(kinds),
            self.pdl and not self.alone,
            maps=tiled,
        )

    def bound(self) -> list[int | float]:
        """The arguments of a `driver.LoadedKernel.launch`. They do not keep the tensors alive."""
        present = (value.tensor if isinstance(value, Tiled) else value for value in self.arguments if value is not None)
        return [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in present]

    def _compiled(self, capability: int) -> Any:
        settle(self.kernel)
        names = self.kernel.arg_names
        signature = dict.fromkeys(names, "constexpr")
        constants: dict[str, Any] = dict(self.constants)
        attributes: dict[tuple[int], list[list[str | int]]] = {}
        for position, (name, value) in enumerate(zip(names, self.arguments, strict=False)):
            if value is None:
                constants[name] = None
            elif isinstance(value, Tiled):
                signature[name] = value.type
            elif isinstance(value, torch.Tensor):
                signature[name] = "*" + TYPES[value.dtype]
                if value.data_ptr() % _ALIGNED == 0:
                    attributes[position,] = [["tt.divisibility", _ALIGNED]]
            else:
                signature[name] = "fp32"
        # Order and spelling as the launcher's own: the key of Triton's cache is made of the text of these mappings, and
        # a text among the constants leaves an empty attribute there.
        for position, name in enumerate(names):
            if isinstance(constants.get(name), str):
                attributes[position,] = []
        ordered = {name: constants[name] for name in names if name in constants}
        source = ASTSource(self.kernel, signature, ordered, attributes)
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=self._options())

    def _options(self) -> dict[str, int | bool]:
        options: dict[str, int | bool] = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.pdl:
            options["launch_pdl"] = True
        if self.most_registers:
            options["maxnreg"] = self.most_registers
        return options


_settled: Final[set[int]] = set()
"""Functions; a hash of one is made of its key."""


def settle(kernel: Any) -> None:
    """Make the key of a kernel in Triton's cache, those of the functions it calls first.

    Triton puts what is known of a called function's constants into the caller's key, and that is nothing before its own
    key is made: without this a process looks for another key than the one that compiled, which began elsewhere.
    """
    # Asking a kernel itself whether it has one would make it.
    if id(kernel) in _settled or not hasattr(type(kernel), "cache_key"):
        return
    _settled.add(id(kernel))
    for name in kernel.fn.__code__.co_names:
        settle(kernel.fn.__globals__.get(name))
    _ = kernel.cache_key


_KINDS: Final[Mapping[type, str]] = {torch.Tensor: "p", torch.nn.Parameter: "p", Tiled: "t"}


def _sealed(matrix: Tiled, how: Mapping[str, Any]) -> TensorMap:
    (rows, columns), itemsize = matrix.tensor.shape, matrix.tensor.element_size()
    block_rows, block_columns = how["block_size"]
    pitch = matrix.tensor.stride(0) * itemsize
    return TensorMap(itemsize, rows, columns, pitch, int(block_rows), int(block_columns), int(how["swizzle"]))


def interpreted(kernel: object) -> bool:
    """Whether a kernel was defined for Triton's interpreter, which runs it on the CPU and nowhere else."""
    return not isinstance(kernel, triton.runtime.JITFunction)


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory of each thread, as the disassembler that Triton brings reports them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise ValueError(f"expected cuobjdump to report REG and STACK, got {text[:200]!r}")
    return int(found[1]), int(found[2])
