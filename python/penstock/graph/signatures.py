"""What a graph takes and gives, in the words the rest of the package uses.

Called by build for the manifest and by everything that makes inputs for a graph.
"""

import onnx_ir as ir

from penstock.errors import ModelLoadError
from penstock.tensors import TensorSpec

_DATATYPES: dict[ir.DataType, str] = {
    ir.DataType.BOOL: "BOOL",
    ir.DataType.UINT8: "UINT8",
    ir.DataType.UINT16: "UINT16",
    ir.DataType.UINT32: "UINT32",
    ir.DataType.UINT64: "UINT64",
    ir.DataType.INT8: "INT8",
    ir.DataType.INT16: "INT16",
    ir.DataType.INT32: "INT32",
    ir.DataType.INT64: "INT64",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT: "FP32",
    ir.DataType.DOUBLE: "FP64",
    ir.DataType.STRING: "BYTES",
}


def signature(model: ir.Model) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs in the graph's order; free dimensions are -1, their names are in `axes`.

    Inputs that have an initialiser of the same name are defaults, not inputs (ONNX before IR version 4), and are left
    out. Raises ModelLoadError for sequences, maps, element types without a v2 name, and tensors of unknown rank.
    """
    graph = model.graph
    inputs = tuple(spec(value) for value in graph.inputs if value.name not in graph.initializers)
    return inputs, tuple(spec(value) for value in graph.outputs)


def spec(value: ir.Value) -> TensorSpec:
    """One tensor. Raises as `signature` does."""
    name = value.name or ""
    datatype = _DATATYPES.get(value.dtype) if isinstance(value.type, ir.TensorType) and value.dtype else None
    if datatype is None:
        kind = value.dtype.name if value.dtype else str(value.type)
        raise ModelLoadError(f"{name!r} has type {kind}, expected a tensor of one of {', '.join(_DATATYPES.values())}")
    if value.shape is None:
        raise ModelLoadError(f"{name!r} has no shape; export the model with the rank of its inputs and outputs")
    sizes = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape)
    axes = tuple(None if isinstance(dim, int) else dim.value for dim in value.shape)
    return TensorSpec(name, datatype, sizes, axes=axes)
