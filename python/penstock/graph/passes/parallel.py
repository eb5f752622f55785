"""Parallel convolutions of one input whose results are added become one, and so do the branches beside them.

Networks that are trained in one form and deployed in another (RepVGG, Ding et al. 2021; MobileOne, RepViT, FastViT) add
Conv k x k of x, Conv 1 x 1 of x, a BatchNormalization of x and x itself. A convolution is linear in weights and bias:

* two of the same groups and strides add to one, once the smaller kernel lies among zeros where its taps meet the same
  numbers of x: pads say where, a dilation is none where the kernel has one tap, and the results are of the same size;
* x * factor + offset per channel is a convolution of one tap with the factor on the diagonal. The offset is a bias, as
  nothing pads what it was added to.

The merged kernel is as large as one that was there. A factor or another convolution is needed: a plain residual,
Conv(x) + x, stays, since libraries add that as they store. All terms of a tree of Add, Sub and Sum are looked at,
whatever their order; what another node reads stays. Only FP32 and FP64; weights are added in FP64 and rounded once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.graph.editing import Edit, integers, is_operator, producer, string
from penstock.graph.passes.affine import Affine, Layer, Vector, affine_of, applicable, apply, layer_of
from penstock.graph.passes.batch_norm import affine_of_norm
from penstock.graph.sources import inherit

_SUMS: Final = ("Add", "Sub", "Sum")

_MOST_TERMS: Final = 64
"""Of a tree that is looked at: blocks that are trained so add up to ten, and each is compared with each."""


@dataclass(frozen=True, slots=True, eq=False)
class _Term:
    """A value that a tree of sums adds or subtracts."""

    value: ir.Value
    reader: ir.Node
    sign: int
    minuends: frozenset[ir.Node]
    """Each Sub whose left side it is in: where it goes, something must be left to subtract from."""


@dataclass(slots=True, eq=False)
class _Branches:
    """What a tree adds of one x."""

    convolutions: list[tuple[_Term, ir.Node]] = field(default_factory=list)
    affine: list[tuple[_Term, Affine]] = field(default_factory=list)
    plain: list[_Term] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    """Which numbers of x the taps of a kernel meet; a tuple has an entry for each axis in space."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def of(cls, layer: Layer) -> "_Window | None":
        """None where pads depend on the size of x."""
        kernel = layer.weights.shape[2:]
        mode, dims = string(layer.node, "auto_pad", "NOTSET"), len(kernel)
        if mode not in ("NOTSET", "VALID"):
            return None
        strides, dilations = (integers(layer.node, name) or (1,) * dims for name in ("strides", "dilations"))
        pads = (integers(layer.node, "pads") if mode == "NOTSET" else None) or (0,) * (2 * dims)
        if len(strides) != dims or len(dilations) != dims or len(pads) != 2 * dims or min(dilations) < 1:
            return None
        return cls(kernel, strides, dilations, pads[:dims], pads[dims:])

    @classmethod
    def of_one_tap(cls, dims: int) -> "_Window":
        return cls((1,) * dims, (1,) * dims, (1,) * dims, (0,) * dims, (0,) * dims)

    def place(self, small: "_Window") -> tuple[slice, ...] | None:
        """Where in this kernel another one lies; None where it doesn't, or the results are of unlike sizes."""
        if self.strides != small.strides:
            return None
        found: list[slice] = []
        for axis, taps in enumerate(small.kernel):
            dilation, mine = self.dilations[axis], self.kernel[axis]
            first, between = divmod(self.begin[axis] - small.begin[axis], dilation)
            if between or first < 0 or first + taps > mine or (taps > 1 and small.dilations[axis] != dilation):
                return None
            if self._margin(axis) != small._margin(axis):
                return None
            found.append(slice(first, first + taps))
        return tuple(found)

    def _margin(self, axis: int) -> int:
        return self.begin[axis] + self.end[axis] - (self.kernel[axis] - 1) * self.dilations[axis]


@dataclass(frozen=True, slots=True, eq=False)
class _Convolution:
    """A term that a constant convolution makes."""

    term: _Term
    layer: Layer
    window: _Window


def merge_parallel_convolutions(edit: Edit) -> None:
    for root in edit.nodes(*_SUMS):
        if root.graph is None or not _adds_like_sizes(root) or not edit.replaceable(root.outputs[0]):
            continue  # gone by now, or not for us
        after = edit.only_consumer(root.outputs[0])
        if after is not None and is_operator(after, *_SUMS) and _adds_like_sizes(after):
            continue  # a part of a larger tree
        terms, tree = _terms(edit, root)
        for branches in _by_input(edit, terms).values():
            if len(branches.convolutions) + len(branches.affine) > 1:
                _merge(edit, branches, tree)


def _adds_like_sizes(node: ir.Node) -> bool:
    """Whether it adds several, and nothing tells that one of them is smaller than the result.

    Without a term a sum of a small and a large one may be small itself, and its type is on record.
    """
    whole = node.outputs[0].shape
    return len(node.inputs) > 1 and whole is not None and all(_alike(value, whole) for value in node.inputs)


def _alike(value: ir.Value | None, whole: ir.Shape) -> bool:
    if value is None or value.shape is None or len(value.shape) != len(whole):
        return False
    known = ((a, b) for a, b in zip(value.shape, whole, strict=True) if isinstance(a, int) and isinstance(b, int))
    return all(a == b for a, b in known)


def _terms(edit: Edit, root: ir.Node) -> tuple[list[_Term], set[ir.Node]]:
    """What the tree adds in the end, and its nodes: inner sums that nothing else reads are opened."""
    found: list[_Term] = []
    tree: set[ir.Node] = set()
    closed: list[tuple[ir.Node, int, frozenset[ir.Node]]] = [(root, 1, frozenset())]
    while closed:
        node, sign, minuends = closed.pop()
        if len(found) + len(closed) + len(node.inputs) > _MOST_TERMS:
            return [], set()
        tree.add(node)
        for index, value in enumerate(node.inputs):
            assert value is not None
            differs = node.op_type == "Sub"
            own = -sign if differs and index == 1 else sign
            inside = minuends | {node} if differs and index == 0 else minuends
            inner = producer(value, *_SUMS)
            if inner is not None and edit.only_consumer(value) is node and _adds_like_sizes(inner):
                closed.append((inner, own, inside))
            else:
                found.append(_Term(value, node, own, inside))
    return found, tree


def _by_input(edit: Edit, terms: Iterable[_Term]) -> dict[ir.Value, _Branches]:
    """Terms by the x that they are made of, itself included."""
    found: dict[ir.Value, _Branches] = {}
    for term in terms:
        node = term.value.producer() if edit.only_consumer(term.value) is term.reader else None
        if node is not None and is_operator(node, "Conv") and node.inputs[0] is not None:
            found.setdefault(node.inputs[0], _Branches()).convolutions.append((term, node))
        elif node is not None and (affine := _affine(edit, node)) is not None:
            found.setdefault(affine.x, _Branches()).affine.append((term, affine))
        else:
            found.setdefault(term.value, _Branches()).plain.append(term)
    return found


def _convolution(term: _Term, node: ir.Node) -> _Convolution | None:
    layer = layer_of(node)
    window = _Window.of(layer) if layer is not None else None
    return _Convolution(term, layer, window) if layer is not None and window is not None else None


def _affine(edit: Edit, node: ir.Node) -> Affine | None:
    if is_operator(node, "BatchNormalization"):
        return affine_of_norm(edit, node)
    return affine_of(node) if is_operator(node, "Mul", "Div") else None


def _merge(edit: Edit, branches: _Branches, tree: set[ir.Node]) -> None:
    """Largest kernel first, which takes all that fits; what is left tries the next one."""
    constant = (_convolution(*each) for each in branches.convolutions)
    waiting = sorted((each for each in constant if each is not None), key=lambda each: -each.layer.weights.size)
    # Of an x that is added twice nobody could say which one goes.
    plain = branches.plain if len(branches.plain) == 1 else []
    while waiting:
        host = waiting.pop(0)
        taken = _Taken(host)
        merged = [each for each in waiting if taken.convolution(each)]
        scaled = [each for each in branches.affine if taken.diagonal(*each)]
        if not merged and not scaled:
            continue
        whole = [term for term in plain if taken.diagonal(term, None)]
        if not applicable(host.layer, taken.weights, taken.bias):
            continue
        apply(edit, host.layer, taken.weights, taken.bias)
        waiting = [each for each in waiting if each not in merged]
        branches.affine = [each for each in branches.affine if each not in scaled]
        plain = [term for term in plain if term not in whole]
        for term in (*(each.term for each in merged), *(term for term, _ in scaled)):
            maker = term.value.producer()
            _drop(edit, term, tree, host.layer.node)
            assert maker is not None
            inherit(host.layer.node, [host.layer.node, maker])
            edit.remove(maker)
        for term in whole:
            _drop(edit, term, tree, host.layer.node)


class _Taken:
    """The weights of a convolution with those that it took, as they grow."""

    def __init__(self, host: _Convolution) -> None:
        self._host = host
        self.weights = host.layer.weights.copy()
        bias = host.layer.bias
        self.bias: Vector = np.zeros(host.layer.channels_out) if bias is None else bias.copy()

    def convolution(self, other: _Convolution) -> bool:
        mine, layer = self._host.layer, other.layer
        if (mine.groups, mine.weights.shape[:2]) != (layer.groups, layer.weights.shape[:2]):
            return False
        return self._take(other.term, other.window, layer.weights, layer.bias)

    def diagonal(self, term: _Term, affine: Affine | None) -> bool:
        """x itself, or with a factor and an offset for each channel."""
        layer = self._host.layer
        channels, each = layer.channels_out, layer.weights.shape[1]
        if layer.channels_in != channels or (affine is not None and not affine.fits(1, channels)):
            return False
        factor, offset = (np.ones(channels), None) if affine is None else affine.spread(channels)
        dims = layer.weights.ndim - 2
        weights = np.zeros((channels, each))
        weights[np.arange(channels), np.arange(channels) % each] = factor
        return self._take(term, _Window.of_one_tap(dims), weights.reshape(channels, each, *(1,) * dims), offset)

    def _take(self, term: _Term, window: _Window, weights: Vector, bias: Vector | None) -> bool:
        place = self._host.window.place(window)
        if place is None or not term.minuends <= self._host.term.minuends:
            return False
        sign = term.sign * self._host.term.sign
        self.weights[(slice(None), slice(None), *place)] += sign * weights
        if bias is not None:
            self.bias = self.bias + sign * bias
        return True


def _drop(edit: Edit, term: _Term, tree: set[ir.Node], host: ir.Node) -> None:
    """Take a term out of its sum; a sum of one that is left goes, and the convolution stands for it."""
    reader = next(use.node for use in term.value.uses() if use.node in tree)
    left = list(reader.inputs)
    left.remove(term.value)
    if len(left) > 1:
        for at, value in enumerate(left):
            edit.set_input(reader, at, value)
        reader.resize_inputs(len(left))
        return
    (other,) = left
    assert other is not None
    edit.forward(reader.outputs[0], other)
    inherit(host, [host, reader])
    edit.remove(reader)
    tree.discard(reader)
