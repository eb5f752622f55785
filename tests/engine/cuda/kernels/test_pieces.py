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
from tests.graph.small import graph, normal, run

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
