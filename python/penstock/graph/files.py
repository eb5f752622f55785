"""ONNX files into graphs and back.

`load` lets no library near a file before `penstock.engine.runtimes.onnx_file.inspect` has walked it, bounds what may
grow, and gives every node a name of its own. `save` and `to_bytes` write graphs that any ONNX tool reads. Called by
build and by whoever wants to look at a graph.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from penstock import limits
from penstock.engine.runtimes import onnx_file
from penstock.errors import ModelLoadError, NotFound, Unsupported
from penstock.graph.external import take_inside

# Protobuf's messages end at 2 GiB; the rest of a model besides its tensors needs some room below it.
_PROTOBUF_BYTES = 2**31 - 1
_ROOM_BYTES = 2**26
# Smaller tensors stay in the file itself, where shape inference of every library finds them.
_INSIDE_BYTES = 4096
# The first IR version in which initialisers need not be inputs as well.
_CONSTANT_INITIALISERS = 4


def load(path: str | Path) -> ir.Model:
    """Read an ONNX file; tensors kept outside it are read when they are needed.

    Every node has a name afterwards, unique in the whole model: its own where it had one of its own. Initialisers that
    were also listed as inputs are constants: nobody can set them through a server.
    Raises NotFound (no such file) and ModelLoadError (damaged, unsafe, too large, not ONNX).
    """
    path = Path(path)
    if not path.is_file():
        if path.is_dir():
            raise ModelLoadError(f"{path.name!r} is a directory, expected the name of a model file")
        raise NotFound(f"model file {path.name!r} does not exist")
    try:
        onnx_file.inspect(path)
        data = path.read_bytes()
    except OSError as error:
        raise ModelLoadError(f"{path.name} can't be read: {error.strerror or type(error).__name__}") from None
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception:  # protobuf's own error, whose module is not ours to import
        raise ModelLoadError(f"{path.name} is not an ONNX model, or it is cut") from None
    del data
    _bound(path.name, proto)
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # the library raises whatever a wrong field leads to
        raise ModelLoadError(f"{path.name} is no valid ONNX graph: {_line(error)}") from None
    ir.external_data.set_base_dir(model.graph, path.resolve().parent)
    for owner, tensor in _tensors(model):
        _check(path.name, owner, tensor)
    _constant_initialisers(model)
    try:
        for graph in model.graphs():
            _tidy(graph)
            graph.sort()
    except ValueError:
        raise ModelLoadError(f"{path.name} is no valid ONNX graph: a node needs its own output") from None
    _name_nodes(model)
    return model


def save(model: ir.Model, path: str | Path) -> None:
    """Write one file; a model of 2 GB and more gets its tensors in `NAME.data` beside it.

    Raises NotFound when the directory does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise NotFound(f"the directory of {path.name!r} does not exist")
    if _tensor_bytes(model) < _PROTOBUF_BYTES - _ROOM_BYTES:
        path.write_bytes(to_bytes(model))
        return
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=_INSIDE_BYTES)


def to_bytes(model: ir.Model) -> bytes:
    """The file's bytes with all tensors inside; raises Unsupported at 2 GB, which protobuf can't hold."""
    size = _tensor_bytes(model)
    if size >= _PROTOBUF_BYTES - _ROOM_BYTES:
        raise Unsupported(f"a model with {size} bytes of tensors does not fit one ONNX file of 2 GiB; save it instead")
    copy = model.clone()
    take_inside(copy)
    data: bytes = ir.to_proto(copy).SerializeToString()
    return data


def _tensor_bytes(model: ir.Model) -> int:
    return sum(tensor.nbytes for _, tensor in _tensors(model))


def _tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Every tensor with the name of what it belongs to."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield node.name or node.op_type, attribute.as_tensor()


def _bound(name: str, proto: onnx.ModelProto) -> None:
    """Refuse counts that would make every later step slow, before anything is made for each of them."""
    if not proto.graph.output:
        raise ModelLoadError(f"{name} holds a graph without outputs")
    nodes = tensors = 0
    waiting = [proto.graph]
    while waiting:
        graph = waiting.pop()
        nodes += len(graph.node)
        tensors += len(graph.initializer)
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs
    nodes += sum(len(function.node) for function in proto.functions)
    if nodes > limits.ONNX_NODES:
        raise ModelLoadError(f"{name} has {nodes} nodes, expected at most {limits.ONNX_NODES}")
    if tensors > limits.ONNX_INITIALISERS:
        raise ModelLoadError(f"{name} has {tensors} initialisers, expected at most {limits.ONNX_INITIALISERS}")


def _check(name: str, owner: str, tensor: ir.TensorProtocol) -> None:
    """A tensor's declared shape must agree with the bytes there are, so that no later step believes a huge one."""
    if any(not isinstance(size, int) or size < 0 for size in tensor.shape):
        raise ModelLoadError(f"{name}: tensor {owner!r} has shape {tensor.shape}, expected sizes from 0")
    if isinstance(tensor, ir.ExternalTensor):
        # `inspect` has seen that offset and length lie within the file; without a length it reaches to the end.
        there = tensor.length if tensor.length is not None else Path(tensor.path).stat().st_size - (tensor.offset or 0)
        if tensor.nbytes != there and (tensor.length is not None or tensor.nbytes > there):
            raise ModelLoadError(
                f"{name}: tensor {owner!r} is {tensor.nbytes} bytes by its shape, its external data has {there}"
            )
        return
    try:
        tensor.numpy()  # a view where the bytes are kept raw, as they nearly always are
    except Exception as error:
        raise ModelLoadError(f"{name}: tensor {owner!r} does not hold what its shape says: {_line(error)}") from None


def _constant_initialisers(model: ir.Model) -> None:
    inputs = model.graph.inputs
    for value in [value for value in inputs if value.is_initializer()]:
        inputs.remove(value)
        model.ir_version = max(model.ir_version, _CONSTANT_INITIALISERS)


def _tidy(graph: ir.Graph) -> None:
    """Dimensions that exporters write as -1 are free ones, and initialisers carry their own type."""
    values = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.shape is not None and any(isinstance(dim, int) and dim < 0 for dim in value.shape):
            value.shape = ir.Shape([None if isinstance(dim, int) and dim < 0 else dim for dim in value.shape])
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.type, value.shape = (
                ir.TensorType(value.const_value.dtype),
                ir.Shape(list(value.const_value.shape.numpy())),
            )


def _name_nodes(model: ir.Model) -> None:
    nodes = [node for graph in model.graphs() for node in graph]
    nodes += [node for function in model.functions.values() for node in function.all_nodes()]
    counts: dict[str, int] = {}
    for node in nodes:
        if node.name:
            counts[node.name] = counts.get(node.name, 0) + 1
    taken = set(counts)
    for index, node in enumerate(nodes):
        if node.name and counts[node.name] == 1:
            continue
        name, again = f"{node.op_type}_{index}", 0
        while name in taken:
            again += 1
            name = f"{node.op_type}_{index}_{again}"
        taken.add(name)
        node.name = name


def _line(error: BaseException) -> str:
    """A library's message on one line and short."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + " ..."
