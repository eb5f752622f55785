"""Tensors that lie in a file beside the model's.

A path to them is told of the folder that the model came from, which nobody knows who gets the graph as protobuf. Called
by what writes one.
"""

import onnx_ir as ir


def take_inside(model: ir.Model) -> None:
    """Read what lies outside; the model is changed."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _inside(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, _inside(attribute.value))


def _inside(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
