"""Equalisation and smoothing compute what they did; bias correction takes the mean error away; all three help."""

import numpy as np
import onnx_ir as ir
import pytest

from penstock.quantize import Calibration, Scheme, collect, quantize, ranges, watched
from penstock.quantize.bias import bias_errors, correct_bias
from penstock.quantize.equalization import equalize
from penstock.quantize.smoothing import smooth
from tests.quantize.networks import Builder, answers, cosine, pictures, residual, sequences, transformer


def uneven() -> ir.Model:
    """Three convolutions in a row, the second depthwise; channels of the first differ by up to 2^8."""
    b = Builder()
    first = b.relu(b.conv("x", (3, 16), "first"))
    middle = b.relu(b.conv(first, (16, 16), "middle", group=16))
    last = b.conv(middle, (16, 8), "last", kernel=1)
    model = b.model(["n", 3, 64, 64], last, ["n", 8, 64, 64])
    factors = np.exp2(np.random.default_rng(3).uniform(-4, 4, 16)).astype(np.float32)
    for name, shape, change in (
        ("first_w", (16, 1, 1, 1), factors),
        ("first_b", (16,), factors),
        ("middle_b", (16,), factors),
        ("last_w", (1, 16, 1, 1), 1 / factors),
    ):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * change.reshape(shape), name=name)
    return model


def int8(model: ir.Model, data: Calibration, scheme: Scheme | None = None) -> ir.Model:
    used = scheme or Scheme()
    return quantize(model, ranges(collect(model, data, watched(model, [used])), "minmax", used), scheme=used)


def assert_same(first: ir.Model, second: ir.Model, data: Calibration) -> None:
    for before, after in zip(answers(first, data), answers(second, data), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * float(np.abs(before).max()))


def test_equalized_convolutions_compute_what_they_did_and_quantize_better() -> None:
    model, data = uneven(), pictures(8)
    changed = equalize(model)
    assert changed is not None
    assert_same(model, changed, data)
    held_out = pictures(4, seed=5)
    expected = answers(model, held_out)
    before = 1 - cosine(expected, answers(int8(model, data), held_out))
    after = 1 - cosine(expected, answers(int8(changed, data), held_out))
    assert after < 0.3 * before


def test_equalizing_leaves_convolutions_alone_whose_answer_others_read() -> None:
    b = Builder()
    first = b.conv("x", (3, 8), "first")
    second = b.conv(first, (8, 8), "second")
    model = b.model(["n", 3, 64, 64], b.node("Add", [first, second], "y"), ["n", 8, 64, 64])
    assert equalize(model) is None


def test_equalizing_a_residual_network_keeps_what_it_computes() -> None:
    changed = equalize(residual())
    assert changed is not None
    assert_same(residual(), changed, pictures(3))


def test_smoothed_products_compute_what_they_did_and_quantize_better() -> None:
    model, data = transformer(), sequences(16)
    changed = smooth(model, data)
    assert changed is not None
    assert_same(model, changed, data)
    held_out = sequences(8, seed=5)
    expected = answers(model, held_out)
    before = 1 - cosine(expected, answers(int8(model, data), held_out))
    after = 1 - cosine(expected, answers(int8(changed, data), held_out))
    assert after < 0.6 * before


def test_smoothing_folds_into_the_normalization_ahead() -> None:
    changed = smooth(transformer(), sequences(4))
    assert changed is not None
    (up,) = (node for node in changed.graph if node.name == "up")
    assert up.inputs[0] is not None
    assert up.inputs[0].producer().op_type == "LayerNormalization"  # type: ignore[union-attr]


@pytest.mark.parametrize("scale_first", [True, False])
def test_smoothing_folds_into_a_normalization_written_as_mul_and_add(scale_first: bool) -> None:
    b = Builder()
    b.weight("scale", np.linspace(0.1, 30, 32, dtype=np.float32))
    b.weight("shift", np.ones(32, np.float32))
    product = b.node("Mul", ["scale", "x"] if scale_first else ["x", "scale"], "product")
    affine = b.node("Add", [product, "shift"], "affine")
    model = b.model(["n", 12, 32], b.linear(affine, (32, 8), "y"), ["n", 12, 8])
    changed = smooth(model, sequences(4))
    assert changed is not None
    assert changed.graph.num_nodes() == model.graph.num_nodes()
    assert_same(model, changed, sequences(4))


def test_smoothing_multiplies_where_others_read_the_same_tensor() -> None:
    b = Builder()
    b.weight("scale", np.linspace(0.1, 30, 32, dtype=np.float32))
    scaled = b.node("Mul", ["x", "scale"], "scaled")
    model = b.model(["n", 12, 32], b.node("Add", [b.linear(scaled, (32, 32), "line"), scaled], "y"), ["n", 12, 32])
    changed = smooth(model, sequences(4))
    assert changed is not None
    assert changed.graph.num_nodes() == model.graph.num_nodes() + 1
    assert_same(model, changed, sequences(4))


def test_smoothing_takes_convolutions_behind_float_activations_only() -> None:
    changed = smooth(residual(), pictures(4))
    assert changed is not None
    assert_same(residual(), changed, pictures(2))
    new = {node.name for node in changed.graph} - {node.name for node in residual().graph}
    (multiplied,) = (node for node in changed.graph if node.name in new)
    (last,) = (node for node in changed.graph if node.name == "last")
    assert last.inputs[0] is multiplied.outputs[0]


def test_corrected_biases_take_the_mean_error_of_every_channel_away() -> None:
    model, data = residual(), pictures(12)
    scheme = Scheme(weight_bits=7)
    spans = ranges(collect(model, data, watched(model, [scheme])), "percentile", scheme)
    errors = bias_errors(model, spans, data, scheme=scheme)
    assert set(errors) == {"stem", "first", "second", "depthwise", "pointwise", "side", "mixed", "last", "fc"}
    corrected = correct_bias(model, errors)
    assert corrected is not None
    # The error that is left, measured in the same way: the difference of quantized-with-correction and plain float.
    left = bias_errors(corrected, spans, data, scheme=scheme)
    (stem,) = (node for node in corrected.graph if node.name == "stem")
    assert stem.inputs[2] is not None
    assert stem.inputs[2].const_value is not None
    original = model.graph.initializers["stem_b"].const_value
    assert original is not None
    np.testing.assert_allclose(
        stem.inputs[2].const_value.numpy() - original.numpy() + left["stem"],
        0,
        atol=1e-3 * np.abs(errors["stem"]).max(),
    )
    assert np.abs(errors["stem"]).max() > 0


def test_bias_errors_are_the_mean_difference_of_one_layer_quantized_alone() -> None:
    b = Builder()
    model = b.model(["n", 3, 64, 64], b.conv("x", (3, 8), "only"), ["n", 8, 64, 64])
    data, scheme = pictures(6), Scheme(weight_bits=7)
    spans = ranges(collect(model, data, watched(model, [scheme])), "mse", scheme)
    made = quantize(model, spans, scheme=scheme)
    difference = np.concatenate(answers(made, data)) - np.concatenate(answers(model, data))
    errors = bias_errors(model, spans, data, scheme=scheme)
    np.testing.assert_allclose(errors["only"], difference.mean(axis=(0, 2, 3)), atol=1e-4)
    corrected = correct_bias(model, errors)
    assert corrected is not None
    again = quantize(corrected, spans, scheme=scheme)
    left = (np.concatenate(answers(again, data)) - np.concatenate(answers(model, data))).mean(axis=(0, 2, 3))
    assert np.abs(left).max() < 0.05 * np.abs(difference.mean(axis=(0, 2, 3))).max()
