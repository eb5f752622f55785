"""Our kernels for pointwise programs and for copies between layouts: written for each step, whatever it computes."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from penstock.engine.cuda.kernels.epilogue import Scratch
from penstock.engine.cuda.kernels.launching import Launch
from penstock.engine.cuda.kernels.pieces import Part, pieces_launch
from penstock.engine.cuda.kernels.pointwise import COPY, Read, block_sizes, pointwise_launch
from penstock.engine.cuda.sites import Site
from penstock.engine.cuda.ways import Config, Ready, Tensors, Way, always, count, dtype_of
from penstock.engine.lowered import Instruction, Number
from penstock.engine.pieces import read


def _pointwise(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    """Views of one value are reads of one tensor."""
    del scratch
    site = ready.site
    shape = np.broadcast_shapes(*(each.shape for each in operands))  # torch's imports its tracer: seconds
    tensors: dict[str, torch.Tensor] = {}
    reads: list[Read] = []
    for index, (operand, seen) in enumerate(zip(site.step.inputs, operands, strict=True)):
        begin = 0 if operand.view is None else operand.view.offset
        if operand.value not in tensors:
            tensors[operand.value] = torch.as_strided(seen, (1,), (1,), seen.storage_offset() - begin)
        pointer = list(tensors).index(operand.value)
        reads.append(Read(pointer, begin, seen.expand(shape).stride(), site.scale(index)))
    return pointwise_launch(
        site.step.program or COPY,
        list(tensors.values()),
        reads,
        shape=shape,
        out=outputs[0],
        out_scale=site.out_scale(),
        block=ready.config[0],
        pdl=site.early,
    )


def _pieces(ready: Ready, operands: Tensors, outputs: Tensors, scratch: Scratch | None) -> Launch:
    del scratch
    site = ready.site
    tensors: dict[str, torch.Tensor] = {}
    reads: list[Read] = []
    for operand, seen in zip(site.step.inputs, operands, strict=True):
        begin = 0 if operand.view is None else operand.view.offset
        if operand.value not in tensors:
            tensors[operand.value] = torch.as_strided(seen, (1,), (1,), seen.storage_offset() - begin)
        reads.append(Read(list(tensors).index(operand.value), begin, seen.stride()))
    parts: list[Part] = []
    lines = 0
    for piece in read(site.step.attributes["pieces"], count(site.out_shape())):
        program = site.step.program[lines : lines + piece.lines]
        own, renamed = _by_themselves(program, lines)
        parts.append(Part(renamed, tuple(reads[each] for each in own), piece.shape, piece.strides, piece.offset))
        lines += piece.lines
    return pieces_launch(parts, list(tensors.values()), out=outputs[0], block=ready.config[0], pdl=site.early)


def _by_themselves(program: Sequence[Instruction], behind: int) -> tuple[list[int], tuple[Instruction, ...]]:
    """Which operands lines read that stand behind so many others, and the lines as if they stood alone."""
    read_by = [int(each[1:]) for line in program for each in line.arguments if isinstance(each, str) and each[0] == "i"]
    own = list(dict.fromkeys(read_by))

    def renamed(argument: str | Number) -> str | Number:
        if not isinstance(argument, str):
            return argument
        number = int(argument[1:])
        return f"i{own.index(number)}" if argument[0] == "i" else f"t{number - behind}"

    return own, tuple(Instruction(line.name, tuple(map(renamed, line.arguments))) for line in program)


def _floats(site: Site) -> bool:
    kinds = {dtype_of(site, index) for index in range(len(site.step.inputs))} | {site.out_dtype()}
    return kinds <= {torch.float16, torch.bfloat16, torch.float32}


def _blocks(site: Site) -> list[Config]:
    return [(size,) for size in block_sizes(count(site.out_shape()))]


WRITTEN: Final[dict[tuple[str, str], Way]] = {
    ("pointwise", "triton"): Way(_pointwise, _blocks, types=always, scales=True),
    ("pieces", "triton"): Way(_pieces, _blocks, types=_floats),
    ("copy", "triton_tiles"): Way(_pointwise, _blocks, types=always, scales=True),
}
"""Kind and name -> kernel."""
