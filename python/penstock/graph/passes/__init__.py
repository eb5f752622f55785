"""The passes in the order in which they run, one file for each rule.

A pass takes an `Edit` and changes the main graph through it; what it computes must stay what it was, which each file
argues for its own rule and a property test checks. Inner graphs of If, Loop and Scan are left as they are.
"""

from collections.abc import Callable
from typing import Final

from penstock.graph.editing import Edit
from penstock.graph.passes.affine import fold_affine
from penstock.graph.passes.auto_pad import make_pads_explicit
from penstock.graph.passes.batch_norm import fold_batch_norm
from penstock.graph.passes.constants import fold_constants
from penstock.graph.passes.dead import remove_dead
from penstock.graph.passes.deconvolution import spread_deconvolutions
from penstock.graph.passes.depth_to_space import sink_depth_to_space
from penstock.graph.passes.duplicates import merge_duplicates
from penstock.graph.passes.gemm import merge_bias
from penstock.graph.passes.layout import merge_reshapes, merge_transposes
from penstock.graph.passes.no_ops import remove_no_ops
from penstock.graph.passes.pad import fold_pad
from penstock.graph.passes.parallel import merge_parallel_convolutions
from penstock.graph.passes.residual_gates import merge_residual_gates
from penstock.graph.patterns import recognise_patterns

Pass = tuple[str, Callable[[Edit], None]]

PASSES: Final[tuple[Pass, ...]] = (
    ("fold-constants", fold_constants),
    ("remove-no-ops", remove_no_ops),
    ("merge-transposes", merge_transposes),
    ("merge-reshapes", merge_reshapes),
    ("remove-dead", remove_dead),
    ("merge-duplicates", merge_duplicates),
    # Before fold-affine, which would take the factors of a written-out GELU or hard-swish into its neighbours.
    ("recognise-patterns", recognise_patterns),
    ("make-pads-explicit", make_pads_explicit),
    ("fold-pad", fold_pad),
    ("fold-batch-norm", fold_batch_norm),
    ("fold-affine", fold_affine),
    # After both, which leave of a branch its convolution alone; what lies behind the sum is theirs in the next round.
    ("merge-parallel-convolutions", merge_parallel_convolutions),
    ("merge-bias", merge_bias),
)

FOR_CPU: Final[tuple[Pass, ...]] = (
    ("spread-deconvolutions", spread_deconvolutions),
    ("sink-depth-to-space", sink_depth_to_space),
    ("merge-residual-gates", merge_residual_gates),
    # Of weights that were spread and spread again only the last are kept.
    ("remove-dead", remove_dead),
)
"""Once, after all others, where libraries on a CPU run the graph: the same sums, by layers that they are faster at."""
