"""Building: a model in, a sealed engine out. `build` is the whole public face; gates are `Cosine` and `Metric`.

The package and its function have one name: `penstock.build` is the function where `import penstock` found it first, and
this module where it was imported as one. So the module can be called, too, and both do the same.
"""

import sys
from types import ModuleType

from penstock.build import budget  # noqa: F401  (the time of a build begins with what it imports)
from penstock.build.entry import build
from penstock.build.gate import Cosine, Metric
from penstock.build.progress import Progress

__all__ = ["Cosine", "Metric", "Progress", "build"]


class _Callable(ModuleType):
    __call__ = staticmethod(build)


sys.modules[__name__].__class__ = _Callable
