"""Pipelines: async Python functions that call models of their own server, and are served like any model.

The public face is `pipeline`, and what a body may say: `use`, `cpu`, `gather`. Importing this is light: asyncio comes
with the first request, the server's parts when a pipeline is added to one.
"""

from penstock.pipeline.function import Pipeline, pipeline
from penstock.pipeline.steps import Use, cpu, gather, use

__all__ = ["Pipeline", "Use", "cpu", "gather", "pipeline", "use"]
