"""The server: repository, backends and the native data plane put together.

`Server` is the whole public face; `server_of` is for the command line. Of the package only this folder imports `_core`.
"""

from penstock.serve.program import server_of
from penstock.serve.server import Server

__all__ = ["Server", "server_of"]
