"""The server: repository, backends and the native data plane put together.

`Server` is the whole public face. Of the package only this folder imports `_core`.
"""

from penstock.serve.server import Server

__all__ = ["Server"]
