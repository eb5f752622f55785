"""Model directories: what is in them, how it is configured, and loading it. Knows nothing of sockets or requests.

`Repository` reads Triton's layout, `bare` takes one file, `from_function`, `from_runtime` and `from_signature` take
what a program made; each gives `Model`s for the serve layer to run. The serve layer decides when to load and what
stays in service.
"""

from penstock.repository.config import Config
from penstock.repository.models import (
    Buildable,
    Model,
    accelerated,
    bare,
    checked_instances,
    from_function,
    from_runtime,
    from_signature,
)
from penstock.repository.repository import IndexEntry, Repository

__all__ = [
    "Buildable",
    "Config",
    "IndexEntry",
    "Model",
    "Repository",
    "accelerated",
    "bare",
    "checked_instances",
    "from_function",
    "from_runtime",
    "from_signature",
]
