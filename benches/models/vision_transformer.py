"""CLIP's image tower ViT-B/32 (Radford et al. 2021): attention in the operators that exporters write.

The scale of the dot products is computed from shapes and split between queries and keys, and reshapes compute their
targets, as exported graphs do: finding the attention in it is the library's or the builder's work. Called by `zoo`.
"""

import numpy as np
import onnx

from benches.models.layers import (
    READOUT_SHARE,
    attuned,
    batch_size,
    filters,
    heavy_tailed,
    layer_norm,
    linear,
    reshaped,
    transposed,
)  # fmt: skip
from benches.models.network import Attributes, Network, Value
from benches.models.pictures import CLIP, Side, crops, normalised

_WIDTH, _HEADS, _LAYERS, _PATCH, _EMBEDDING = 768, 12, 12, 32, 512
_HEAD = _WIDTH // _HEADS
_PICTURES = 24
# Deviation of queries and keys: dot products then have one of about 1.7, so that attention looks at some, not at all.
_QUERY_DEVIATION = 1.3
# Of what a branch adds to a stream of deviation 1: small, as in trained networks, and two in each of twelve layers.
_BRANCH_DEVIATION = 0.3
_OUTLIERS = (138, 405, 590)  # which channels are the strong ones doesn't matter, only that there are some


def vit_b32() -> onnx.ModelProto:
    """87.8 M parameters, 4.4 GMAC at 224 x 224."""
    network = Network("vit_b32", 32)
    x = _tokens(network)
    with network.scope("ln_pre"):
        x = layer_norm(network, x, outliers=_OUTLIERS)
    for layer in range(_LAYERS):
        with network.scope(f"resblocks.{layer}"):
            x = _layer(network, x)
    with network.scope("ln_post"):
        token = network.one("Gather", x, network.constant(np.array(0, np.int64)), attributes={"axis": 1})
        token = layer_norm(network, token, centred=True)
    projection = attuned(network, _EMBEDDING, token.array, READOUT_SHARE).T
    embedding = network.one("MatMul", token, network.weight("proj", projection))
    return network.finish({"embedding": embedding})


def _tokens(network: Network) -> Value:
    pictures = normalised(crops(Side.CALIBRATION, _PICTURES, (224, 224), seed=2), CLIP)
    x = network.input("x", pictures)
    with network.scope("conv1"):
        weight = network.weight("weight", filters(network, x, _WIDTH, (_PATCH, _PATCH)))
        attributes: Attributes = {
            "dilations": [1, 1], "group": 1, "kernel_shape": [_PATCH] * 2, "pads": [0] * 4, "strides": [_PATCH] * 2,
        }  # fmt: skip
        x = network.one("Conv", x, weight, attributes=attributes)
    patches = transposed(network, reshaped(network, x, _WIDTH, -1), 0, 2, 1)
    deviation = float(patches.array.std())
    # The class token: the learnt vector, added to zeros of the batch's size.
    shape = network.one(
        "Concat", batch_size(network, patches), network.integers(1), network.integers(_WIDTH), attributes={"axis": 0}
    )
    vector = network.weight("class_embedding", (deviation * heavy_tailed(network, _WIDTH)).astype(np.float32))
    first = network.one("Add", vector, network.one("ConstantOfShape", shape))
    x = network.one("Concat", first, patches, attributes={"axis": 1})
    positions = 0.5 * deviation * heavy_tailed(network, x.array.shape[1], _WIDTH)
    return network.one("Add", x, network.weight("positional_embedding", positions.astype(np.float32)))


def _layer(network: Network, x: Value) -> Value:
    with network.scope("ln_1"):
        normed = layer_norm(network, x)
    with network.scope("attn"):
        x = network.one("Add", x, _attention(network, normed))
    with network.scope("ln_2"):
        hidden = layer_norm(network, x)
    with network.scope("mlp.c_fc"):
        hidden = linear(network, hidden, 4 * _WIDTH)
    with network.scope("mlp.gelu"):  # QuickGELU, CLIP's own: x * sigmoid(1.702 x)
        scaled = network.one("Mul", hidden, network.constant(np.array(1.702, np.float32)))
        hidden = network.one("Mul", hidden, network.one("Sigmoid", scaled))
    with network.scope("mlp.c_proj"):
        hidden = linear(network, hidden, _WIDTH, deviation=_BRANCH_DEVIATION)
    return network.one("Add", x, hidden)


def _attention(network: Network, x: Value) -> Value:
    tokens = x.array.shape[1]
    with network.scope("in_proj"):
        joined = linear(network, x, 3 * _WIDTH, deviation=_QUERY_DEVIATION)
    heads = transposed(network, reshaped(network, joined, tokens, 3, _HEADS, _HEAD), 2, 0, 3, 1, 4)
    query, key, value = (
        network.one("Gather", heads, network.constant(np.array(index, np.int64)), attributes={"axis": 0})
        for index in range(3)
    )
    scale = _scale(network, query)
    flipped = transposed(network, key, 0, 1, 3, 2)
    product = network.one("MatMul", network.one("Mul", query, scale), network.one("Mul", flipped, scale))
    weights = network.one("Softmax", product, attributes={"axis": -1})
    mixed = transposed(network, network.one("MatMul", weights, value), 0, 2, 1, 3)
    with network.scope("out_proj"):
        return linear(network, reshaped(network, mixed, tokens, _WIDTH), _WIDTH, deviation=_BRANCH_DEVIATION)


def _scale(network: Network, query: Value) -> Value:
    """sqrt(1 / sqrt(head size)), from the shape: both sides of the dot product get it."""
    ends = network.integers(-1), network.constant(np.array([np.iinfo(np.int64).max], np.int64))
    size = network.one("Slice", network.one("Shape", query), *ends)
    root = network.one("Sqrt", network.one("Cast", size, attributes={"to": onnx.TensorProto.FLOAT}))
    return network.one("Sqrt", network.one("Div", network.constant(np.array([1.0], np.float32)), root))
