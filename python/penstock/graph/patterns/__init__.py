"""Recognises what exporters write out in many nodes: activations, layer normalization, attention, squeeze-excite.

Each recogniser is a pass. It writes the standard operator that means the same, raising the model's opset where that
changes nothing else; where no standard operator is run by every library it gives the nodes a name (`group`), by which
`regions` knows them. Running them again finds nothing new. Constants should have been folded and Identity nodes removed
before; factors should not have been folded into layers yet, since the half of a GELU that
moved into the next convolution leaves no GELU. Called by optimize.
"""

from collections.abc import Mapping
from typing import Final

import onnx_ir as ir

from penstock.graph.editing import Edit
from penstock.graph.inference import infer
from penstock.graph.patterns.attention import ATTENTION
from penstock.graph.patterns.gelu import GELU
from penstock.graph.patterns.hard_sigmoid import HARD_SIGMOID
from penstock.graph.patterns.hard_swish import HARD_SWISH
from penstock.graph.patterns.layer_norm import LAYER_NORM
from penstock.graph.patterns.pattern import GROUP_KEY, Pattern, group
from penstock.graph.patterns.silu import SILU
from penstock.graph.patterns.squeeze_excite import SQUEEZE_EXCITE

# Activations that become operators come first; then the subgraphs that may contain them; then those only named.
PATTERNS: Final[tuple[Pattern, ...]] = (
    GELU,
    HARD_SWISH,
    HARD_SIGMOID,
    LAYER_NORM,
    ATTENTION,
    SQUEEZE_EXCITE,
    SILU,
)

__all__ = ["GROUP_KEY", "PATTERNS", "Pattern", "group", "recognise", "recognise_patterns"]


def recognise(model: ir.Model) -> Mapping[str, int]:
    """Run every recogniser over the main graph, in place; how often each one found its subgraph, by name."""
    infer(model)  # without ranks and types most of them keep away
    return {pattern.name: pattern(model) for pattern in PATTERNS}


def recognise_patterns(edit: Edit) -> None:
    """The same as one of the passes of `penstock.graph.passes`."""
    if any(recognise(edit.model).values()):
        edit.changed = True
