"""What kernels' modules mention of torch, for processes that compile kernels and never see a number.

Importing torch takes seconds. A compiler asks of a tensor no more than its type and whether its address is aligned, and
modules of kernels name types and annotate functions when they are imported. Called by `nursery`, in a process of its
own.
"""

import importlib
import math
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

_KERNELS: Final = "penstock.engine.cuda.kernels"
_BITS: Final = {"bfloat16": 16, "float8_e4m3fn": 8, "bool": 8}


class _Name(type):
    """A name that stands for itself, and so do the names inside it."""

    def __getattr__(cls, name: str) -> "_Name":
        if name.startswith("_"):
            raise AttributeError(name)
        found = _Name(name, (), {})
        setattr(cls, name, found)
        return found


class _Tensor(metaclass=_Name):
    """Without memory, and aligned."""

    def __init__(self, shape: Sequence[int], dtype: _Name) -> None:
        self.shape, self.dtype = tuple(shape), dtype

    def data_ptr(self) -> int:
        return 0

    def stride(self) -> tuple[int, ...]:
        return tuple(math.prod(self.shape[at + 1 :]) for at in range(len(self.shape)))

    def element_size(self) -> int:
        name = self.dtype.__name__
        return (_BITS.get(name) or int(name.strip("uintfloa"))) // 8


class _Torch(ModuleType):
    Tensor = _Tensor

    @staticmethod
    def empty(shape: int | Sequence[int], *, dtype: _Name, device: str) -> _Tensor:
        assert device == "meta", device
        return _Tensor((shape,) if isinstance(shape, int) else shape, dtype)

    def __getattr__(self, name: str) -> Any:
        found = getattr(_Name("torch", (), {}), name)
        setattr(self, name, found)
        return found


def import_kernels() -> None:
    """All of them, where torch was not imported before. Raises whatever a module does that wants more of it."""
    sys.modules["torch"] = _Torch("torch")
    package = importlib.import_module(_KERNELS)
    for each in pkgutil.iter_modules(package.__path__):
        if not each.ispkg:
            importlib.import_module(f"{_KERNELS}.{each.name}")
