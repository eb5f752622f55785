"""What `MODULE:NAME` of a program is as a server: the program's own, or one that is made for its function.

Called by the command line, which runs the server; so the program must not, and is told so when it tries.
"""

import inspect
from collections.abc import Callable
from typing import Any, Final

from penstock.backends.function import ModelFunction
from penstock.engine.importing import failure, find
from penstock.errors import InvalidArgument
from penstock.serve.server import PROGRAM, Servable, Server

_EXPECTED: Final = (
    "expected a ps.Server, a @ps.model or @ps.pipeline function, or a function without arguments that returns a "
    "ps.Server"
)


def server_of(source: str) -> Server:
    """The server that `module:name` stands for, not started. Imports the module; the working directory is on the path.

    Raises InvalidArgument where there is no such thing, where the user's code fails, or where it is nothing to serve.
    """
    importing = PROGRAM.set(source)
    try:
        found = find(source)
        if isinstance(found, ModelFunction | Servable):
            server = Server()
            server.add(found)
            return server
        if callable(found):
            found = _returned(source, found)
    finally:
        PROGRAM.reset(importing)
    if not isinstance(found, Server):
        raise InvalidArgument(f"{source}: got a value of type {type(found).__name__}, {_EXPECTED}")
    if found.running:
        raise InvalidArgument(
            f"{source}: the program has started its server already, which penstock serve is to do; put what starts it "
            'under if __name__ == "__main__":'
        )
    return found


def _returned(source: str, function: Callable[..., Any]) -> Any:
    """Of a function without arguments."""
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError) as error:  # ValueError: something built in, which has no signature
        raise InvalidArgument(
            f"{source} can't be called without arguments ({error}); decorate it with @ps.model or @ps.pipeline if it "
            "is the model, else give its arguments defaults"
        ) from None
    try:
        found = function()
    except (Exception, SystemExit) as error:  # whatever the user's function does
        raise InvalidArgument(f"{source}: {failure('calling it', error)}") from error
    if inspect.iscoroutine(found):
        found.close()  # or Python warns that nobody awaited it
    return found
