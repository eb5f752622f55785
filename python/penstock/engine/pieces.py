"""Pieces of one value that a step computes each by a program of its own, and where they lie in it.

A `pieces` step has the programs of its pieces in one, one behind the other; its attribute of the same name says, for
each, how many lines it has and where its last one's results go. What a piece reads is seen in the piece's shape.
Promises: `read` believes nothing (ValueError). Used by the lowering, by whoever checks a graph and by kernels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST = 64


@dataclass(frozen=True, slots=True)
class Piece:
    lines: int
    """Of the program."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In the value, in elements."""

    offset: int


def written(pieces: Sequence[Piece]) -> tuple[int, ...]:
    """As an attribute."""
    return tuple(
        number for each in pieces for number in (each.lines, len(each.shape), *each.shape, *each.strides, each.offset)
    )


def read(numbers: object, elements: int) -> tuple[Piece, ...]:
    """Pieces that lie in a value of so many elements, and are as many together."""
    if not isinstance(numbers, tuple) or not all(isinstance(each, int) and each >= 0 for each in numbers):
        raise ValueError("pieces are no row of numbers")
    found: list[Piece] = []
    at = 0
    while at < len(numbers):
        lines, rank = numbers[at : at + 2] if at + 2 <= len(numbers) else (0, 0)
        end = at + 3 + 2 * rank
        if end > len(numbers) or not lines:
            raise ValueError("pieces end before they are told")
        shape = numbers[at + 2 : at + 2 + rank]
        found.append(Piece(lines, shape, numbers[at + 2 + rank : end - 1], numbers[end - 1]))
        at = end
    for each in found:
        last = each.offset + sum((size - 1) * stride for size, stride in zip(each.shape, each.strides, strict=True))
        if 0 in each.shape or last >= elements:
            raise ValueError(f"a piece of shape {list(each.shape)} lies outside of {elements} elements")
    if len(found) > MOST or sum(math.prod(each.shape) for each in found) != elements:
        raise ValueError(f"{len(found)} pieces are not {elements} elements together")
    return tuple(found)
