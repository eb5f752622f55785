"""Weights that are rounded together: what layers read, the bound that the method has, and what comes of it."""

import itertools
import time
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from penstock.graph import optimize
from penstock.quantize import SCHEMES, Calibration, in_bfloat16, keeping, pick, polish, recipes
from penstock.quantize.layers import plan
from penstock.quantize.moments import moments, reading
from penstock.quantize.observe import runner
from penstock.quantize.place import quantize_weight
from penstock.quantize.rounding import nearest_plane, rounded
from penstock.quantize.scheme import Scheme
from tests.quantize.networks import Array, Builder, answers, pictures, residual, sequences, transformer

FLOAT32 = np.float32


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "dilation", "group"),
    [
        (3, 1, (1, 1, 1, 1), 1, 1),
        (1, 1, (0, 0, 0, 0), 1, 1),
        (3, 2, (0, 1, 2, 1), 1, 1),
        (3, 1, (2, 2, 2, 2), 2, 1),
        (5, 3, (2, 0, 0, 1), 1, 2),
        (3, 1, (1, 1, 1, 1), 1, 6),
    ],
)
def test_moments_of_a_convolution_say_how_large_its_answers_are(
    kernel: int, stride: int, pads: tuple[int, ...], dilation: int, group: int
) -> None:
    """The mean of (w · x)² over all positions is w' H w, and the convolution itself knows it."""
    b = Builder()
    b.weight("w", b.rng.standard_normal((12, 6 // group, kernel, kernel)).astype(FLOAT32))
    b.node(
        "Conv", ["x", "w"], "y", strides=[stride] * 2, pads=list(pads), dilations=[dilation] * 2, group=group,
        kernel_shape=[kernel] * 2,
    )  # fmt: skip
    model = b.model(["n", 6, 13, 11], "y", ["n", 12, "h", "w"])
    data = Calibration(({"x": b.rng.standard_normal((2, 6, 13, 11)).astype(FLOAT32)},))
    (layer,) = plan(model, Scheme()).layers
    read = reading(layer)
    assert read is not None
    found = moments(model, [read], data.samples)["y"].astype(np.float64)
    assert found.shape == (group, read.inputs, read.inputs)
    filters = read.weight.reshape(group, -1, read.inputs)
    powers = np.einsum("goi,gij,goj->go", filters, found, filters).reshape(-1)
    (answer,) = answers(model, data)
    np.testing.assert_allclose(powers, (answer.astype(np.float64) ** 2).mean(axis=(0, 2, 3)), rtol=1e-4)


def test_moments_of_a_product_say_how_large_its_answers_are() -> None:
    model, data = transformer(), sequences(3)
    readings = [each for layer in plan(model, Scheme()).layers if (each := reading(layer)) is not None]
    assert [each.name for each in readings] == ["up", "down"]
    found = moments(model, readings, data.samples)
    with runner(model, ["up", "down"]) as run:
        seen = [run(sample) for sample in data]
    for each in readings:
        powers = np.einsum("io,ij,jo->o", each.weight, found[each.name][0], each.weight, dtype=np.float64)
        wanted = np.mean([sample[each.name].astype(np.float64) ** 2 for sample in seen], axis=(0, 1, 2))
        np.testing.assert_allclose(powers, wanted, rtol=1e-4)


def test_only_two_dimensional_convolutions_are_read() -> None:
    b = Builder()
    b.weight("w", b.rng.standard_normal((4, 3, 5)).astype(FLOAT32))
    model = b.model(["n", 3, 16], b.node("Conv", ["x", "w"], "y"), ["n", 4, 12])
    (layer,) = plan(model, Scheme()).layers
    assert reading(layer) is None
    assert rounded(model, {}, Calibration(({"x": np.ones((1, 3, 16), FLOAT32)},)), scheme=Scheme()) == {}


def energy(moment: Array, error: Array) -> Array:
    """e' H e of each column."""
    return np.einsum("io,ij,jo->o", error, moment, error, dtype=np.float64)


def error(expected: list[Array], found: list[Array]) -> float:
    """Of the power of all answers, what the differences have."""
    differences = sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in zip(expected, found, strict=True))
    return differences / sum(float((a.astype(np.float64) ** 2).sum()) for a in expected)


def correlated(inputs: int, seed: int) -> Array:
    """Second moments of inputs that vary together, as neighbouring pixels do, around a mean that is not zero."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((4 * inputs, inputs)) @ random.standard_normal((inputs, inputs)) + 1
    return (rows.T @ rows / len(rows)).astype(FLOAT32)


@pytest.mark.parametrize("inputs", [1, 2, 7, 128, 129, 300])
def test_errors_stay_within_the_bound_of_the_nearest_plane(inputs: int) -> None:
    """Each square is at most half of its own step: e' H e <= sum r_ii² / 4. The nearest whole numbers err more."""
    moment = correlated(inputs, inputs)
    weights = np.random.default_rng(1).laplace(0, 8, (inputs, 5)).astype(FLOAT32)
    values = nearest_plane(weights[None], moment[None], 0.0, 10_000)
    assert values is not None
    np.testing.assert_array_equal(values, np.rint(values))
    damped = moment + 0.01 * np.eye(inputs) * np.diag(moment).mean()
    order = np.argsort(np.diag(moment))
    steps = np.diag(np.linalg.cholesky(damped[np.ix_(order, order)].astype(np.float64)))
    found = energy(damped, values[0] - weights)
    assert (found <= 1.001 * (steps**2).sum() / 4).all()
    if inputs > 100:
        assert (found < 0.6 * energy(damped, np.rint(weights) - weights)).all()


def test_two_inputs_that_are_always_alike_share_their_rounding() -> None:
    """0.4 + 0.4 of the same: to the nearest it is 0 and the answer is gone; together it is 1."""
    values = nearest_plane(np.full((1, 2, 1), 0.4, FLOAT32), np.ones((1, 2, 2), FLOAT32), 0.0, 127)
    assert values is not None
    assert sorted(values.ravel()) == [0, 1]


def test_few_weights_come_close_to_the_best_of_all() -> None:
    random = np.random.default_rng(5)
    for seed in range(20):
        moment = correlated(4, seed)
        weights = random.uniform(-5, 5, (4, 1)).astype(FLOAT32)
        values = nearest_plane(weights[None], moment[None], 0.0, 127)
        assert values is not None
        damped = moment + 0.01 * np.eye(4) * np.diag(moment).mean()
        around = itertools.product(*(np.floor(each) + np.arange(-1, 3) for each in weights[:, 0]))
        best = min(float(energy(damped, np.array(tried)[:, None] - weights)[0]) for tried in around)
        # Babai (1986): within 2^(inputs / 2) of the nearest, in length.
        assert best <= float(energy(damped, values[0] - weights)[0]) * 1.001 <= 16 * best


def test_values_stay_within_their_type() -> None:
    weights = np.array([[[126.6], [-127.0], [126.9]]], FLOAT32)
    values = nearest_plane(weights, correlated(3, 0)[None], 0.0, 127)
    assert values is not None
    assert np.abs(values).max() <= 127


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e6])
def test_moments_without_sense_are_not_used(bad: float) -> None:
    moment = correlated(3, 0)
    moment[1, 1] = bad
    assert nearest_plane(np.ones((1, 3, 1), FLOAT32), moment[None], 0.0, 127) is None


def test_inputs_that_are_always_zero_leave_weights_at_the_nearest() -> None:
    weights = np.array([[[0.4], [0.4]], [[0.4], [0.4]]], FLOAT32)
    seen = np.stack([np.ones((2, 2), FLOAT32), np.zeros((2, 2), FLOAT32)])
    values = nearest_plane(weights, seen, 0.0, 127)
    assert values is not None
    assert [each.sum() for each in values] == [1, 0]


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_form_that_is_rounded_together_answers_more_alike(scheme: Scheme, bits: int) -> None:
    model, (data, held_out) = optimize(residual()).model, pictures(40).split()
    used = replace(scheme, weight_bits=bits)
    plain = next(recipes(model, data, schemes=[used], methods=["minmax"]))
    made = {each.name: each for each in polish(plain, data)}
    assert list(made) == [f"{plain.name}{suffix}" for suffix in ("-corrected", "-rounded", "-rounded-corrected")]
    better = made[f"{plain.name}-rounded"]
    assert set(better.weights) == {layer.node.name for layer in plan(model, used).layers}
    for name, (values, scales) in better.weights.items():
        (layer,) = (each for each in plan(model, used).layers if each.node.name == name)
        assert layer.weight is not None
        assert layer.weight.const_value is not None
        nearest = quantize_weight(layer.weight.const_value.numpy(), layer.axis, bits=bits)
        np.testing.assert_array_equal(scales, nearest.scales)
        assert np.abs(values).max() <= 2 ** (bits - 1) - 1
        assert values.shape == nearest.values.shape
        assert (values != nearest.values).any()
    expected = answers(model, held_out)
    before, after = (error(expected, answers(each.model, held_out)) for each in (plain, better))
    assert after < (0.5 if bits == 7 else 0.8) * before
    # With some layers kept, the others keep their rounding.
    names = list(better.weights)
    some = names[::2]
    assert error(expected, answers(better.keeping(some).model, held_out)) < error(
        expected, answers(plain.keeping(some).model, held_out)
    )
    for exact, kept in zip(expected, answers(better.keeping(names).model, held_out), strict=True):
        np.testing.assert_array_equal(exact, kept)


def test_after_the_deadline_nothing_is_rounded() -> None:
    model, data = optimize(residual()).model, pictures(4)
    plain = next(recipes(model, data, methods=["minmax"]))
    assert rounded(model, plain.ranges, data, scheme=plain.scheme, deadline=time.monotonic() - 1) == {}
    assert [each.name for each in polish(plain, data, deadline=time.monotonic() - 1)] == ["int8-minmax-corrected"]


def test_recipes_of_one_model_share_their_rounded_weights() -> None:
    model, data = optimize(residual()).model, pictures(4)
    schemes = [SCHEMES["inputs"], SCHEMES["both"], replace(SCHEMES["both"], name="seven", weight_bits=7)]
    first, *others = recipes(model, data, schemes=schemes, methods=["minmax"])
    asked: list[int] = []
    made = {
        each.name: each
        for each in polish(first, data, others=others, progress=lambda _what, done, _all: asked.append(done))
    }
    names = [
        f"int8-minmax{scheme}-rounded{suffix}" for scheme in ("", "-both", "-seven") for suffix in ("", "-corrected")
    ]
    assert list(made) == ["int8-minmax-corrected", *names]
    assert made["int8-minmax-both-rounded"].weights is made["int8-minmax-rounded"].weights
    assert made["int8-minmax-both-rounded"].scheme == SCHEMES["both"]
    assert asked.count(1) == 2  # seven bits are rounded apart


def test_the_same_data_give_the_same_weights() -> None:
    model, data = optimize(residual()).model, pictures(4)
    plain = next(recipes(model, data, methods=["minmax"]))
    first, second = (rounded(model, plain.ranges, data, scheme=plain.scheme) for _ in range(2))
    assert first.keys() == second.keys()
    for name, each in first.items():
        np.testing.assert_array_equal(each.values, second[name].values)


def test_the_rounded_form_is_picked_where_it_is_closest() -> None:
    model, (data, held_out) = optimize(residual()).model, pictures(40).split()
    names = [value.name or "" for value in model.graph.outputs]
    plain = next(recipes(model, data, methods=["minmax"]))
    with runner(model, names) as run:
        picked = pick([plain, *polish(plain, data)], held_out, run)
    assert "-rounded" in picked.recipe.name


def bfloat16(array: Array) -> Array:
    return array.astype(ml_dtypes.bfloat16).astype(FLOAT32)


def test_weights_rounded_to_bf16_together_answer_more_alike_than_the_nearest() -> None:
    model, (data, held_out) = optimize(residual()).model, pictures(40).split()
    known = {node.name or "": node.inputs[1] for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")}
    arrays = {name: value.const_value.numpy() for name, value in known.items() if value and value.const_value}
    found = in_bfloat16(model, data)
    assert found.keys() == arrays.keys()  # those of gates and single channels among them
    for name, weight in found.items():
        assert weight.shape == arrays[name].shape
        np.testing.assert_array_equal(weight, bfloat16(weight))
        assert (weight != bfloat16(arrays[name])).any()
    expected = answers(model, held_out)
    nearest = {name: bfloat16(array) for name, array in arrays.items()}
    before, after = (error(expected, answers(keeping(model, (), each), held_out)) for each in (nearest, found))
    assert 0 < after < 0.5 * before
    again = in_bfloat16(model, data)
    assert all((again[name] == weight).all() for name, weight in found.items())


def test_nothing_is_rounded_or_learned_after_the_deadline() -> None:
    model, data = optimize(residual()).model, pictures(4)
    late = time.monotonic() - 1
    assert in_bfloat16(model, data, deadline=late) == {}
    readings = [each for layer in plan(model, Scheme()).layers if (each := reading(layer)) is not None]
    assert moments(model, readings, data.samples, late) == {}


def test_half_of_the_samples_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = optimize(residual()).model, pictures(8)
    readings = [each for layer in plan(model, Scheme()).layers if (each := reading(layer)) is not None]
    for seen, known in ((3, False), (4, True), (8, True)):
        clock = iter([0.0] * seen + [2.0] * 8)
        monkeypatch.setattr("penstock.quantize.moments.time.monotonic", lambda clock=clock: next(clock))
        found = moments(model, readings, data.samples, 1.0)
        monkeypatch.undo()
        assert (found.keys() == {each.name for each in readings}) is known
        if seen == 4:
            half = moments(model, readings, data.samples[:4])
            np.testing.assert_allclose(found["fc"], half["fc"], rtol=1e-5, atol=1e-6)


def test_moments_do_not_depend_on_how_many_rows_are_multiplied_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = optimize(residual()).model, pictures(5)
    readings = [each for layer in plan(model, Scheme()).layers if (each := reading(layer)) is not None]
    together = moments(model, readings, data.samples)
    monkeypatch.setattr("penstock.quantize.moments._LEAST_ROWS", 1)
    monkeypatch.setattr("penstock.quantize.moments._ROWS_AT_ONCE", 0.0)
    apart = moments(model, readings, data.samples)
    for name, each in together.items():
        np.testing.assert_allclose(apart[name], each, rtol=1e-5, atol=1e-6)
