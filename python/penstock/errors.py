"""Every error Penstock raises, as one tree. Anyone may import this; it imports nothing.

    PenstockError                500  INTERNAL
    ├── InvalidArgument          400  INVALID_ARGUMENT    the request, call or file is wrong and will stay wrong
    │   ├── ConfigError          400  INVALID_ARGUMENT    config.pbtxt, or a setting that stands for it
    │   │   └── UsageError       400  INVALID_ARGUMENT    a setting or a flag that can't be meant
    │   ├── ListenError          400  INVALID_ARGUMENT    an address that can't be listened on; an OSError, too
    │   ├── ModelLoadError       400  INVALID_ARGUMENT    a model that can't be loaded as it is
    │   └── AccuracyError        400  INVALID_ARGUMENT    a model that no engine keeps to the accuracy asked for
    ├── Unauthenticated          401  UNAUTHENTICATED
    ├── NotFound                 404  NOT_FOUND
    ├── AlreadyExists            400  ALREADY_EXISTS
    ├── Cancelled                400  CANCELLED
    ├── ResourceExhausted        413  RESOURCE_EXHAUSTED  over a size limit
    ├── Unsupported              501  UNIMPLEMENTED       no such feature, or it is switched off
    ├── Unavailable              503  UNAVAILABLE         not now
    ├── DeadlineExceeded         503  DEADLINE_EXCEEDED
    └── Internal                 500  INTERNAL
        └── ExecutionError       500  INTERNAL            a model failed, or answered something it may not

A class knows its HTTP and its gRPC status; the numbers agree with `Code` of the Rust crate `schema` (a test compares
them). The message is one sentence for whoever called: the thing, what was expected, what came, and what to do. It
never holds a host path or a traceback.
"""

# ruff: noqa: N818  (the names are those of the gRPC statuses)

from typing import ClassVar, Final, Self

# Of a value in a message; what is longer is cut.
_SHOWN_CHARS: Final = 100


class PenstockError(Exception):
    """Base of all. Catch this to catch everything Penstock raises on purpose."""

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[int] = 13  # numbers of the gRPC specification, doc/statuscodes.md

    @property
    def message(self) -> str:
        return str(self)


class InvalidArgument(PenstockError):
    http_status = 400
    grpc_code = 3


class ConfigError(InvalidArgument):
    """A model configuration that can't be read, or that contradicts itself or its model."""


class ListenError(InvalidArgument, OSError):
    """A port that is taken, or an address that is not this machine's. `listener`: http, grpc or metrics."""

    def __init__(self, message: str, listener: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.listener = listener
        self.errno = errno


class UsageError(ConfigError):
    """A setting that can't be meant, whatever models, files and servers are like: wrong usage of a command."""

    setting: str = ""
    """As it is named in Python; empty where several don't go together."""

    problem: str = ""
    """What was expected and what came, without the name."""

    @classmethod
    def of(cls, setting: str, value: object, expected: str) -> Self:
        """`setting` is `value`, expected `expected`."""
        shown = _shown(value)
        made = cls(f"{setting} is {shown}, expected {expected}")
        made.setting, made.problem = setting, f"expected {expected}, got {shown}"
        return made


class ModelLoadError(InvalidArgument):
    """A model file that is missing, broken, unsafe, or of a kind that is not served."""


class AccuracyError(InvalidArgument):
    """Nothing that runs a model passes the accuracy gate: the limit is too tight, or the reference itself fails it."""


class Unauthenticated(PenstockError):
    http_status = 401
    grpc_code = 16


class NotFound(PenstockError):
    http_status = 404
    grpc_code = 5


class AlreadyExists(PenstockError):
    http_status = 400
    grpc_code = 6


class Cancelled(PenstockError):
    http_status = 400
    grpc_code = 1


class ResourceExhausted(PenstockError):
    http_status = 413
    grpc_code = 8


class Unsupported(PenstockError):
    http_status = 501
    grpc_code = 12


class Unavailable(PenstockError):
    http_status = 503
    grpc_code = 14


class DeadlineExceeded(PenstockError):
    http_status = 503
    grpc_code = 4


class Internal(PenstockError):
    http_status = 500
    grpc_code = 13


class ExecutionError(Internal):
    """A model raised, or returned something its signature does not allow."""


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
