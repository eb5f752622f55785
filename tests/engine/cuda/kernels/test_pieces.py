"""Concatenations of what is computed, as one step: the lowering against ONNX Runtime, kernels against the reference."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from penstock.engine.assembling import join_pieces
from penstock.engine.cuda.choices import Choice
from penstock.engine.cuda.executor import Executor
from penstock.engine.lowered import LoweredGraph, Step, from_json, to_json
from penstock.engine.pieces import Piece, read, written
from penstock.errors import InvalidArgument
from penstock.graph.lowering import Weights
from tests.engine.cuda.reference import lowered
from tests.graph.small import Arrays, graph, normal, run

pytestmark = pytest.mark.torch

SIZES = ((6, 5), (3, 2))


def head(number: int, high: int, wide: int) -> str:
    """A scale of a detector: seven numbers for each of three anchors of a pixel."""
    n = number
    return f"""
        c{n} = Conv (x{n}, w{n})
        r{n} = Reshape (c{n}, apart{n})
        p{n} = Transpose <perm=[0,1,3,4,2]> (r{n})
        s{n} = Sigmoid (p{n})
        a{n}, b{n}, rest{n} = Split <axis=4> (s{n}, parts)
        a1{n} = Mul (a{n}, two) a2{n} = Add (a1{n}, grid{n}) a3{n} = Mul (a2{n}, stride)
        b1{n} = Mul (b{n}, two) b2{n} = Mul (b1{n}, b1{n}) b3{n} = Mul (b2{n}, anchors{n})
        one{n} = Concat <axis=4> (a3{n}, b3{n}, rest{n})
        y{n} = Reshape (one{n}, rows{n})"""


def detector(batch: int) -> tuple[LoweredGraph, Weights, dict[str, np.ndarray], dict[str, np.ndarray]]:
    text = "".join(head(number, *size) for number, size in enumerate(SIZES))
    given = ", ".join(f"float[{batch},8,{high},{wide}] x{n}" for n, (high, wide) in enumerate(SIZES))
    rows = sum(3 * high * wide for high, wide in SIZES)
    network = f"({given}) => (float[{batch},{rows},7] y) {{{text}\n y = Concat <axis=1> (y0, y1) }}"
    weights: dict[str, np.ndarray] = {
        "parts": np.array([2, 2, 3]), "two": np.float32([2]).reshape(()), "stride": np.float32([8]).reshape(())
    }  # fmt: skip
    for n, (high, wide) in enumerate(SIZES):
        weights |= {
            f"w{n}": normal(21, 8, 1, 1, seed=n),
            f"apart{n}": np.array([batch, 3, 7, high, wide]),
            f"rows{n}": np.array([batch, 3 * high * wide, 7]),
            f"grid{n}": normal(1, 1, high, wide, 2, seed=3 + n),
            f"anchors{n}": normal(1, 3, 1, 1, 2, seed=5 + n),
        }
    model = graph(network, weights)
    x = {f"x{n}": normal(batch, 8, high, wide, seed=7 + n) for n, (high, wide) in enumerate(SIZES)}
    steps, tensors = lowered(model, x)
    return steps, tensors, x, run(model, x)


def pieces(found: LoweredGraph) -> Step:
    (step,) = (each for each in found.steps if each.kind == "pieces")
    return step


@pytest.mark.parametrize("batch", [1, 2])
def test_a_detectors_answers_are_put_together_by_one_step(batch: int) -> None:
    steps, weights, x, expected = detector(batch)
    assert {each.kind for each in steps.steps} <= {"conv", "copy", "pieces"}
    assert len(read(pieces(steps).attributes["pieces"], expected["y"].size)) == 6
    inputs = {name: torch.from_numpy(each) for name, each in x.items()}
    answer = Executor(from_json(to_json(steps)), weights).run(inputs)["y"]
    np.testing.assert_allclose(answer.numpy(), expected["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [512, 1024])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_kernel_writes_every_piece(batch: int, block: int, device: str) -> None:
    steps, weights, x, expected = detector(batch)
    choices = {pieces(steps).name: Choice("triton", (block,))}
    executor = Executor(steps, weights, device, "fp16", choices=choices)
    inputs = {name: torch.from_numpy(each).to(device) for name, each in x.items()}
    answer = executor.run(inputs)["y"].cpu().numpy()
    assert np.linalg.norm(answer - expected["y"]) < 2e-3 * np.linalg.norm(expected["y"])


def test_what_others_read_stays_a_step() -> None:
    text = """(float[1,4,3,3] x) => (float[1,8,3,3] y, float[1,4,3,3] s) {
        c = Conv (x, w) s = Sigmoid (c) t = Exp (x) y = Concat <axis=1> (s, t) }"""
    model = graph(text, {"w": normal(4, 4, 1, 1)})
    x = {"x": normal(1, 4, 3, 3)}
    steps, weights = lowered(model, x)
    assert sum(len(each.program) for each in steps.steps if each.kind == "pieces") == 2  # a copy, and exp
    found = Executor(steps, weights).run({"x": torch.from_numpy(x["x"])})
    for name, expected in run(model, x).items():
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-5, atol=1e-5)


def dense_block(layers: int, more: str = "", outputs: str = "") -> tuple[LoweredGraph, Weights, Arrays, Arrays]:
    """What came before is normed again for every layer; a norm of the last concatenation comes out."""
    text, names = "c0 = Conv (x, w)", ["c0"]
    weights = {"w": normal(8, 4, 1, 1, seed=1)}
    for n in range(1, layers + 1):
        wide = 8 + 5 * (n - 1)
        joined = names[0] if n == 1 else f"j{n}"
        text += "" if n == 1 else f" j{n} = Concat <axis=1> ({', '.join(names)})"
        text += f" m{n} = Mul ({joined}, f{n}) a{n} = Add (m{n}, o{n}) r{n} = Relu (a{n})"
        text += f" c{n} = Conv <pads=[1,1,1,1]> (r{n}, w{n})"
        weights |= {
            f"f{n}": normal(wide, 1, 1, seed=2 * n),
            f"o{n}": normal(wide, 1, 1, seed=2 * n + 1),
            f"w{n}": normal(5, wide, 3, 3, seed=n) / 4,
        }
        names.append(f"c{n}")
    wide = 8 + 5 * layers
    last = f"j = Concat <axis=1> ({', '.join(names)}) m = Mul (j, g) y = Relu (m) {more}"
    text = f"(float[2,4,6,5] x) => (float[2,{wide},6,5] y{outputs}) {{ {text} {last} }}"
    model, x = graph(text, weights | {"g": normal(wide, 1, 1, seed=99)}), {"x": normal(2, 4, 6, 5)}
    steps, tensors = lowered(model, x)
    return steps, tensors, x, run(model, x)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_computed_of_a_concatenation_is_computed_of_its_parts(precision: str, device: str) -> None:
    steps, weights, x, expected = dense_block(3)
    assert [step.kind for step in steps.steps] == [
        *("copy", "conv", "pointwise", "conv", "pieces", "conv", "pieces", "conv", "pieces", "copy")
    ]
    assert [len(step.inputs) for step in steps.steps if step.kind == "pieces"] == [6, 9, 8]
    inputs = {name: torch.from_numpy(each).to(device) for name, each in x.items()}
    preferred = ("triton",) if precision == "fp16" else ()
    executor = Executor(from_json(to_json(steps)), weights, device, precision, preferred)
    answer = executor.run(inputs)["y"].cpu().numpy()
    tolerance = 2e-3 if precision == "fp16" else 1e-5
    assert np.linalg.norm(answer - expected["y"]) < tolerance * np.linalg.norm(expected["y"])


@pytest.mark.parametrize(
    ("more", "outputs"),
    [("z = Sigmoid (j)", ", float[2,18,6,5] z"), ("", ", float[2,18,6,5] j")],
    ids=["another reader", "an output"],
)
def test_a_concatenation_that_others_read_is_written(more: str, outputs: str) -> None:
    steps, weights, x, expected = dense_block(2, more, outputs)
    assert [step.kind for step in steps.steps].count("concat") == 1
    found = Executor(steps, weights).run({name: torch.from_numpy(each) for name, each in x.items()})
    for name, right in expected.items():
        np.testing.assert_allclose(found[name].numpy(), right, rtol=1e-4, atol=1e-4)


def test_more_parts_than_a_kernel_takes_are_put_together_first() -> None:
    steps, *_ = dense_block(66)
    kinds = [step.kind for step in steps.steps]
    assert kinds.count("concat") == 5  # of 63 to 66 maps besides two rows of numbers, and of 67 besides one
    assert max(len({each.value for each in step.inputs}) for step in steps.steps if step.kind == "pieces") == 64


def test_concatenations_of_what_is_there_are_left_alone() -> None:
    text = "(float[1,4,3,3] x) => (float[1,8,3,3] y) { c = Conv (x, w) d = Conv (x, w) y = Concat <axis=1> (c, d) }"
    steps, _ = lowered(graph(text, {"w": normal(4, 4, 1, 1)}), {"x": normal(1, 4, 3, 3)})
    assert join_pieces(steps) == steps
    assert "pieces" not in {each.kind for each in steps.steps}


@pytest.mark.parametrize(
    "changed",
    [
        lambda found: found[:-1],
        lambda found: (*found[:-1], found[-1] + 1),
        lambda found: (found[0] + 1, *found[1:]),
        lambda found: (*found, *found),
        lambda found: (*found[:2], -1, *found[3:]),
        lambda found: (),
    ],
)
def test_pieces_that_lie_elsewhere_are_refused(changed: object) -> None:
    steps, _, _, _ = detector(1)
    step = pieces(steps)
    assert callable(changed)
    broken = replace(step, attributes={"pieces": changed(step.attributes["pieces"])})
    data = to_json(replace(steps, steps=tuple(broken if each is step else each for each in steps.steps)))
    with pytest.raises(InvalidArgument):
        from_json(data)


def test_a_piece_that_computes_with_anothers_numbers_is_refused() -> None:
    steps, _, _, _ = detector(1)
    step = pieces(steps)
    lines = list(step.program)
    lines[-1] = replace(lines[-1], arguments=("t0",))
    broken = replace(step, program=tuple(lines))
    data = to_json(replace(steps, steps=tuple(broken if each is step else each for each in steps.steps)))
    with pytest.raises(InvalidArgument, match="not of the piece"):
        from_json(data)


def test_pieces_read_back_are_the_same() -> None:
    found = (Piece(1, (2, 3), (8, 1), 0), Piece(2, (2, 5), (8, 1), 3))
    assert read(written(found), 16) == found
