"""Pieces of one tensor, each computed by a pointwise program of its own, in one kernel: blocks know which is theirs.

Written like those of `pointwise`, one part for each piece. What isn't known here is a ValueError.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from penstock.engine.lowered import Instruction

from .launching import TYPES, Launch
from .pointwise import MOST_POINTERS, MOST_READS, SEEN, WAITING, Read, Writer, cut_of, merged
from .rows import INDEX_LIMIT
from .written import FLAG, function, named

__all__ = ["SEEN", "Part", "pieces_launch"]

_WIDEST: Final = 2048  # numbers of a block that four warps make
_OWN: Final = re.compile(r"\b((?:block|columns?|rows?|outer|in_rows|in_columns|y|(?:rows|outer)_?\d+|[it]\d+))\b")
"""What the text of a part names for itself."""


@dataclass(frozen=True, slots=True)
class Part:
    program: tuple[Instruction, ...]
    """`i0` is the first of `reads`."""
    reads: tuple[Read, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Where it lies in what is written, in elements."""
    offset: int


def pieces_launch(
    parts: Sequence[Part], tensors: Sequence[torch.Tensor], *, out: torch.Tensor, block: int = 1024, pdl: bool = False
) -> Launch:
    """Every part into `out`, which is dense.

    tensors  where all reads begin, each at most 32 times something.
    block    numbers that a block makes.
    """
    if not 1 <= len(tensors) <= MOST_POINTERS or not all(1 <= len(part.reads) <= MOST_READS for part in parts):
        raise ValueError(f"expected up to {MOST_POINTERS} tensors and {MOST_READS} reads")
    if not out.is_contiguous() or not 0 < out.numel() < INDEX_LIMIT:
        raise ValueError(f"out: expected less than 2**31 elements, dense, got {tuple(out.shape)}")
    if unknown := {str(each.dtype) for each in (*tensors, out)} - set(map(str, TYPES)):
        raise ValueError(f"expected types that kernels know, got {', '.join(unknown)}")
    lines: list[str] = []
    begin = 0
    for number, part in enumerate(parts):
        axes = merged(part.shape, part.reads, part.strides)
        for index, read in enumerate((*part.reads, None)):
            offset = part.offset if read is None else read.offset
            last = offset + sum((axis.size - 1) * axis.strides[index] for axis in axes)
            if offset < 0 or last >= (out.numel() if read is None else INDEX_LIMIT):
                raise ValueError(f"expected offsets of less than 2**31 that lie in out, got {last}")
        cut = cut_of(axes, block)
        writer = Writer(cut, [tensors[read.pointer].dtype for read in part.reads], part.reads, part.offset)
        own = [_OWN.sub(rf"\1_{number}", line) for line in writer.piece(part.program, out.dtype)]
        lines += [f"if (whole >= {begin}) & (whole < {begin + cut.blocks}):", f"    block_{number} = whole - {begin}"]
        lines += [f"    {line}" for line in own]
        begin += cut.blocks
    names = ", ".join(f"p{number}" for number in range(len(tensors)))
    body = "".join(f"    {line}\n" for line in ("whole = tl.program_id(0)", *WAITING, *lines))
    kernel = function(__name__, named("pieces", f"({names}, out, {FLAG}):\n{body}"))
    warps = 4 if block <= _WIDEST else 8
    return Launch(kernel, (begin, 1, 1), (*tensors, out), {FLAG: pdl}, num_warps=warps, pdl=pdl)
