"""Windows of pooling that would start in the end padding: ONNX ignores them, its shape inference counts them.

With `ceil_mode` the last window may reach beyond the end padding. Where it would also start there, it holds nothing but
padding, and the operator's definition (like PyTorch's and ONNX Runtime's) leaves it out. ONNX's own inference (1.23)
does not, so that it says one entry too many, and every shape behind it is wrong.
"""

from collections.abc import Mapping, Sequence

import onnx
from onnx import helper

Dim = int | str | None


def is_rounding_up(node: onnx.NodeProto) -> bool:
    """Whether a node is a pooling with explicit pads and `ceil_mode`."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    return (
        node.domain in ("", "ai.onnx")
        and node.op_type in ("MaxPool", "AveragePool", "LpPool")
        and {"ceil_mode", "kernel_shape"} <= attributes.keys()
        and attributes["ceil_mode"].i == 1
        and ("auto_pad" not in attributes or attributes["auto_pad"].s == b"NOTSET")
    )


def leave_out_late(node: onnx.NodeProto, shape: Sequence[Dim]) -> bool:
    """Let inference count right for an input of this shape; True when it did not.

    Then the node is for inference alone: its kernel and its pads say how many windows there are, not what they hold.
    """
    given = {attribute.name: list(attribute.ints) for attribute in node.attribute if attribute.ints}
    kernel = given["kernel_shape"]
    rank = len(kernel)
    pads = given.get("pads", [0] * (2 * rank))
    strides, dilations = (given.get(name, [1] * rank) for name in ("strides", "dilations"))
    if len(shape) != rank + 2 or len(pads) != 2 * rank or len(strides) != rank or len(dilations) != rank:
        return False
    changed = False
    for axis, size in enumerate(shape[2:]):
        if not isinstance(size, int) or strides[axis] < 1:
            continue
        reach, start = dilations[axis] * (kernel[axis] - 1) + 1, pads[axis]
        last = -(-(size + start + pads[rank + axis] - reach) // strides[axis])
        if last > 0 and last * strides[axis] >= size + start:
            # One window less is what a smaller kernel has, the last of which ends with the input.
            kernel[axis], dilations[axis] = size + start - (last - 1) * strides[axis], 1
            pads[rank + axis] = 0
            changed = True
    if changed:
        _set(node, {"kernel_shape": kernel, "pads": pads} | ({"dilations": dilations} if "dilations" in given else {}))
    return changed


def _set(node: onnx.NodeProto, attributes: Mapping[str, Sequence[int]]) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in attributes.items())])
