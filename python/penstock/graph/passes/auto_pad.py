"""`auto_pad` becomes explicit pads.

VALID is none. SAME_UPPER and SAME_LOWER pad so that the output has ceil(input / stride) entries:
(output - 1) * stride + reach - input in all, where reach = (kernel - 1) * dilation + 1; the odd one goes to the end
(UPPER) or to the beginning (LOWER). With stride 1, and for a kernel of one entry, this does not depend on the input;
elsewhere its size must be known. Exact for Conv, MaxPool and AveragePool by ONNX's definition of the attribute.
ConvTranspose is left alone: what its two modes mean differs between versions and libraries.
"""

import onnx_ir as ir

from penstock.graph.editing import Edit, input_of, integers, string


def make_pads_explicit(edit: Edit) -> None:
    for node in edit.nodes("Conv", "MaxPool", "AveragePool"):
        mode = string(node, "auto_pad", "NOTSET")
        if mode == "VALID":
            edit.set_attributes(node, {"auto_pad": None, "pads": None})
        elif mode in ("SAME_UPPER", "SAME_LOWER"):
            pads = _pads(node, upper=mode == "SAME_UPPER")
            if pads is not None:
                edit.set_attributes(node, {"auto_pad": None, "pads": pads})


def _pads(node: ir.Node, *, upper: bool) -> list[int] | None:
    kernel, value = _kernel(node), node.inputs[0]
    if kernel is None or value is None or value.shape is None or len(value.shape) != len(kernel) + 2:
        return None
    strides = integers(node, "strides") or (1,) * len(kernel)
    dilations = integers(node, "dilations") or (1,) * len(kernel)
    begin: list[int] = []
    end: list[int] = []
    for size, entries, stride, dilation in zip(list(value.shape)[2:], kernel, strides, dilations, strict=True):
        reach = (entries - 1) * dilation + 1
        if stride == 1 or reach == 1:
            total = reach - 1
        elif isinstance(size, int):
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        else:
            return None
        small, large = total // 2, total - total // 2
        begin.append(small if upper else large)
        end.append(large if upper else small)
    return begin + end


def _kernel(node: ir.Node) -> tuple[int, ...] | None:
    given = integers(node, "kernel_shape")
    weights = input_of(node, 1)
    if given is not None or node.op_type != "Conv" or weights is None or weights.shape is None:
        return given
    sizes = [size for size in list(weights.shape)[2:] if isinstance(size, int)]
    return tuple(sizes) if len(sizes) == len(weights.shape) - 2 else None
