"""ONNX graphs: read, bound to shapes, simplified without changing what they compute, written again.

A graph is an `onnx_ir.Model`; there is no class of our own. `load` is the only way in, and refuses unsafe files;
`optimize` and `bind` work on copies and keep the names and the order of inputs and outputs. Called by quantize, tactics
and build; imports the engine's file checks and nothing else of the package.
"""

from penstock.graph import boundary
from penstock.graph.binding import bind, mend_outputs
from penstock.graph.files import load, save, to_bytes
from penstock.graph.optimizing import Optimized, PassRecord, optimize
from penstock.graph.passes import FOR_CPU, Pass
from penstock.graph.regions import Listing, listing, regions
from penstock.graph.signatures import signature
from penstock.graph.sources import SOURCE_KEY, sources

__all__ = [
    "FOR_CPU",
    "SOURCE_KEY",
    "Listing",
    "Optimized",
    "Pass",
    "PassRecord",
    "bind",
    "boundary",
    "listing",
    "load",
    "mend_outputs",
    "optimize",
    "regions",
    "save",
    "signature",
    "sources",
    "to_bytes",
]
