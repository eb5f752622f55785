"""The tensors of several graphs in one safetensors file, each once, and the graphs as ONNX that refers to it.

Forms of one model share most of their weights: two tensors of the same bytes are stored once. The ONNX files name the
weights file beside them with offsets into it (ONNX external data), so any ONNX tool reads them where they lie.
Called by sealing.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

from penstock.engine.sealed import WEIGHTS

# Smaller tensors stay in the graph: shapes, axes and scales, which shape inference reads, and whose entries would be
# longer than they are.
_LEAST_BYTES: Final = 1024

# Names of the safetensors format for what graphs hold; tensors of other types stay in the graph.
_TYPES: Final[Mapping[ir.DataType, str]] = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.DOUBLE: "F64",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.INT64: "I64",
    ir.DataType.INT32: "I32",
    ir.DataType.INT16: "I16",
    ir.DataType.INT8: "I8",
    ir.DataType.UINT64: "U64",
    ir.DataType.UINT32: "U32",
    ir.DataType.UINT16: "U16",
    ir.DataType.UINT8: "U8",
    ir.DataType.BOOL: "BOOL",
}


def shared(forms: Mapping[str, Path], folder: Path) -> tuple[dict[str, Path], Path]:
    """Write every form and the weights into `folder`: {form: ONNX file}, and the safetensors file beside them."""
    models = {name: ir.load(path) for name, path in forms.items()}
    entries: dict[str, dict[str, object]] = {}
    offsets: dict[str, int] = {}
    places: list[tuple[ir.Value, str, int, int]] = []
    end = 0
    data = folder / "data"
    with data.open("wb") as target:
        for model in models.values():
            for value in _initialisers(model):
                tensor = value.const_value
                assert tensor is not None
                kind = _TYPES.get(tensor.dtype)
                if kind is None or tensor.nbytes < _LEAST_BYTES:
                    continue
                raw = tensor.tobytes()
                key = hashlib.sha256(f"{kind} {list(tensor.shape)}".encode() + raw).hexdigest()
                if key not in offsets:
                    name = value.name or key
                    name = name if name not in entries else f"{name}.{key[:8]}"
                    entries[name] = {
                        "dtype": kind, "shape": list(np.asarray(tensor.shape.numpy(), int).tolist()),
                        "data_offsets": [end, end + len(raw)],
                    }  # fmt: skip
                    offsets[key] = end
                    end += len(raw)
                    target.write(raw)
                places.append((value, key, offsets[key], len(raw)))
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format wants data aligned
    weights = folder / WEIGHTS
    with weights.open("wb") as target, data.open("rb") as source:
        target.write(struct.pack("<Q", len(header)) + header)
        while chunk := source.read(1 << 20):
            target.write(chunk)
    data.unlink()
    base = 8 + len(header)
    for value, _, offset, length in places:
        tensor = value.const_value
        assert tensor is not None
        shape = ir.Shape(tensor.shape.numpy())
        value.const_value = ir.ExternalTensor(
            WEIGHTS, base + offset, length, tensor.dtype, name=value.name or "", shape=shape, base_dir=folder
        )
    written: dict[str, Path] = {}
    for name, model in models.items():
        written[name] = folder / f"{name}.onnx"
        written[name].write_bytes(ir.to_proto(model).SerializeToString())
        onnx.checker.check_model(str(written[name]))
    return written, weights


def _initialisers(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.initializers.values() if value.const_value is not None]
