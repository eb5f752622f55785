"""Turns a graph whose shapes are bound into steps for GPU kernels (`engine.lowered`).

`lower` takes what `graph.optimize(model, shapes=...)` made. Feature maps become NHWC, weights are laid out as kernels
want them, reshapes and transposes become views, layers take in their bias, activation and residual, and some become one
step with the next. An operator
that is not in the table raises Unsupported, which names it and its node. Nothing else of the package knows both ONNX
and steps. Called by build.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx_ir as ir

from penstock.engine.assembling import join_pieces
from penstock.engine.blocks import join_blocks
from penstock.engine.interleaving import take_apart
from penstock.engine.lowered import LoweredGraph
from penstock.engine.stem_pools import join_pictures, join_stem_pools
from penstock.errors import Unsupported
from penstock.graph.editing import Array, is_operator
from penstock.graph.lowering import attention, instances, layers, moves, picking, recurrent, reductions, resizing
from penstock.graph.lowering.builder import Builder
from penstock.graph.lowering.einsum import einsum
from penstock.graph.lowering.embeddings import join_embeddings
from penstock.graph.lowering.fusing import fuse
from penstock.graph.lowering.gating import fold_gates, join_gated_layers
from penstock.graph.lowering.joining import join, join_gates
from penstock.graph.lowering.linear import merge_layers
from penstock.graph.lowering.norms import fold_norms
from penstock.graph.lowering.ordering import store_in_order
from penstock.graph.lowering.pictures import cut_pictures
from penstock.graph.lowering.pointwise import POINTWISE, pointwise
from penstock.graph.lowering.siblings import join_siblings
from penstock.graph.lowering.sums import carry_sums
from penstock.graph.lowering.unfolding import unfold

_Lower = Callable[[Builder, ir.Node], None]

_OPERATORS: Final[dict[str, _Lower]] = {
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Gemm": layers.gemm,
    "MatMul": layers.matmul,
    "LSTM": recurrent.lstm,
    "GRU": recurrent.gru,
    "Einsum": einsum,
    "InstanceNormalization": instances.instance_norm,
    "GroupNormalization": instances.group_norm,
    "LayerNormalization": reductions.layer_norm,
    "Softmax": reductions.softmax,
    "LogSoftmax": reductions.softmax,
    "MaxPool": reductions.pool,
    "AveragePool": reductions.pool,
    "ArgMax": reductions.arg_max,
    "ArgMin": reductions.arg_max,
    "Transpose": moves.transpose,
    "Expand": moves.expand,
    "Tile": moves.tile,
    "Slice": moves.slice_,
    "Split": moves.split,
    "DepthToSpace": moves.depth_to_space,
    "SpaceToDepth": moves.space_to_depth,
    "Gather": moves.gather,
    "GatherElements": picking.gather_elements,
    "GatherND": picking.gather_nd,
    "ScatterElements": picking.scatter_elements,
    "ScatterND": picking.scatter_nd,
    "TopK": picking.top_k,
    "CumSum": picking.cumulative_sum,
    "Concat": moves.concat,
    "Pad": moves.pad,
    "Resize": resizing.resize,
    "Upsample": resizing.resize,
    "GridSample": moves.grid_sample,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"), moves.reshape),
    **dict.fromkeys(reductions.REDUCTIONS, reductions.reduce),
    **dict.fromkeys(POINTWISE, pointwise),
}

SUPPORTED: Final = frozenset(_OPERATORS)
"""ONNX operators that can be lowered."""

Weights = dict[str, Array]

__all__ = ["SUPPORTED", "Weights", "lower"]


def lower(model: ir.Model, *, joined: bool = True) -> tuple[LoweredGraph, Weights]:
    """Steps and weights, by name. Raises Unsupported for what has no step, and for sizes that depend on the data.

    joined  whether layers become one step with the next where one kernel of floats executes both
    """
    builder = Builder(model)
    graph = model.graph
    for value in graph.inputs:
        if value.name not in graph.initializers:
            builder.add_input(value)
    attentions = attention.find(graph)
    node: ir.Node | None = None
    for node in graph:
        if node in attentions:
            whole = attentions[node]
            if whole is not None and not attention.lower(builder, whole):
                for each in whole.nodes:
                    _one(builder, each)
            continue
        _one(builder, node)
    for value in graph.outputs:
        builder.add_output(value, value.producer() or node or ir.node("Identity", [value], name=f"{value.name}.output"))
    fused = fuse(builder.finish())
    if not joined:
        plain, weights = cut_pictures(join_embeddings(fused), builder.weights)
        return plain, {name: weights[name] for name in plain.weights}
    merged, weights = merge_layers(fused, builder.weights)
    folded, weights = fold_gates(join_gates(merged), weights)
    steps = join_embeddings(join_gated_layers(join(join_blocks(folded))))
    steps, weights = cut_pictures(*unfold(steps, weights))
    lowered, weights = fold_norms(*join_siblings(steps, weights))
    lowered = store_in_order(take_apart(join_pieces(join_pictures(join_stem_pools(carry_sums(lowered))))))
    return lowered, {name: weights[name] for name in lowered.weights}


def _one(builder: Builder, node: ir.Node) -> None:
    if is_operator(node, "Constant"):
        tensor = ir.convenience.get_const_tensor(node.outputs[0])
        if tensor is None:
            raise Unsupported(f"the constant of node {node.name!r} is no tensor")
        builder.fold(node.outputs[0], np.asarray(tensor.numpy()))
        return
    function = _OPERATORS.get(node.op_type) if is_operator(node, node.op_type) else None
    if function is None:
        domain = f"{node.domain}::" if node.domain not in ("", "ai.onnx") else ""
        raise Unsupported(
            f"operator {domain}{node.op_type} of node {node.name!r} has no GPU step; run it on another runtime"
        )
    function(builder, node)
