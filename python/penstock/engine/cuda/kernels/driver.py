"""Compiled kernels launched through the CUDA driver alone: neither Triton nor a C compiler has a part in it.

`Launch.seal` turns a launch into a `SealedKernel`, which is data and can be kept in a file; `LoadedKernel` puts it on
the GPU and launches it on a stream, also while that is being captured. The thread needs a current CUDA context, which
torch makes with its first tensor. Machine code for one architecture (9.0a) does not run on another.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

# Of cuda.h.
_MAX_DYNAMIC_SHARED: Final = 8
_LARGE_CLUSTERS_ALLOWED: Final = 14
_PROGRAMMATIC_SERIALIZATION: Final = 6
_NON_BLOCKING: Final = 1  # of streams: the default stream neither waits for them nor makes them wait
# More dynamic shared memory than this is asked for: with what the kernel itself declares it could be beyond 48 KiB.
_WITHOUT_ASKING: Final = 32 * 1024
_LARGEST_PORTABLE_CLUSTER: Final = 8  # more blocks than this in a cluster have to be asked for, too


# Of matrices seen through a tensor map: whole numbers as long as the matrix's, rows of 128 bytes with their pieces of
# sixteen exchanged, nothing brought to L2 but what was asked for in lines of 256 bytes.
_MAP_TYPES: Final = {1: 0, 2: 1, 4: 2}
_MAP_PROMOTION: Final = 3
_MAP_BYTES: Final = 128  # its size, and what its address is a multiple of


HOPPER: Final = 90  # compute capability 9.0
OUT_OF_MEMORY: Final = 2  # CUDA_ERROR_OUT_OF_MEMORY


class DriverError(RuntimeError):
    """The driver refused: no GPU, code for another one, or more memory than there is."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status
        """CUresult; 0 where there is no driver to give one."""


@dataclass(frozen=True, slots=True)
class TensorMap:
    """A matrix as the unit that copies tiles sees it: all but where it lies."""

    itemsize: int
    rows: int
    columns: int
    pitch: int
    """Bytes from one row to the next, a multiple of 16."""
    tile_rows: int
    """At most 256."""
    tile_columns: int
    swizzle: int = 3
    """CUtensorMapSwizzle; 3: rows of 128 bytes with their pieces of sixteen exchanged."""

    def encoded(self, address: int) -> "ctypes.Array[ctypes.c_char]":
        """CUtensorMap, somewhere inside the buffer: `aligned` says where."""
        buffer = ctypes.create_string_buffer(2 * _MAP_BYTES)
        two, one = ctypes.c_uint64 * 2, ctypes.c_uint64 * 1
        pair = ctypes.c_uint32 * 2
        _call(
            "cuTensorMapEncodeTiled", ctypes.c_void_p(aligned(buffer)), _MAP_TYPES[self.itemsize], 2,
            ctypes.c_void_p(address), two(self.columns, self.rows), one(self.pitch),
            pair(self.tile_columns, self.tile_rows), pair(1, 1), 0, self.swizzle, _MAP_PROMOTION, 0,
        )  # fmt: skip
        return buffer


@dataclass(frozen=True, slots=True)
class Picture:
    """[images, high, wide, channels] in memory, with bytes from one to the next, multiples of 16."""

    itemsize: int
    images: int
    high: int
    wide: int
    channels: int
    pixel_bytes: int
    row_bytes: int
    image_bytes: int


@dataclass(frozen=True, slots=True)
class PixelsMap(Picture):
    """A picture as the unit that copies rectangles of pixels sees it; what lies outside is zero, and is not stored."""

    tile_channels: int
    """64 or 128 bytes, with their pieces of sixteen exchanged."""
    tile_wide: int
    tile_high: int
    row_step: int = 1
    """From one row of a rectangle to the next."""

    def encoded(self, address: int) -> "ctypes.Array[ctypes.c_char]":
        """As `TensorMap.encoded`."""
        buffer, four = ctypes.create_string_buffer(2 * _MAP_BYTES), ctypes.c_uint32 * 4
        _call(
            "cuTensorMapEncodeTiled", ctypes.c_void_p(aligned(buffer)), *_seen(self, address),
            four(self.tile_channels, self.tile_wide, (self.tile_high - 1) * self.row_step + 1, 1),
            four(1, 1, self.row_step, 1), 0,
            _swizzle(self.tile_channels * self.itemsize), _MAP_PROMOTION, 0,
        )  # fmt: skip
        return buffer


@dataclass(frozen=True, slots=True)
class WindowMap(Picture):
    """A picture as the unit sees it that copies one tap of a convolution for many output pixels in a row."""

    tile_channels: int
    """64 or 128 bytes, with their pieces of sixteen exchanged."""
    pixels: int
    """At most 1024."""
    window_high: int
    """From its first pixel to its last, both of them counted."""
    window_wide: int
    pad_top: int
    pad_left: int
    pad_bottom: int
    pad_right: int
    stride_high: int
    stride_wide: int

    def encoded(self, address: int) -> "ctypes.Array[ctypes.c_char]":
        """As `TensorMap.encoded`."""
        buffer, pair = ctypes.create_string_buffer(2 * _MAP_BYTES), ctypes.c_int * 2
        # Where the window's first pixel goes to: from one corner of the picture to the other, as far beyond.
        first = pair(-self.pad_left, -self.pad_top)
        last = pair(self.pad_right - (self.window_wide - 1), self.pad_bottom - (self.window_high - 1))
        _call(
            "cuTensorMapEncodeIm2col", ctypes.c_void_p(aligned(buffer)), *_seen(self, address), first, last,
            self.tile_channels, self.pixels, (ctypes.c_uint32 * 4)(1, self.stride_wide, self.stride_high, 1),
            0, _swizzle(self.tile_channels * self.itemsize), _MAP_PROMOTION, 0,
        )  # fmt: skip
        return buffer


def _seen(picture: Picture, address: int) -> tuple[Any, ...]:
    """What both ways of seeing it begin with."""
    sizes = (ctypes.c_uint64 * 4)(picture.channels, picture.wide, picture.high, picture.images)
    steps = (ctypes.c_uint64 * 3)(picture.pixel_bytes, picture.row_bytes, picture.image_bytes)
    return _MAP_TYPES[picture.itemsize], 4, ctypes.c_void_p(address), sizes, steps


def _swizzle(line: int) -> int:
    """CUtensorMapSwizzle for rows of so many bytes."""
    return {32: 1, 64: 2, 128: 3}[line]


AnyMap = TensorMap | PixelsMap | WindowMap


def aligned(buffer: "ctypes.Array[ctypes.c_char]") -> int:
    """The first address in it where a tensor map may lie."""
    return -(-ctypes.addressof(buffer) // _MAP_BYTES) * _MAP_BYTES


@dataclass(frozen=True, slots=True)
class SealedKernel:
    cubin: bytes
    symbol: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    parameters: str
    """One letter each, in order: p for an address, f for an FP32 number, and for the address of what a map sees m, or t
    where the kernel is Triton's.
    """
    pdl: bool = False
    cluster: int = 1
    """Blocks in a row that share their memory, as the code itself says; the grid is a multiple of it."""
    maps: tuple[AnyMap, ...] = ()
    """For each m or t of the parameters, in order."""


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: what is meant, padding to 8 bytes, and a union of 64."""

    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60)]


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    ]


_DRIVER: Final = "libcuda.so.1"


@cache
def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise DriverError("expected NVIDIA's driver on this machine, found no libcuda.so.1") from error


def _call(name: str, *arguments: Any) -> None:
    _checked(name, getattr(_library(), name)(*arguments))


def _checked(name: str, status: int) -> None:
    if status != 0:
        text = ctypes.c_char_p()
        _library().cuGetErrorString(status, ctypes.byref(text))
        raise DriverError(f"{name}: error {status}, {(text.value or b'unknown').decode()}", int(status))


@cache
def _holding() -> ctypes.PyDLL:
    """The same library, called with the GIL held: for what takes microseconds. Others that wait for the GIL get it no
    sooner, and this thread would wait for them to be done with it.
    """
    return ctypes.PyDLL(_DRIVER)


def launch_graph(executable: int, stream: int) -> None:
    """Enqueue an instantiated CUDA graph (CUgraphExec) on a stream. The thread needs no context of its own."""
    _checked("cuGraphLaunch", _holding().cuGraphLaunch(ctypes.c_void_p(executable), ctypes.c_void_p(stream)))


class OwnStream:
    """A stream that nobody else uses, which torch's are not: it hands out thirty-two again and again.

    priority  0 is the usual one, below it is more urgent; the driver takes the nearest it has. The thread needs a
              current context. It lives as long as the process.
    """

    def __init__(self, priority: int = 0) -> None:
        self._handle = ctypes.c_void_p()
        _call("cuStreamCreateWithPriority", ctypes.byref(self._handle), _NON_BLOCKING, priority)

    @property
    def handle(self) -> int:
        return int(self._handle.value or 0)


class LoadedModule:
    """Machine code on the GPU. `close` frees it; nothing that was captured with it may be replayed after that."""

    def __init__(self, cubin: bytes) -> None:
        self._module = ctypes.c_void_p()
        _call("cuModuleLoadData", ctypes.byref(self._module), cubin)

    def function(self, symbol: str) -> ctypes.c_void_p:
        found = ctypes.c_void_p()
        _call("cuModuleGetFunction", ctypes.byref(found), self._module, symbol.encode())
        return found

    def close(self) -> None:
        if self._module:
            _call("cuModuleUnload", self._module)
            self._module = ctypes.c_void_p()


class LoadedKernel:
    """A kernel on the GPU, good as long as its module."""

    def __init__(self, sealed: SealedKernel, module: LoadedModule) -> None:
        self.sealed = sealed
        self._function = module.function(sealed.symbol)
        if sealed.shared_bytes > _WITHOUT_ASKING:
            _call("cuFuncSetAttribute", self._function, _MAX_DYNAMIC_SHARED, sealed.shared_bytes)
        if sealed.cluster > _LARGEST_PORTABLE_CLUSTER:
            _call("cuFuncSetAttribute", self._function, _LARGE_CLUSTERS_ALLOWED, 1)

    def launch(self, arguments: Sequence[int | float], stream: int, *, early: bool | None = None) -> None:
        """Enqueue it on `stream` (torch's `cuda_stream`), with addresses and numbers as `parameters` has them.

        early  before the kernel ahead has ended, which it waits for itself; None: as it was sealed.
        """
        sealed = self.sealed
        if len(arguments) != len(sealed.parameters):
            raise ValueError(f"{sealed.symbol}: expected {len(sealed.parameters)} arguments, got {len(arguments)}")
        maps = iter(sealed.maps)
        values = [
            each
            for kind, value in zip(sealed.parameters, arguments, strict=True)
            for each in _values(kind, value, maps)
        ]
        # Every kernel of Triton 3.6 ends with two addresses for memory it may ask of its launcher; none of ours asks,
        # and of a kernel that has fewer parameters the driver reads no more than those.
        values += [ctypes.c_void_p(), ctypes.c_void_p()]
        pointers = (ctypes.c_void_p * len(values))(
            *(aligned(value) if isinstance(value, ctypes.Array) else ctypes.addressof(value) for value in values)
        )
        attribute = _Attribute(id=_PROGRAMMATIC_SERIALIZATION, value=1)
        config = _Config(
            grid=(ctypes.c_uint * 3)(*sealed.grid),
            block=(ctypes.c_uint * 3)(sealed.threads, 1, 1),
            shared=sealed.shared_bytes,
            stream=stream,
            attributes=ctypes.pointer(attribute),
            count=1 if (sealed.pdl if early is None else early) else 0,
        )
        _call("cuLaunchKernelEx", ctypes.byref(config), self._function, pointers, None)


_Value = ctypes.c_void_p | ctypes.c_float | ctypes.Array[ctypes.c_char]


def _values(kind: str, value: int | float, maps: Iterator[AnyMap]) -> "Iterator[_Value]":
    """What a parameter is, one value or a few; they have to live until the launch."""
    if kind == "f":
        yield ctypes.c_float(value)
    elif kind == "p":
        yield ctypes.c_void_p(int(value))
    else:
        seen = next(maps)
        yield seen.encoded(int(value))
        if kind == "t" and isinstance(seen, TensorMap):  # sizes and steps once more, whether the kernel asks or not
            yield from map(ctypes.c_int32, (seen.rows, seen.columns))
            yield from map(ctypes.c_int64, (seen.pitch // seen.itemsize, 1))
