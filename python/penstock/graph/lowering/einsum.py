"""Einsum of one or two operands, as a product of matrices: axes that both have and the result has are its batch, those
that only the operands have are summed over, and every other one belongs to a side.

A letter that comes twice in an operand is its diagonal, which strides can say.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from string import ascii_letters

import onnx_ir as ir

from penstock.engine.lowered import Attribute
from penstock.errors import Unsupported
from penstock.graph.editing import string
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.reductions import dropped
from penstock.graph.lowering.views import Ref, expanded, identity, permuted, reshaped


def einsum(builder: Builder, node: ir.Node) -> None:
    refs = [builder.ref(value) for value in node.inputs]
    if builder.datatype(node.outputs[0]) not in ("FP16", "BF16", "FP32"):
        raise Unsupported(f"Einsum of node {node.name!r} multiplies no floats")
    if len(refs) > 2:
        raise Unsupported(f"Einsum of node {node.name!r} has {len(refs)} operands; one or two can be lowered")
    equation = string(node, "equation", "")
    sides, result = _letters(equation, [len(ref.shape) for ref in refs])
    whole = _sizes(node, equation, refs, sides)
    terms = [_diagonal(ref, letters) for ref, letters in zip(refs, sides, strict=True)]
    others = ["".join(letters for _, letters in terms[:at] + terms[at + 1 :]) for at in range(len(terms))]
    terms = [_summed(builder, node, *term, result + rest) for term, rest in zip(terms, others, strict=True)]
    found, letters = terms[0] if len(terms) == 1 else _product(builder, node, terms, result, whole)
    shown = permuted(found, [letters.index(letter) for letter in result])
    builder.forward(node.outputs[0], expanded(shown, builder.shape(node.outputs[0])))


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Axes of the operands and of the result, a letter each; `...` becomes letters that nobody uses."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    sides = left.split(",")
    free = [letter for letter in ascii_letters if letter not in equation]
    most = max((rank - len(side.replace("...", "")) for side, rank in zip(sides, ranks, strict=True)), default=0)
    dots = "".join(free[:most])
    if not arrow:  # letters that come once, in the order of the alphabet
        once = sorted(letter for letter in set(left) - set(".,") if left.count(letter) == 1)
        right = ("..." if "..." in left else "") + "".join(once)
    spelled = [
        side.replace("...", dots[len(dots) - (rank - len(side.replace("...", ""))) :] if "..." in side else "")
        for side, rank in zip(sides, ranks, strict=True)
    ]
    return spelled, right.replace("...", dots)


def _sizes(node: ir.Node, equation: str, refs: Sequence[Ref], sides: Sequence[str]) -> dict[str, int]:
    """How long each axis is; those of `...` are repeated where one operand has one entry."""
    whole: dict[str, int] = {}
    for ref, letters in zip(refs, sides, strict=True):
        for letter, size in zip(letters, ref.shape, strict=True):
            known = whole.setdefault(letter, size)
            if known != size and (letter in equation or 1 not in (known, size)):
                raise Unsupported(f"Einsum of node {node.name!r}: {letter!r} has {known} entries and {size}")
            whole[letter] = max(known, size)
    return whole


def _diagonal(ref: Ref, letters: str) -> tuple[Ref, str]:
    once = "".join(dict.fromkeys(letters))
    places = [[at for at, each in enumerate(letters) if each == letter] for letter in once]
    shape = tuple(ref.shape[axes[0]] for axes in places)
    return replace(ref, shape=shape, strides=tuple(sum(ref.strides[axis] for axis in axes) for axes in places)), once


def _summed(builder: Builder, node: ir.Node, ref: Ref, letters: str, wanted: str) -> tuple[Ref, str]:
    """Without the axes that nothing else has."""
    axes = [at for at, letter in enumerate(letters) if letter not in wanted]
    if not axes:
        return ref, letters
    x, order = builder.dense(ref, node)
    whole = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    attributes: dict[str, Attribute] = {"how": "sum", "axes": tuple(sorted(order.index(axis) for axis in axes))}
    total = builder.emit(node, "reduce", [builder.operand(x, "x", order)], whole, x.datatype, order, attributes)
    return dropped(total, axes), "".join(letter for letter in letters if letter in wanted)


def _product(
    builder: Builder, node: ir.Node, terms: Sequence[tuple[Ref, str]], result: str, sizes: dict[str, int]
) -> tuple[Ref, str]:
    (a, first), (b, second) = terms
    batch = [letter for letter in first if letter in second and letter in result]
    depth = [letter for letter in first if letter in second and letter not in result]
    rows = [letter for letter in first if letter not in second]
    columns = [letter for letter in second if letter not in first]
    left = _matrix(builder, node, a, first, batch, rows, depth, sizes)
    right = _matrix(builder, node, b, second, batch, depth, columns, sizes)
    shape = (*left.shape[:-1], right.shape[-1])
    operands = [builder.operand(left, "a"), builder.operand(right, "b")]
    made = builder.emit(node, "matmul", operands, shape, builder.datatype(node.outputs[0]))
    letters = [*batch, *rows, *columns]
    apart = reshaped(made, [sizes[letter] for letter in letters])
    assert apart is not None  # axes of what is dense are cut
    return apart, "".join(letters)


def _matrix(
    builder: Builder,
    node: ir.Node,
    ref: Ref,
    letters: str,
    batch: Sequence[str],
    rows: Sequence[str],
    columns: Sequence[str],
    sizes: dict[str, int],
) -> Ref:
    """[batch .., rows, columns], read as it lies where strides can say it."""
    order = [*batch, *rows, *columns]
    seen = permuted(ref, [letters.index(letter) for letter in order])
    seen = expanded(seen, [sizes[letter] for letter in order])
    shape = [sizes[letter] for letter in batch]
    shape += [math.prod(sizes[letter] for letter in each) for each in (rows, columns)]
    matrix = reshaped(seen, shape)
    if matrix is None:
        matrix = reshaped(builder.stored_as(seen, identity(len(seen.shape)), node), shape)
    assert matrix is not None
    return matrix
