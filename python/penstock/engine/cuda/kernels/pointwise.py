"""A whole pointwise program in one kernel that is written for it: strides, sizes and numbers stand in its text.

Operands are seen through strides, with zeros where they repeat; floats are computed in FP32; the result is dense. Where
the operands run along another axis than the result does, a block takes a tile across both, so that neither side is
read or written in single numbers. What isn't known here (64-bit floats, powers of integers, ...) is a ValueError.
"""

# What Triton compiles has Triton's types, which are not Python's.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from penstock.engine.lowered import Instruction, Number

from .activations import activate, clamp, stored_as
from .instructions import Known, expm1, power_of, result, rounded, softplus, tanh
from .launching import TYPES, Launch
from .rows import INDEX_LIMIT, power_of_two
from .written import FLAG, function, named

COPY: Final = (Instruction("identity", ("i0",)),)
"""The program that computes nothing."""

MOST_READS: Final = 128
MOST_POINTERS: Final = 64
SEEN: Final[Mapping[str, object]] = {
    "triton": triton,
    "tl": tl,
    "gdc_wait": gdc_wait,
    "gdc_launch_dependents": gdc_launch_dependents,
    "activate": activate,
    "clamp": clamp,
    "stored_as": stored_as,
    "tanh": tanh,
    "rounded": rounded,
    "softplus": softplus,
    "expm1": expm1,
    "power_of": power_of,
}
"""What the text of a kernel may name."""

WAITING: Final = (f"if {FLAG}:", "    gdc_wait()", "    gdc_launch_dependents()")
_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32)
_INTEGERS: Final = (torch.int32, torch.int64)
_EIGHT: Final = (torch.int8, torch.float8_e4m3fn)
_SIZES: Final = (512, 1024, 2048, 4096)  # numbers a block makes
_ENOUGH: Final = 264  # blocks: two for every multiprocessor
_SHORT: Final = 64  # a last axis that is shorter, and far from a power of two, is counted with the others
_WASTE: Final = 1.15


@dataclass(frozen=True, slots=True)
class Read:
    """An operand: numbers of a tensor, found by strides."""

    pointer: int
    """Which of the tensors."""

    offset: int
    strides: tuple[int, ...]
    """Elements, for each axis of the result as it is computed; 0 repeats."""

    scale: float | None = None
    """What one step of eight bits is worth."""


@dataclass(frozen=True, slots=True)
class _Axis:
    size: int
    strides: tuple[int, ...]
    """One for each read, and the result's last."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How a block's tile lies over the axes: rows and columns of a tile, and one entry of what is outside."""

    outer: tuple[_Axis, ...]
    rows: tuple[_Axis, ...]
    columns: tuple[_Axis, ...]
    block_rows: int
    block_columns: int

    @property
    def blocks(self) -> int:
        return _count(self.outer) * self.row_blocks * self.column_blocks

    @property
    def row_blocks(self) -> int:
        return -(-_count(self.rows) // self.block_rows)

    @property
    def column_blocks(self) -> int:
        return -(-_count(self.columns) // self.block_columns)


def pointwise_launch(
    program: Sequence[Instruction],
    tensors: Sequence[torch.Tensor],
    reads: Sequence[Read],
    *,
    shape: Sequence[int],
    out: torch.Tensor,
    out_scale: float | None = None,
    block: int = 1024,
    pdl: bool = False,
) -> Launch:
    """out = program(reads); `i0` is the first read and `t0` the first instruction's result.

    tensors  where the reads begin, each at most 32 times something.
    shape    of the result as it is computed; `out` is dense and has as many elements, whatever its shape.
    block    numbers that a block makes.
    """
    if not 1 <= len(tensors) <= MOST_POINTERS or not 1 <= len(reads) <= MOST_READS:
        raise ValueError(f"expected up to {MOST_POINTERS} tensors and {MOST_READS} reads")
    if math.prod(shape) != out.numel() or not out.is_contiguous() or not out.numel():
        raise ValueError(f"out: expected {math.prod(shape)} elements, dense, got {tuple(out.shape)}")
    axes = merged(shape, reads)
    for number, read in enumerate(reads):
        last = read.offset + sum((axis.size - 1) * axis.strides[number] for axis in axes)
        if last >= INDEX_LIMIT or read.offset < 0:
            raise ValueError(f"expected offsets of less than 2**31, got {last}")
    if out.numel() >= INDEX_LIMIT:
        raise ValueError(f"out: expected less than 2**31 elements, got {out.numel()}")
    cut = cut_of(axes, block)
    if unknown := {str(each.dtype) for each in (*tensors, out)} - set(map(str, TYPES)):
        raise ValueError(f"expected types that kernels know, got {', '.join(unknown)}")
    writer = Writer(cut, [tensors[each.pointer].dtype for each in reads], reads)
    body = writer.kernel(program, len(tensors), out.dtype, out_scale)
    kernel = function(__name__, named("pointwise", body))
    warps = 4 if block <= 2048 else 8
    return Launch(kernel, (cut.blocks, 1, 1), (*tensors, out), {FLAG: pdl}, num_warps=warps, pdl=pdl)


def block_sizes(elements: int) -> tuple[int, ...]:
    """Those worth timing for a result of so many, the likeliest first."""
    at = max(sum(elements >= size * _ENOUGH for size in _SIZES) - 1, 0)
    return tuple(_SIZES[place] for place in (at, at - 1, at + 1) if 0 <= place < len(_SIZES))


# ---- axes ----


def _count(axes: Sequence[_Axis]) -> int:
    return math.prod(axis.size for axis in axes)


def merged(shape: Sequence[int], reads: Sequence[Read], strides_out: Sequence[int] | None = None) -> list[_Axis]:
    """Without axes of one, and neighbours as one wherever everybody takes them in one go. `strides_out`: of the result,
    which is dense otherwise.
    """
    found: list[_Axis] = []
    behind = 1
    for place in reversed(range(len(shape))):
        size = shape[place]
        strides = (*(read.strides[place] for read in reads), behind if strides_out is None else strides_out[place])
        behind *= size
        if size == 1:
            continue
        if found and all(each == inner * found[0].size for each, inner in zip(strides, found[0].strides, strict=True)):
            found[0] = _Axis(found[0].size * size, found[0].strides)
        else:
            found.insert(0, _Axis(size, strides))
    return found


def cut_of(axes: Sequence[_Axis], block: int) -> Cut:
    if len(axes) <= 1:
        return Cut((), (), tuple(axes), 1, block)
    *rest, last = axes
    across = [_runs(axis, last) for axis in rest]
    if max(across) > 0:
        place = across.index(max(across))
        columns = min(power_of_two(last.size), 32 if block <= 1024 else 64)
        rows = min(power_of_two(rest[place].size), block // columns)
        outer = (*rest[:place], *rest[place + 1 :])
        return Cut(outer, (rest[place],), (last,), rows, columns)
    # Where nothing lies in a row the compiler may have threads go along either axis of a tile: to rotate pairs took an
    # H200 46 us along the first, which Triton 3.6 prefers (3.9 does not), and takes it 5 as one row of numbers.
    scattered = 1 not in last.strides
    if scattered or (last.size < _SHORT and power_of_two(last.size) > _WASTE * last.size):
        return Cut((), tuple(axes), (), block, 1)
    widths = [2**power for power in range(4, block.bit_length()) if 2**power <= power_of_two(last.size)] or [16]
    waste = {width: -(-last.size // width) * width / last.size for width in widths}
    good = [width for width in widths if waste[width] <= _WASTE]
    columns = max(good) if good else min(widths, key=lambda width: (waste[width], -width))
    return Cut((), tuple(rest), (last,), max(1, block // columns), columns)


def _runs(axis: _Axis, last: _Axis) -> int:
    """How many reads run along an axis, and not along the last one, which the result runs along."""
    pairs = zip(axis.strides[:-1], last.strides[:-1], strict=True)
    return axis.size * sum(here == 1 and there > 1 for here, there in pairs)


# ---- text ----


@dataclass
class Writer:
    """Writes one kernel."""

    cut: Cut
    types: Sequence[torch.dtype]
    reads: Sequence[Read]
    begin: int = 0
    """Where the result begins in what it is written to."""

    lines: list[str] = field(default_factory=list)
    loaded: dict[int, Known] = field(default_factory=dict)

    def kernel(self, program: Sequence[Instruction], pointers: int, out: torch.dtype, out_scale: float | None) -> str:
        names = ", ".join(f"p{number}" for number in range(pointers))
        self.lines.append("block = tl.program_id(0)")
        self._places()
        self.lines += WAITING
        self.compute(program, out, out_scale)
        body = "".join(f"    {line}\n" for line in self.lines)
        return f"({names}, out, {FLAG}):\n{body}"

    def piece(self, program: Sequence[Instruction], out: torch.dtype) -> list[str]:
        """The lines of a kernel's part whose blocks are counted by `block`."""
        self._places()
        self.compute(program, out, None)
        return self.lines

    def compute(self, program: Sequence[Instruction], out: torch.dtype, out_scale: float | None) -> None:
        known: dict[str, Known] = {}
        last = Known("", "f")
        if tuple(program) == COPY and self.types[0] == out and self.reads[0].scale == out_scale:
            program, last = (), self._read(0, plain=True)
        for number, line in enumerate(program):
            arguments = [self._argument(each, known) for each in line.arguments]
            made = result(line.name, arguments)
            self.lines.append(f"t{number} = {made.text}")
            last = known[f"t{number}"] = Known(f"t{number}", made.kind)
        self._store(last, out, out_scale)

    def _argument(self, argument: str | Number, known: dict[str, Known]) -> Known:
        if isinstance(argument, str):
            return self._read(int(argument[1:])) if argument.startswith("i") else known[argument]
        if isinstance(argument, float):
            finite = math.isfinite(argument)
            return Known(repr(argument) if finite else f'float("{argument}")', "n")
        return Known(repr(int(argument)), "w")

    # Where the tile is.

    def _places(self) -> None:
        cut = self.cut
        if cut.column_blocks * cut.row_blocks > 1 or cut.outer:
            self.lines.append(f"column = block % {cut.column_blocks}")
            self.lines.append(f"row = block // {cut.column_blocks} % {cut.row_blocks}")
        else:
            self.lines += ["column = 0", "row = 0"]
        if cut.columns:
            self.lines.append(f"columns = column * {cut.block_columns} + tl.arange(0, {cut.block_columns})")
        if cut.rows:
            self.lines.append(f"rows = row * {cut.block_rows} + tl.arange(0, {cut.block_rows})")
        if not cut.columns and not cut.rows:
            self.lines.append(f"columns = tl.arange(0, {cut.block_columns})")
        if cut.outer:
            self.lines.append(f"outer = block // {cut.column_blocks * cut.row_blocks}")
        for name, axes in (("outer", cut.outer), ("rows", cut.rows)):
            rest = name
            for place in reversed(range(len(axes) if len(axes) > 1 else 0)):
                self.lines.append(f"{name}{place} = {rest} % {axes[place].size}" if place else f"{name}0 = {rest}")
                if place:
                    self.lines.append(f"{name}_{place} = {rest} // {axes[place].size}")
                    rest = f"{name}_{place}"
        if self._cuts_rows:
            self.lines.append(f"in_rows = rows < {_count(cut.rows)}")
        if self._cuts_columns:
            self.lines.append(f"in_columns = columns < {_count(cut.columns)}")

    @property
    def _cuts_rows(self) -> bool:
        return bool(self.cut.rows) and _count(self.cut.rows) % self.cut.block_rows != 0

    @property
    def _cuts_columns(self) -> bool:
        there = bool(self.cut.columns) or not self.cut.rows
        return there and _count(self.cut.columns) % self.cut.block_columns != 0

    @property
    def _both(self) -> bool:
        return bool(self.cut.rows and self.cut.columns)

    def _offset(self, number: int, begin: int) -> tuple[str, bool, bool]:
        """Of a read, or with -1 of the result: its text, and whether it has rows and columns."""
        parts: list[str] = [str(begin)] if begin else []
        for place, axis in enumerate(self.cut.outer):
            name = f"outer{place}" if len(self.cut.outer) > 1 else "outer"
            parts += [f"{name} * {axis.strides[number]}"] if axis.strides[number] else []
        down, right = ("[:, None]", "[None, :]") if self._both else ("", "")
        rows = []
        for place, axis in enumerate(self.cut.rows):
            name = f"rows{place}" if len(self.cut.rows) > 1 else "rows"
            rows += [f"{name}{down} * {axis.strides[number]}"] if axis.strides[number] else []
        columns = [f"columns{right} * {axis.strides[number]}" for axis in self.cut.columns if axis.strides[number]]
        return " + ".join((*parts, *rows, *columns)) or "0", bool(rows), bool(columns)

    def _mask(self, rows: bool, columns: bool) -> str:
        down, right = ("[:, None]", "[None, :]") if self._both else ("", "")
        parts = [f"in_rows{down}"] if rows and self._cuts_rows else []
        parts += [f"in_columns{right}"] if columns and self._cuts_columns else []
        return " & ".join(parts)

    # What is read, and what is written.

    def _read(self, number: int, *, plain: bool = False) -> Known:
        """plain: as it is stored."""
        if number in self.loaded:
            return self.loaded[number]
        read, dtype = self.reads[number], self.types[number]
        offset, rows, columns = self._offset(number, read.offset)
        mask = self._mask(rows, columns)
        text = f"tl.load(p{read.pointer} + ({offset}){f', mask={mask}, other=0' if mask else ''})"
        if plain:
            kind = ""
        elif dtype in _FLOATS or (dtype in _EIGHT and read.scale is not None):
            kind, text = "f", f"{text}.to(tl.float32)"
            text += "" if read.scale is None else f" * {read.scale!r}"
        elif dtype in _INTEGERS or dtype == torch.uint8:
            kind = "i" if dtype in _INTEGERS else "u"
        elif dtype == torch.bool:
            kind, text = "b", f"({text} != 0)"
        else:
            raise ValueError(f"reads: expected floats, integers or truths, got {dtype}")
        self.lines.append(f"i{number} = {text}")
        self.loaded[number] = Known(f"i{number}", kind)
        return self.loaded[number]

    def _store(self, made: Known, out: torch.dtype, out_scale: float | None) -> None:
        right = {"f": _FLOATS, "i": _INTEGERS, "b": (torch.bool,)}.get(made.kind, ())
        scaled = out in _EIGHT and out_scale is not None and made.kind == "f"
        if made.kind and out not in right and not scaled:
            raise ValueError(f"out: expected {right}, got {out}")
        text = made.text
        if not made.kind:
            pass
        elif scaled:
            text = f"stored_as({text}, {1 / (out_scale or 1.0)!r}, out.dtype.element_ty)"
        elif out == torch.float16:
            text = f"clamp({text}, -65504.0, 65504.0).to(tl.float16)"
        elif made.kind != "b":
            text = f"{text}.to(out.dtype.element_ty)"
        cut = self.cut
        shape = [size for size, axes in ((cut.block_rows, cut.rows), (cut.block_columns, cut.columns)) if axes]
        offset, rows, columns = self._offset(-1, self.begin)
        if not shape:  # one number
            shape, offset, columns = [cut.block_columns], f"columns + {self.begin}", True
        mask = self._mask(rows, columns)
        self.lines.append(f"y = tl.broadcast_to({text}, {shape})")
        self.lines.append(f"tl.store(out + ({offset}), y{f', mask={mask}' if mask else ''})")
