"""Equal initialisers become one, and nodes that compute the same from the same values become one.

Exact: operators are functions of inputs and attributes, except those that draw random numbers and those with inner
graphs, which are left alone. Initialisers are equal when type, shape and every bit agree.
"""

import hashlib
from collections import defaultdict
from collections.abc import Hashable
from typing import Final

import onnx_ir as ir

from penstock.graph.editing import Edit, has_graphs
from penstock.graph.sources import inherit

_RANDOM: Final = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
# Attributes that are tensors are compared up to this size; larger ones were made initialisers before.
_ATTRIBUTE_BYTES: Final = 1024
_BEGINNING: Final = 16  # numbers


def merge_duplicates(edit: Edit) -> None:
    _initialisers(edit)
    seen: dict[Hashable, ir.Node] = {}
    for node in list(edit.graph):
        if node.op_type in _RANDOM or has_graphs(node) or node.domain not in ("", "ai.onnx"):
            continue
        key = _key(node)
        if key is None:
            continue
        first = seen.setdefault(key, node)
        if first is node:
            continue
        pairs = [(value, first.outputs[index]) for index, value in enumerate(node.outputs)]
        if all(edit.forward(old, new) for old, new in pairs if old.uses() or edit.is_output(old)):
            inherit(first, [first, node])
            edit.remove(node)


def _key(node: ir.Node) -> Hashable | None:
    attributes: list[Hashable] = []
    for name in sorted(node.attributes):
        attribute = node.attributes[name]
        value = attribute.value
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.nbytes > _ATTRIBUTE_BYTES or tensor.dtype == ir.DataType.STRING:
                return None
            value = (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
        elif isinstance(value, list | tuple):
            value = tuple(value)
        if attribute.is_ref() or not isinstance(value, Hashable):
            return None
        attributes.append((name, attribute.type, value))
    # A left out trailing output counts: Split into two is not Split into three.
    return node.op_type, len(node.outputs), tuple(map(id, node.inputs)), tuple(attributes)


def _initialisers(edit: Edit) -> None:
    groups: defaultdict[Hashable, list[ir.Value]] = defaultdict(list)
    for value in edit.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING or value.is_graph_input() or edit.is_output(value):
            continue
        # What is equal begins alike: few are read to their end.
        groups[tensor.dtype, tuple(tensor.shape), tensor.numpy().flat[:_BEGINNING].tobytes()].append(value)
    for group in groups.values():
        if len(group) == 1:
            continue
        seen: dict[bytes, ir.Value] = {}
        for value in group:
            tensor = value.const_value
            assert tensor is not None
            first = seen.setdefault(hashlib.blake2b(tensor.tobytes(), digest_size=32).digest(), value)
            if first is not value and value.uses():
                edit.forward(value, first)
