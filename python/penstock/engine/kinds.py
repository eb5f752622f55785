"""The kinds of steps that a lowered graph has: what they read, which attributes they have, what programs are made of.

`refused` says what is wrong with a step's attributes, and nothing where all is well; whatever passes can be bound
without a number that overflows. Called by `engine.lowered` for graphs that are written and for those that are read.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

Number = int | float | bool
Attribute = str | Number | tuple[Number, ...]

KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    # kind -> roles of the operands it can't do without. Axes, pads and kernels are those of the stored shape; pads are
    # top, left, bottom, right. Layers may have `bias` and `residual`, and the attributes `activation`, `alpha`, `beta`
    # and `residual` (`before` or `after` the activation).
    # `products`: of each result, where weights hold zeros that only fill them up.
    "conv": ("x", "weight"),  # kernel, strides, pads, dilations, groups; maybe products
    "conv_transpose": ("x", "weight"),  # and output_padding
    "gemm": ("x", "weight"),
    # A product of rows that a layer norm was to see first, its weight and bias inside those here: `x_moments` [rows,
    # parts, 2] are the mean of each part of a row and its squared distances from that, summed, with `epsilon`;
    # `column_sums` is the weight once more, of whose rows kernels want the sums. The `residual` may be such rows too:
    # `residual_moments`, `residual_scale`, `residual_shift` and `residual_epsilon`. A second output: the moments of
    # what is written.
    "gemm_norm": ("x", "weight"),
    # Two layers over the last axis, weights `first` [hidden, in] and `second` [out, hidden], maybe `first_bias` and
    # `second_bias`; the activation between them is `inner` with `inner_alpha` and `inner_beta`, the one at the end
    # `activation`. `squeeze_excite` is of the mean of x [N, H, W, C] over its pixels, and writes C numbers an image.
    # `mlp` may have a `gate` [N, 1, 1, C] that multiplies x, and a `residual`; `skip`: what is added is x, gated.
    "squeeze_excite": ("x", "first", "second"),
    "mlp": ("x", "first", "second"),
    # A depthwise convolution, all of `conv`, and the squeeze-and-excite of what it makes, which is its second output;
    # the gate's activation at the end is `outer` with `outer_alpha` and `outer_beta`.
    "conv_gate": ("x", "weight", "first", "second"),
    # The largest of each 2 x 2 window of x beside a 2 x 2 convolution `second` of one `first` of it, all
    # of stride 1 and overhanging below and to the right; activations and biases as those of `mlp`.
    "fork": ("x", "first", "second"),
    # A 1 x 1 convolution `first`, maybe with `first_bias`, its activation `inner`, and a depthwise one behind it, all
    # of `conv`, whose padding is of zeros. In INT8 `scale` is of the first, and `inner_step` what one step of the map
    # between them is worth.
    "expand_depthwise": ("x", "first", "weight"),
    # 1 x 1 convolutions g = 0, 1, … of maps g_x with weights g_weight, maybe g_bias, each times (plus + g_gate), which
    # is [N, 1, 1, O], and repeated as `times` says, side by side; a `residual` that is repeated `residual_times`.
    "gated_layers": ("0_x", "0_weight", "0_gate"),
    # A convolution and what a 1 x 1 `shortcut` [out, in] makes of every `shortcut_strides`-th pixel of `source`, added
    # before the activation; maybe `shortcut_bias`.
    "conv_shortcut": ("x", "weight", "source", "shortcut"),
    # A convolution with the activation `inner`, and the 1 x 1 convolution `second` of it, whose `activation` comes
    # behind what is added: a `residual`, or a `source` with its `shortcut` as above. `bottleneck_next` also writes
    # what the 1 x 1 convolution `third` with the activation `outer` makes of that. Each may have a bias. In INT8 each
    # layer has a scale, `scale`, `second_scale`, ..., and one step of what lies between the first two is `inner_step`.
    "bottleneck": ("x", "weight", "second"),
    "bottleneck_next": ("x", "weight", "second", "third"),
    # A convolution, all of it, and the largest of each window of what it makes: `pool_kernel`, `pool_strides`,
    # `pool_pads`.
    "conv_pool": ("x", "weight"),
    # What `pad` makes of x, and a conv_pool of rows of windows of it.
    "picture_pool": ("x", "weight"),
    "matmul": ("a", "b"),  # order: which axis of the product each stored one is
    # [B, H, T, D] each, mask [B, H, T, T]; scale; written as [B, T, H, D]. With `mask_factor` what is added is
    # (`mask_from` - mask) times that. A mask of fewer in place of B repeats along it. `scales` [H]: a factor for each
    # head besides. With `unit` rows of q and k are divided by their lengths, or by that where they are shorter.
    "attention": ("q", "k", "v"),
    # The same between channels, whose scores are sums over tokens: q [B, H, T, D], k and v [B, H, T, E]; written as
    # [B, T, H, D]. With `unit` channels are divided by their lengths along the tokens.
    "channel_attention": ("q", "k", "v"),
    "lstm": ("x", "weight", "recurrence"),  # bias, recurrence_bias, hidden, cell; gates i, f, c, o; writes [T, B, D, H]
    "gru": ("x", "weight", "recurrence"),  # bias, recurrence_bias, hidden; gates r, z, n; writes [T, B, D, H]
    # weight, bias; over the last `axes`; epsilon. Of x + `residual`, whose axes may repeat; with `indices` x is a
    # table, and its rows of these numbers are what is meant. A second output: the sum itself.
    "layer_norm": ("x",),
    # Of a map: what x is multiplied by and what is added to it to norm each of so many `groups` of channels of each
    # image over its pixels; epsilon. Two outputs, FP32 [N, 1, 1, C].
    "norm_factors": ("x",),
    "softmax": ("x",),  # axis
    "log_softmax": ("x",),
    "max_pool": ("x",),  # kernel, strides, pads, dilations
    "average_pool": ("x",),  # and count_pads
    "reduce": ("x",),  # how: mean, sum, max, min, l2; axes, which stay with size 1
    "top_1": ("x",),  # over the last axis: where the largest is, and its softmax: two outputs
    "gemm_top_1": ("x", "weight"),  # the same of a `gemm` with nothing but its bias, which is not written
    "arg_max": ("x",),  # axis, how: max or min
    "top_k": ("x",),  # axis, how: max or min; in order, and where they are: two outputs
    "cumsum": ("x",),  # axis; exclusive: without the element itself; reverse: from the end
    "resize": ("x",),  # mode, coordinates, nearest, scales: as in ONNX
    "pad": ("x",),  # begin, end, value; maybe a program, which is computed before
    "gather": ("x", "indices"),  # axis
    "gather_elements": ("x", "indices"),  # axis: along it the element of that number, for every element of the result
    # Rows of x by the last axis of the indices, which are places of as many axes, behind `batch` that both have.
    "gather_nd": ("x", "indices"),
    # [N, H, W, C] at the places grid [N, .., .., 2], x and y from -1 to 1; mode, padding, align: as in ONNX.
    "grid_sample": ("x", "grid"),
    "concat": (),  # axis; the last one of operands with more axes than the result, whose others are cut in two
    "copy": (),  # the operand's view, made dense
    "pieces": (),  # a concatenation of what is computed; pieces: as `engine.pieces` writes them
    "pointwise": (),  # the step's program; operands may be seen with axes cut in two, as long as all are
}

# Kind -> how many outputs it has, where that is not one.
OUTPUTS: Final[Mapping[str, tuple[int, ...]]] = {
    **dict.fromkeys(("conv_gate", "bottleneck_next", "norm_factors", "top_1", "gemm_top_1", "top_k", "gru"), (2,)),
    "lstm": (3,),
    "gemm_norm": (1, 2),
    "layer_norm": (1, 2),
}
# What is laid out anew before anything runs, so that it has to be a weight.
CONSTANT: Final = (
    *("weight", "scale", "bias", "recurrence", "recurrence_bias", "first", "first_bias", "second", "second_bias"),
    *("third", "third_bias", "shortcut", "shortcut_bias", "second_scale", "third_scale", "shortcut_scale"),
    *("residual_scale", "residual_shift", "column_sums"),
)
_FILTERS: Final = (
    "conv",
    "conv_transpose",
    "conv_gate",
    "expand_depthwise",
    "conv_shortcut",
    "bottleneck",
    "bottleneck_next",
    "conv_pool",
    "picture_pool",
)
NUMBERED: Final = "0123456789_"  # before a role that several operands play
MAPS: Final = (
    *_FILTERS,
    *("squeeze_excite", "max_pool", "average_pool", "norm_factors", "resize", "fork", "grid_sample"),
)
# Kind -> role -> axes of what plays it.
AXES: Final[Mapping[str, Mapping[str, int]]] = {
    **{kind: {"x": 4} for kind in MAPS},
    **{kind: {"x": 4, "weight": 4} for kind in _FILTERS},
    "conv_shortcut": {"x": 4, "weight": 4, "source": 4, "shortcut": 2},
    **{kind: {"x": 4, "weight": 4, "second": 2} for kind in ("bottleneck", "bottleneck_next")},
    "fork": {"x": 4, "first": 4, "second": 4},
    "grid_sample": {"x": 4, "grid": 4},
    "gated_layers": {"0_x": 4},
    **{kind: {"weight": 2} for kind in ("gemm", "gemm_top_1")},
    "gemm_norm": {"weight": 2, "x_moments": 3, "residual_moments": 3},
    "attention": {"q": 4, "k": 4, "v": 4, "mask": 4, "scales": 1},
    "channel_attention": {"q": 4, "k": 4, "v": 4, "scales": 1},
    **{kind: {"x": 3, "weight": 3, "recurrence": 3} for kind in ("lstm", "gru")},
}
# Kinds that have weights at all.
LAYERS: Final = (
    *(*_FILTERS, "gemm", "gemm_norm", "squeeze_excite", "mlp", "fork"),
    *("lstm", "gru", "layer_norm", "gated_layers", "gemm_top_1"),
)

MULTIPLY: Final = frozenset((*LAYERS, "matmul", "attention", "channel_attention")) - {"layer_norm"}
"""Kinds whose time goes into products."""

# Activation of an epilogue -> what it computes; alpha and beta are the step's attributes.
ACTIVATIONS: Final = (
    *("none", "relu", "relu6", "clip", "leaky_relu", "silu", "quick_gelu", "gelu", "gelu_tanh"),
    *("sigmoid", "hard_sigmoid", "hard_swish", "tanh", "star_relu"),
)
# Instructions of a pointwise program with how many arguments they take.
INSTRUCTIONS: Final[Mapping[str, int]] = {
    **dict.fromkeys(
        (
            *("relu", "relu6", "silu", "quick_gelu", "gelu", "gelu_tanh", "sigmoid", "hard_swish", "tanh", "erf"),
            *("exp", "log", "sqrt", "neg", "abs", "reciprocal", "sign", "floor", "ceil", "round", "softplus", "not"),
            *("is_nan", "sin", "cos", "identity", "to_float", "to_int", "to_bool"),
        ),
        1,
    ),
    **dict.fromkeys(
        (
            *("add", "sub", "mul", "div", "pow", "min", "max", "leaky_relu", "elu"),
            *("equal", "less", "less_equal", "greater", "greater_equal", "and", "or"),
        ),
        2,
    ),
    **dict.fromkeys(("where", "hard_sigmoid", "clip", "star_relu"), 3),
}

LARGEST: Final = 2**31 - 1
"""Of an integer among them; sizes of axes are no larger."""

_ANY: Final = -1


@dataclass(frozen=True, slots=True)
class _Rule:
    type: Literal["integer", "number", "flag", "text"]
    length: int | None = None
    """Of a row of numbers; None: one alone."""

    least: int = -LARGEST
    words: tuple[str, ...] = ()
    """All that a text may be; empty: anything."""

    def allows(self, value: Attribute) -> bool:
        if self.length is None:
            return not isinstance(value, tuple) and self._allows(value)
        fits = isinstance(value, tuple) and self.length in (_ANY, len(value))
        return isinstance(value, tuple) and fits and all(map(self._allows, value))

    def _allows(self, value: str | Number) -> bool:
        if self.type == "text" or isinstance(value, str):
            return self.type == "text" and isinstance(value, str) and (not self.words or value in self.words)
        if self.type == "flag":
            return value in (0, 1)
        if self.type == "number":  # infinities are the open ends of clips, and what max pools are padded with
            return not math.isnan(value)
        return isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= LARGEST

    def __str__(self) -> str:
        if self.words:
            return f"one of {', '.join(self.words)}"
        several = {None: f"one {self.type}", _ANY: f"{self.type}s"}.get(self.length, f"{self.length} {self.type}s")
        return several + (f" from {self.least}" if self.least > -LARGEST else "")


_PAIR: Final = _Rule("integer", 2, least=1)
_SIDES: Final = _Rule("integer", 4)
_EDGES: Final = _Rule("integer", _ANY, least=0)
_AXIS: Final = _Rule("integer", least=0)
_NUMBER: Final = _Rule("number")
_EXTREME: Final = _Rule("text", words=("max", "min"))
_ACTIVATION: Final = _Rule("text", words=ACTIVATIONS)

_ENDING: Final = {"activation": _ACTIVATION, "alpha": _NUMBER, "beta": _NUMBER}
_EPILOGUE: Final = {**_ENDING, "residual": _Rule("text", words=("before", "after"))}
_INNER: Final = {"inner": _ACTIVATION, "inner_alpha": _NUMBER, "inner_beta": _NUMBER}
_OUTER: Final = {"outer": _ACTIVATION, "outer_alpha": _NUMBER, "outer_beta": _NUMBER}
_WINDOWS: Final = {"kernel": _PAIR, "strides": _PAIR, "pads": _SIDES, "dilations": _PAIR}
_CONV: Final = {**_WINDOWS, "groups": _Rule("integer", least=1)}
_POOL: Final = {**_WINDOWS, "count_pads": _Rule("flag")}
_POOLED: Final = {**_CONV, "pool_kernel": _PAIR, "pool_strides": _PAIR, "pool_pads": _SIDES}
_STEM: Final = {**_ENDING, "products": _Rule("integer", least=1)}
_AROUND: Final = {"begin": _EDGES, "end": _EDGES, "value": _NUMBER}

# Kind -> those that its steps must have, and those that they may.
_NEEDED: Final[Mapping[str, Mapping[str, _Rule]]] = {
    "conv": _CONV,
    "conv_transpose": {**_CONV, "output_padding": _Rule("integer", 2, least=0)},
    "conv_gate": _CONV,
    "expand_depthwise": _CONV,
    "conv_shortcut": {**_CONV, "shortcut_strides": _PAIR},
    "bottleneck": _CONV,
    "bottleneck_next": _CONV,
    "conv_pool": _POOLED,
    "picture_pool": {**_POOLED, **_AROUND},
    "attention": {"scale": _NUMBER},
    "channel_attention": {"scale": _NUMBER},
    "layer_norm": {"axes": _Rule("integer", least=1), "epsilon": _NUMBER},
    "softmax": {"axis": _AXIS},
    "log_softmax": {"axis": _AXIS},
    "max_pool": _WINDOWS,
    "average_pool": _POOL,
    "reduce": {"how": _Rule("text", words=("mean", "sum", "max", "min", "l2")), "axes": _EDGES},
    "arg_max": {"axis": _AXIS, "how": _EXTREME},
    "norm_factors": {"groups": _Rule("integer", least=1), "epsilon": _NUMBER},
    "top_k": {"axis": _AXIS, "how": _EXTREME},
    "cumsum": {"axis": _AXIS, "exclusive": _Rule("flag"), "reverse": _Rule("flag")},
    "gated_layers": {"times": _Rule("integer", _ANY, least=1), "plus": _Rule("flag")},
    "resize": {
        "mode": _Rule("text", words=("nearest", "linear")),
        "coordinates": _Rule("text"),
        "nearest": _Rule("text", words=("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")),
        "scales": _Rule("number", 2),
    },
    "pad": _AROUND,
    "gather": {"axis": _AXIS},
    "gather_elements": {"axis": _AXIS},
    "gather_nd": {"batch": _Rule("integer", least=0)},
    "grid_sample": {
        "mode": _Rule("text", words=("bilinear", "nearest", "bicubic")),
        "padding": _Rule("text", words=("zeros", "border", "reflection")),
        "align": _Rule("flag"),
    },
    "concat": {"axis": _AXIS},
    "pieces": {"pieces": _Rule("integer", _ANY, least=0)},
}
_ALLOWED: Final[Mapping[str, Mapping[str, _Rule]]] = {
    "conv": {**_EPILOGUE, "products": _Rule("integer", least=1)},
    "conv_transpose": _EPILOGUE,
    "gemm": _EPILOGUE,
    "gemm_norm": {**_EPILOGUE, "epsilon": _NUMBER, "residual_epsilon": _NUMBER},
    "squeeze_excite": {**_EPILOGUE, **_INNER},
    "mlp": {**_EPILOGUE, **_INNER, "skip": _Rule("flag")},
    "matmul": {"order": _EDGES},
    "attention": {"mask_from": _NUMBER, "mask_factor": _NUMBER, "unit": _NUMBER},
    "channel_attention": {"unit": _NUMBER},
    "fork": {**_EPILOGUE, **_INNER},
    "expand_depthwise": {**_EPILOGUE, **_INNER, "inner_step": _NUMBER},
    "gated_layers": {"residual_times": _PAIR},
    "conv_gate": {**_EPILOGUE, **_INNER, **_OUTER},
    "conv_shortcut": _ENDING,
    "bottleneck": {**_ENDING, **_INNER, "shortcut_strides": _PAIR, "inner_step": _NUMBER},
    "bottleneck_next": {**_ENDING, **_INNER, **_OUTER, "shortcut_strides": _PAIR, "inner_step": _NUMBER},
    "conv_pool": _STEM,
    "picture_pool": _STEM,
    "lstm": {"hidden": _Rule("integer", least=1)},
    "gru": {"hidden": _Rule("integer", least=1)},
    "max_pool": _POOL,
}
_OF_AXES: Final = ("axis", "axes", "begin", "end")


def refused(kind: str, attributes: Mapping[str, Attribute], axes: int) -> str:
    """Why a step of this kind can't have these attributes; empty where it can.

    axes  of what the step reads, or of the result of a `concat`.
    """
    needed, allowed = _NEEDED.get(kind, {}), _ALLOWED.get(kind, {})
    if missing := [name for name in needed if name not in attributes]:
        return f"has no attribute {missing[0]!r}"
    for name, value in attributes.items():
        rule = needed.get(name) or allowed.get(name)
        if rule is None:
            return f"has an attribute {name!r:.60}, known are {', '.join((*needed, *allowed)) or 'none'}"
        if not rule.allows(value):
            return f"has {name} {value!s:.60}, expected {rule}"
    if (problem := _beyond(kind, attributes, axes)) is not None:
        return f"has {problem} {attributes[problem]!s:.60}, which does not fit {axes} axes"
    scales = _row(attributes.get("scales", ()))
    if any(not 0 < scale <= LARGEST for scale in scales):
        return f"has scales {list(scales)}, expected positive ones"
    return ""


def _beyond(kind: str, attributes: Mapping[str, Attribute], axes: int) -> str | None:
    """The attribute that speaks of an axis that is not there."""
    for name in _OF_AXES:
        if name not in attributes:
            continue
        numbers = _row(attributes[name])
        if name in ("begin", "end"):
            fits = len(numbers) == axes
        elif kind == "layer_norm":  # how many axes
            fits = numbers[0] <= axes
        else:
            fits = all(axis < axes for axis in numbers) and len(set(numbers)) == len(numbers)
        if not fits:
            return name
    return None


def _row(value: Attribute) -> Sequence[Number]:
    if isinstance(value, tuple):
        return value
    return () if isinstance(value, str) else (value,)
