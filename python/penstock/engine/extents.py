"""Whether the shapes of steps that pick by number, rank, attend or run along time fit one another.

What is read by number must be there, whatever the number: on a GPU an index beyond it ends every context of a process.
Called by `engine.lowered` for graphs that are written and for those that are read.
"""

from collections.abc import Mapping, Sequence

from penstock.engine.kinds import Attribute
from penstock.engine.plan import Shape

_INTEGERS = ("INT32", "INT64")
_FLOATS = ("FP16", "BF16", "FP32")
_GATES = {"lstm": 4, "gru": 3}


def misfit(
    kind: str,
    attributes: Mapping[str, Attribute],
    operands: Mapping[str, tuple[Shape, str]],
    results: Sequence[tuple[Shape, str]],
) -> str:
    """What does not fit, after its step's name; empty where all does, and for all other kinds.

    operands  role -> shape and data type; results: the same of each, in order.
    """
    shapes = {role: shape for role, (shape, _) in operands.items()}
    if kind in ("gather", "gather_elements", "gather_nd"):
        datatype = operands["indices"][1]
        if datatype not in _INTEGERS:
            return f"its indices are {datatype}, expected integers"
        return _picked(kind, attributes, shapes["x"], shapes["indices"], results[0][0])
    if kind == "attention":
        return _attended(operands, results[0][0])
    if kind == "channel_attention":
        return _attended_by_channels(operands, results[0][0])
    if kind in _GATES:
        return _recurrent(_GATES[kind], attributes["hidden"], shapes, results)
    check = _CHECKS.get(kind)
    return check(attributes, shapes, results) if check is not None else ""


_Shapes = Mapping[str, Shape]
_Results = Sequence[tuple[Shape, str]]


def _summed(attributes: Mapping[str, Attribute], shapes: _Shapes, results: _Results) -> str:
    del attributes
    ((out, _),) = results
    return f"its result has shape {list(out)}, expected {list(shapes['x'])}" if out != shapes["x"] else ""


def _ranked(attributes: Mapping[str, Attribute], shapes: _Shapes, results: _Results) -> str:
    x, axis, ((out, _), (places, datatype)) = shapes["x"], attributes["axis"], results
    assert isinstance(axis, int)
    wanted = (*x[:axis], out[axis], *x[axis + 1 :]) if len(out) == len(x) else x
    fits = out == places == wanted and out[axis] <= x[axis] and datatype == "INT64"
    return "" if fits else f"it ranks {list(x)} and writes {list(out)} and {datatype}{list(places)}"


def _sampled(attributes: Mapping[str, Attribute], shapes: _Shapes, results: _Results) -> str:
    del attributes
    (batch, *_, channels), ((out, _),) = shapes["x"], results
    fits = len(out) == 4 and shapes["grid"] == (batch, *out[1:3], 2) and out[3] == channels and out[0] == batch
    return "" if fits else f"its grid has shape {list(shapes['grid'])} for a result of {list(out)}"


def _normed(attributes: Mapping[str, Attribute], shapes: _Shapes, results: _Results) -> str:
    (batch, *_, channels), groups = shapes["x"], attributes["groups"]
    assert isinstance(groups, int)
    if channels % groups:
        return f"{groups} groups do not share {channels} channels"
    wanted = ((batch, 1, 1, channels), "FP32")
    return "" if all(each == wanted for each in results) else f"its factors are {list(results)}, expected {wanted} each"


def _multiplied(attributes: Mapping[str, Attribute], shapes: _Shapes, results: _Results) -> str:
    a, b, ((out, _),) = shapes["a"], shapes["b"], results
    (*batch, rows, depth), (*others, b_depth, columns) = a, b
    if batch != others or depth != b_depth:
        return f"{list(a)} can't be multiplied with {list(b)}"
    made, order = (*batch, rows, columns), attributes.get("order", tuple(range(len(a))))
    assert isinstance(order, tuple)
    if sorted(order) != list(range(len(a))):
        return f"its order {list(order)} is none of {len(a)} axes"
    wanted = tuple(made[int(axis)] for axis in order)
    return "" if out == wanted else f"it writes {list(out)}, expected {list(wanted)}"


_CHECKS = {
    "cumsum": _summed,
    "top_k": _ranked,
    "grid_sample": _sampled,
    "norm_factors": _normed,
    "matmul": _multiplied,
}


def _attended(operands: Mapping[str, tuple[Shape, str]], out: Shape) -> str:
    (batch, heads, queries, size), (keys, width) = operands["q"][0], operands["v"][0][2:]
    wanted = {"k": (batch, heads, keys, size), "v": (batch, heads, keys, width), "scales": (heads,)}
    if found := _unlike(operands, wanted):
        return found
    if "mask" in operands:
        period, *rest = operands["mask"][0]
        repeats = period == batch or (period and batch % period == 0)
        if not repeats or rest != [heads, queries, keys]:
            return f"its mask {[period, *rest]} does not repeat to {[batch, heads, queries, keys]}"
    wanted_out = (batch, queries, heads, width)
    return "" if out == wanted_out else f"it writes {list(out)}, expected {list(wanted_out)}"


def _attended_by_channels(operands: Mapping[str, tuple[Shape, str]], out: Shape) -> str:
    (batch, heads, tokens, size), keys = operands["q"][0], operands["k"][0][3]
    wanted = {"k": (batch, heads, tokens, keys), "v": (batch, heads, tokens, keys), "scales": (heads,)}
    wanted_out = (batch, tokens, heads, size)
    written = "" if out == wanted_out else f"it writes {list(out)}, expected {list(wanted_out)}"
    return _unlike(operands, wanted) or written


def _unlike(operands: Mapping[str, tuple[Shape, str]], wanted: Mapping[str, Shape]) -> str:
    """Of an attention: the first operand whose shape is another, and factors that are no floats."""
    for role, shape in wanted.items():
        if role in operands and operands[role][0] != shape:
            return f"its {role} has shape {list(operands[role][0])}, expected {list(shape)}"
    if "scales" in operands and operands["scales"][1] not in _FLOATS:
        return f"its scales are {operands['scales'][1]}, expected floats"
    return ""


def _picked(kind: str, attributes: Mapping[str, Attribute], x: Shape, indices: Shape, out: Shape) -> str:
    if kind == "gather_nd":
        batch = attributes["batch"]
        assert isinstance(batch, int)
        axes = batch + indices[-1] if len(indices) > batch else 0
        if not batch < axes <= len(x) or x[:batch] != indices[:batch]:
            return f"places of shape {list(indices)} behind {batch} axes are none in {list(x)}"
        picked, wanted = x[batch:axes], (*indices[:-1], *x[axes:])
    else:
        axis = attributes["axis"]
        assert isinstance(axis, int)
        picked, wanted = x[axis : axis + 1], (*x[:axis], *indices, *x[axis + 1 :])
        if kind == "gather_elements":
            wanted = indices
            others = zip(indices, x, strict=False)
            if len(indices) != len(x) or any(size > most for at, (size, most) in enumerate(others) if at != axis):
                return f"indices of shape {list(indices)} do not fit {list(x)}"
    if 0 in picked and 0 not in indices:
        return f"it picks from axes of {list(picked)}"
    return "" if out == wanted else f"it writes {list(out)}, expected {list(wanted)}"


def _recurrent(gates: int, told: Attribute, shapes: _Shapes, results: _Results) -> str:
    (time, batch, inputs), (directions, rows, hidden) = shapes["x"], shapes["recurrence"]
    state = (directions, batch, hidden)
    wanted = {
        "weight": (directions, rows, inputs),
        "bias": (directions, rows),
        "recurrence_bias": (directions, rows),
        "hidden": state,
        "cell": state,
    }
    if told != hidden:
        return f"it has {hidden} hidden units, told are {told}"
    if directions not in (1, 2) or rows != gates * hidden:
        return f"its recurrence has shape {list(shapes['recurrence'])}, expected {gates} gates of 1 or 2 directions"
    if ("bias" in shapes) != ("recurrence_bias" in shapes):
        return "it has one of two biases"
    for role, shape in wanted.items():
        if role in shapes and shapes[role] != shape:
            return f"its {role} has shape {list(shapes[role])}, expected {list(shape)}"
    found = [shape for shape, _ in results]
    expected = [(time, batch, directions, hidden), *[state] * (len(found) - 1)]
    return "" if found == expected else f"it writes {[list(each) for each in found]}, expected {expected}"
