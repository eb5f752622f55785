"""Steps that pick by number, rank, attend or run along time: what does not fit is refused before it is read."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from penstock.engine.lowered import Input, LoweredGraph, Operand, Output, Step, Value, Weight, from_json, to_json
from penstock.errors import InvalidArgument

Stored = tuple[tuple[int, ...], str]
"""Shape and type."""

FLOAT, INT = "FP32", "INT64"
LSTM = {
    "weight": ((2, 12, 4), FLOAT),
    "recurrence": ((2, 12, 3), FLOAT),
    "bias": ((2, 12), FLOAT),
    "recurrence_bias": ((2, 12), FLOAT),
}
CONSTANT = ("weight", "recurrence", "bias", "recurrence_bias")
STATE = ((2, 6, 3), FLOAT)
GRID = {"mode": "bilinear", "padding": "zeros", "align": 0}
HEADS = ((6, 2, 5, 8), FLOAT)
TOP = {"axis": 1, "how": "max"}
SUM = {"axis": 1, "exclusive": 0, "reverse": 0}


def one(kind: str, attributes: Mapping[str, Any], operands: Mapping[str, Stored], results: list[Stored]) -> str:
    """The JSON of a graph of one such step."""
    outputs = {f"y{number}": each for number, each in enumerate(results)}
    weights = {name: Weight(*each) for name, each in operands.items() if name in CONSTANT}
    read = {name: each for name, each in operands.items() if name not in CONSTANT}
    values = {name: Value(*each) for name, each in (read | outputs).items()}
    step = Step("s", kind, tuple(Operand(role, role) for role in operands), tuple(outputs), dict(attributes))
    given = tuple(Input(role, *each) for role, each in read.items())
    written = tuple(Output(name, name, shape) for name, (shape, _) in outputs.items())
    return to_json(LoweredGraph(given, written, values, weights, (step,)))


RIGHT: dict[str, tuple[str, dict[str, Any], dict[str, Stored], list[Stored]]] = {
    "gather": ("gather", {"axis": 1}, {"x": ((5, 6, 7), FLOAT), "indices": ((2, 3), INT)}, [((5, 2, 3, 7), FLOAT)]),
    "elements": ("gather_elements", {"axis": 1}, {"x": ((5, 6), FLOAT), "indices": ((4, 9), INT)}, [((4, 9), FLOAT)]),
    "nd": ("gather_nd", {"batch": 1}, {"x": ((5, 6, 7, 8), FLOAT), "indices": ((5, 3, 2), INT)}, [((5, 3, 8), FLOAT)]),
    "cumsum": ("cumsum", SUM, {"x": ((5, 6), FLOAT)}, [((5, 6), FLOAT)]),
    "top_k": ("top_k", TOP, {"x": ((5, 6), FLOAT)}, [((5, 2), FLOAT), ((5, 2), INT)]),
    "norm": (
        "norm_factors", {"groups": 2, "epsilon": 1e-5}, {"x": ((5, 4, 3, 6), FLOAT)}, [((5, 1, 1, 6), FLOAT)] * 2,
    ),
    "grid": ("grid_sample", GRID, {"x": ((2, 9, 9, 3), FLOAT), "grid": ((2, 4, 5, 2), FLOAT)}, [((2, 4, 5, 3), FLOAT)]),
    "lstm": (
        "lstm", {"hidden": 3}, {"x": ((7, 6, 4), FLOAT), **LSTM, "hidden": STATE, "cell": STATE},
        [((7, 6, 2, 3), FLOAT), STATE, STATE],
    ),
    "gru": (
        "gru", {"hidden": 3}, {"x": ((7, 6, 4), FLOAT), "weight": ((1, 9, 4), FLOAT), "recurrence": ((1, 9, 3), FLOAT)},
        [((7, 6, 1, 3), FLOAT), ((1, 6, 3), FLOAT)],
    ),
    "attention": (
        "attention", {"scale": 0.5, "unit": 1e-12},
        {"q": HEADS, "k": HEADS, "v": HEADS, "mask": ((3, 2, 5, 5), FLOAT), "scales": ((2,), FLOAT)},
        [((6, 5, 2, 8), FLOAT)],
    ),
    "attention to other rows": (
        "attention", {"scale": 0.5}, {"q": HEADS, "k": ((6, 2, 7, 8), FLOAT), "v": ((6, 2, 7, 4), FLOAT)},
        [((6, 5, 2, 4), FLOAT)],
    ),
    "matmul": ("matmul", {}, {"a": ((3, 5, 4), FLOAT), "b": ((3, 4, 2), FLOAT)}, [((3, 5, 2), FLOAT)]),
    "matmul in order": (
        "matmul", {"order": (1, 0, 2)}, {"a": ((3, 5, 4), FLOAT), "b": ((3, 4, 2), FLOAT)}, [((5, 3, 2), FLOAT)],
    ),
    "attention of channels": (
        "channel_attention", {"scale": 0.5, "unit": 1e-12},
        {"q": HEADS, "k": ((6, 2, 5, 3), FLOAT), "v": ((6, 2, 5, 3), FLOAT), "scales": ((2,), FLOAT)},
        [((6, 5, 2, 8), FLOAT)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_what_fits_is_read_back(name: str) -> None:
    text = one(*RIGHT[name])
    assert to_json(from_json(text)) == text


WRONG: list[tuple[str, dict[str, Any], dict[str, Stored | None], dict[int, Stored], str]] = [
    # which of RIGHT; other attributes; other operands, None: left out; other results; what the message says
    ("matmul", {}, {"b": ((3, 5, 2), FLOAT)}, {}, r"\[3, 5, 4\] can't be multiplied with \[3, 5, 2\]"),
    ("matmul", {}, {"b": ((1, 4, 2), FLOAT)}, {}, "can't be multiplied"),
    ("matmul", {}, {}, {0: ((3, 5, 1), FLOAT)}, r"writes \[3, 5, 1\], expected \[3, 5, 2\]"),
    ("matmul in order", {"order": (0, 0, 2)}, {}, {}, r"order \[0, 0, 2\] is none of 3 axes"),
    ("matmul in order", {"order": (1, 0)}, {}, {}, "is none of 3 axes"),
    ("matmul in order", {"order": (1, 2, 0)}, {}, {}, "expected"),
    ("gather", {}, {"indices": ((2, 3), FLOAT)}, {}, "its indices are FP32, expected integers"),
    ("gather", {}, {"x": ((5, 0, 7), FLOAT)}, {}, r"picks from axes of \[0\]"),
    ("gather", {}, {}, {0: ((5, 2, 3, 8), FLOAT)}, r"writes \[5, 2, 3, 8\], expected \[5, 2, 3, 7\]"),
    ("gather", {}, {}, {0: ((5, 6, 7), FLOAT)}, "expected"),
    ("elements", {}, {"indices": ((6, 9), INT)}, {0: ((6, 9), FLOAT)}, "do not fit"),
    ("elements", {}, {"indices": ((4, 9, 1), INT)}, {0: ((4, 9, 1), FLOAT)}, "do not fit"),
    ("elements", {}, {}, {0: ((4, 8), FLOAT)}, "expected"),
    ("nd", {"batch": 3}, {}, {}, "are none in"),
    ("nd", {}, {"indices": ((4, 3, 2), INT)}, {0: ((4, 3, 8), FLOAT)}, "are none in"),
    ("nd", {}, {"indices": ((5, 3, 4), INT)}, {0: ((5, 3), FLOAT)}, "are none in"),
    ("nd", {}, {"indices": ((5, 3, 0), INT)}, {0: ((5, 3, 6, 7, 8), FLOAT)}, "are none in"),
    ("nd", {}, {"indices": ((), INT)}, {}, "are none in"),
    ("nd", {}, {"x": ((5, 6, 0, 8), FLOAT)}, {}, r"picks from axes of \[6, 0\]"),
    ("nd", {}, {}, {0: ((5, 3, 7), FLOAT)}, "expected"),
    ("cumsum", {}, {}, {0: ((6, 5), FLOAT)}, r"has shape \[6, 5\]"),
    ("top_k", {}, {}, {0: ((5, 7), FLOAT), 1: ((5, 7), INT)}, "ranks"),
    ("top_k", {}, {}, {1: ((5, 3), INT)}, "ranks"),
    ("top_k", {}, {}, {1: ((5, 2), FLOAT)}, "ranks"),
    ("top_k", {}, {}, {0: ((4, 2), FLOAT), 1: ((4, 2), INT)}, "ranks"),
    ("top_k", {}, {}, {0: ((5,), FLOAT), 1: ((5,), INT)}, "ranks"),
    ("norm", {"groups": 4}, {}, {}, "4 groups do not share 6 channels"),
    ("norm", {"groups": 0}, {}, {}, "groups"),
    ("norm", {}, {}, {0: ((5, 1, 6), FLOAT)}, "axes"),
    ("norm", {}, {}, {1: ((5, 1, 1, 3), FLOAT)}, "its factors"),
    ("norm", {}, {}, {1: ((5, 1, 1, 6), "FP16")}, "its factors"),
    ("grid", {}, {"grid": ((2, 4, 5, 3), FLOAT)}, {}, "its grid"),
    ("grid", {}, {"grid": ((1, 4, 5, 2), FLOAT)}, {}, "its grid"),
    ("grid", {}, {"grid": ((2, 4, 2), FLOAT)}, {}, "axes"),
    ("grid", {}, {}, {0: ((2, 4, 5, 4), FLOAT)}, "its grid"),
    ("lstm", {}, {"recurrence": ((2, 9, 3), FLOAT)}, {}, "expected 4 gates"),
    ("lstm", {}, {"recurrence": ((3, 12, 3), FLOAT)}, {}, "1 or 2 directions"),
    ("lstm", {}, {"weight": ((2, 12, 5), FLOAT)}, {}, "its weight"),
    ("lstm", {}, {"bias": ((2, 6), FLOAT)}, {}, "its bias"),
    ("lstm", {}, {"bias": None}, {}, "one of two biases"),
    ("lstm", {}, {"cell": ((2, 1, 3), FLOAT)}, {}, "its cell"),
    ("lstm", {}, {}, {0: ((7, 6, 6), FLOAT)}, "it writes"),
    ("lstm", {}, {}, {2: ((2, 3, 6), FLOAT)}, "it writes"),
    ("lstm", {"hidden": 4}, {}, {}, "hidden"),
    ("gru", {}, {"recurrence": ((1, 12, 3), FLOAT)}, {}, "expected 3 gates"),
    ("attention", {}, {"k": ((1, 2, 5, 8), FLOAT)}, {}, "its k has shape"),
    ("attention", {}, {"k": ((6, 2, 5, 7), FLOAT)}, {}, "its k has shape"),
    ("attention", {}, {"v": ((6, 1, 5, 8), FLOAT)}, {}, "its v has shape"),
    ("attention", {}, {"v": ((6, 2, 4, 8), FLOAT)}, {}, "its k has shape"),
    ("attention", {}, {"mask": ((4, 2, 5, 5), FLOAT)}, {}, r"its mask \[4, 2, 5, 5\] does not repeat"),
    ("attention", {}, {"mask": ((0, 2, 5, 5), FLOAT)}, {}, "does not repeat"),
    ("attention", {}, {"mask": ((12, 2, 5, 5), FLOAT)}, {}, "does not repeat"),
    ("attention", {}, {"mask": ((3, 1, 5, 5), FLOAT)}, {}, "does not repeat"),
    ("attention", {}, {"mask": ((3, 2, 5, 4), FLOAT)}, {}, "does not repeat"),
    ("attention", {}, {"mask": ((3, 5, 5), FLOAT)}, {}, "mask has shape .*, expected 4 axes"),
    ("attention", {}, {"scales": ((1,), FLOAT)}, {}, "its scales has shape"),
    ("attention", {}, {"scales": ((2, 1), FLOAT)}, {}, "scales has shape .*, expected 1 axes"),
    ("attention", {}, {"scales": ((2,), INT)}, {}, "its scales are INT64"),
    ("attention", {}, {}, {0: ((6, 2, 5, 8), FLOAT)}, "it writes"),
    ("attention", {"unit": "much"}, {}, {}, "unit"),
    ("attention of channels", {}, {"k": ((6, 2, 4, 3), FLOAT)}, {}, "its k has shape"),
    ("attention of channels", {}, {"k": ((6, 2, 5, 4), FLOAT)}, {}, "its v has shape"),
    ("attention of channels", {}, {"v": ((6, 1, 5, 3), FLOAT)}, {}, "its v has shape"),
    ("attention of channels", {}, {"scales": ((2,), INT)}, {}, "its scales are INT64"),
    ("attention of channels", {}, {"scales": ((3,), FLOAT)}, {}, "its scales has shape"),
    ("attention of channels", {}, {}, {0: ((6, 5, 2, 3), FLOAT)}, "it writes"),
    ("attention of channels", {"unit": "much"}, {}, {}, "unit"),
]


@pytest.mark.parametrize(("name", "attributes", "operands", "results", "message"), WRONG)
def test_what_does_not_fit_is_refused(
    name: str,
    attributes: dict[str, Any],
    operands: dict[str, Stored | None],
    results: dict[int, Stored],
    message: str,
) -> None:
    kind, given, roles, written = RIGHT[name]
    changed = {role: each for role, each in (roles | operands).items() if each is not None}
    text = one(kind, given | attributes, changed, [results.get(number, each) for number, each in enumerate(written)])
    with pytest.raises(InvalidArgument, match=message):
        from_json(text)


def test_of_two_that_play_one_role_the_first_counts() -> None:
    """It is what is executed; one that fits behind it hides nothing."""
    kind, attributes, operands, results = RIGHT["attention"]
    data = json.loads(one(kind, attributes, operands, results))
    (step,) = data["steps"]
    doubled = [*step["inputs"][:3], ["q", "mask"], *step["inputs"][3:]]
    with pytest.raises(InvalidArgument, match="does not repeat"):
        from_json(json.dumps(data | {"steps": [step | {"inputs": doubled}]}))
