"""Penstock: give it a model and it serves the model, at full pressure.

The whole public face is listed in `__all__`. What needs a framework or the native data plane (`load`, `build`,
`Server`) is imported when it is first used, so that `import penstock` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from penstock.backends.function import ModelFunction, model
from penstock.backends.settings import DynamicBatching, QueuePolicy
from penstock.errors import PenstockError
from penstock.pipeline import Pipeline, cpu, gather, pipeline, use
from penstock.tensors import BF16, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, Bool, Bytes, TensorType

if TYPE_CHECKING:
    from penstock.build import Cosine, Metric, build
    from penstock.engine import Engine, custom_op, load
    from penstock.serve import Server

__version__ = "0.1.0"

__all__ = [
    "BF16",
    "F16",
    "F32",
    "F64",
    "I8",
    "I16",
    "I32",
    "I64",
    "U8",
    "U16",
    "U32",
    "U64",
    "Bool",
    "Bytes",
    "Cosine",
    "DynamicBatching",
    "Engine",
    "Metric",
    "ModelFunction",
    "PenstockError",
    "Pipeline",
    "QueuePolicy",
    "Server",
    "TensorType",
    "build",
    "cpu",
    "custom_op",
    "gather",
    "load",
    "model",
    "pipeline",
    "use",
]

_LAZY = {
    "Cosine": "penstock.build",
    "Engine": "penstock.engine",
    "Metric": "penstock.build",
    "Server": "penstock.serve",
    "build": "penstock.build",
    "custom_op": "penstock.engine",
    "load": "penstock.engine",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
