"""Quantized graphs: what is in them, that they compute nearly what they did, and what both libraries make of them."""

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from penstock.errors import InvalidArgument
from penstock.graph import save, to_bytes
from penstock.quantize import SCHEMES, Calibration, Range, Scheme, collect, layers, quantize, ranges, suited, watched
from penstock.quantize.data import Array
from penstock.quantize.place import quantize_weight
from tests.quantize.networks import Builder, answers, cosine, pictures, residual, sequences, transformer

INPUTS, BOTH = SCHEMES["inputs"], SCHEMES["both"]
RESIDUAL_LAYERS = ("stem", "first", "second", "depthwise", "pointwise", "side", "mixed", "last", "fc")


def quantized(model: ir.Model, scheme: Scheme, keep: Collection[str] = ()) -> ir.Model:
    data = pictures(8) if len(model.graph.inputs[0].shape or ()) == 4 else sequences(8)
    statistics = collect(model, data, watched(model, [scheme]))
    return quantize(model, ranges(statistics, "minmax", scheme), keep=keep, scheme=scheme)


def reads(model: ir.Model, name: str, index: int = 0) -> ir.Node | None:
    """The node that makes an input of the named node."""
    (node,) = (node for node in model.graph if node.name == name)
    value = node.inputs[index]
    return value.producer() if value is not None else None


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_layers_are_named_in_the_order_of_the_graph() -> None:
    assert layers(residual()) == RESIDUAL_LAYERS


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("network", [residual, transformer])
def test_a_quantized_network_is_valid_and_close_to_its_float_self(
    network: Callable[[], ir.Model], scheme: Scheme
) -> None:
    model = network()
    held_out = pictures(6, seed=9) if network is residual else sequences(6, seed=9)
    made = quantized(model, scheme)
    onnx.checker.check_model(onnx.load_model_from_string(to_bytes(made)), full_check=True)
    assert cosine(answers(model, held_out), answers(made, held_out)) > (0.995 if network is residual else 0.98)


def test_every_layer_reads_eight_bits_on_both_sides() -> None:
    made = quantized(residual(), INPUTS)
    for name in RESIDUAL_LAYERS:
        activation, weight = reads(made, name, 0), reads(made, name, 1)
        assert activation is not None
        assert weight is not None
        assert (activation.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        narrow = activation.inputs[0]
        assert narrow is not None
        assert narrow.producer().op_type == "QuantizeLinear"  # type: ignore[union-attr]
        stored = weight.inputs[0]
        assert stored is not None
        assert stored.const_value is not None
        assert stored.const_value.dtype == ir.DataType.INT8


def test_weights_in_float_are_gone() -> None:
    before, after = residual(), quantized(residual(), INPUTS)
    assert len(to_bytes(after)) < 0.5 * len(to_bytes(before))
    assert not [name for name in after.graph.initializers if name.endswith("_w")]


def test_the_original_is_not_touched() -> None:
    model = residual()
    before = to_bytes(model)
    quantized(model, BOTH)
    assert to_bytes(model) == before


def test_nodes_keep_their_names_and_new_ones_stand_for_them() -> None:
    model = residual()
    made = quantized(model, BOTH)
    names = [node.name for node in made.graph]
    assert {node.name for node in model.graph} <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_kept_layers_read_float_on_both_sides(scheme: Scheme) -> None:
    made = quantized(residual(), scheme, keep=["pointwise", "fc"])
    for name in ("pointwise", "fc"):
        for index in (0, 1):
            producer = reads(made, name, index)
            assert producer is None or producer.op_type != "DequantizeLinear"
    assert reads(made, "side", 1) is not None


def test_everything_kept_computes_exactly_what_it_did() -> None:
    model, data = residual(), pictures(2)
    made = quantized(model, INPUTS, keep=RESIDUAL_LAYERS)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(operators(made))
    for before, after in zip(answers(model, data), answers(made, data), strict=True):
        np.testing.assert_array_equal(before, after)


def test_an_unknown_name_to_keep_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no node of the model is named nonsense"):
        quantize(residual(), {}, keep=["nonsense"])


def test_without_ranges_nothing_is_quantized() -> None:
    made = quantize(residual(), {})
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(operators(made))


def _scale_and_zero(model: ir.Model, name: str, index: int) -> tuple[float, int]:
    node = reads(model, name, index)
    assert node is not None
    assert node.op_type == "DequantizeLinear"
    scale, zero = (value.const_value.numpy() for value in node.inputs[1:3])  # type: ignore[union-attr]
    return float(scale), int(zero)


def test_concatenated_tensors_and_pooling_share_one_scale() -> None:
    made = quantized(residual(), INPUTS)
    assert _scale_and_zero(made, "joined", 0) == _scale_and_zero(made, "joined", 1)
    assert _scale_and_zero(made, "joined", 0) == _scale_and_zero(made, "mixed", 0)
    assert _scale_and_zero(made, "pool", 0) == _scale_and_zero(made, "first", 0)


def test_both_inputs_of_a_residual_add_are_quantized() -> None:
    made = quantized(residual(), INPUTS)
    assert {node.op_type for node in (reads(made, "sum", 0), reads(made, "sum", 1)) if node} == {"DequantizeLinear"}
    without = quantized(residual(), Scheme(residual_adds=False))
    second = reads(without, "sum", 0)
    assert second is not None
    assert second.op_type == "Conv"


def test_ranges_without_negative_numbers_use_all_256_steps_from_zero() -> None:
    made = quantized(residual(), INPUTS)
    assert _scale_and_zero(made, "pointwise", 0)[1] == 0
    assert 0 < _scale_and_zero(made, "stem", 0)[1] < 255
    assert _scale_and_zero(quantized(residual(), Scheme(activations="int8")), "stem", 0)[1] == 0


@pytest.mark.parametrize(
    ("scheme", "left_out"),
    [(Scheme(depthwise=False), "depthwise"), (Scheme(first_layer=False), "stem")],
    ids=["depthwise", "first layer"],
)
def test_layers_that_a_scheme_leaves_out_stay_float(scheme: Scheme, left_out: str) -> None:
    assert left_out not in layers(residual(), scheme)
    weight = reads(quantized(residual(), scheme), left_out, 1)
    assert weight is None


def test_gates_of_a_single_position_stay_float_unless_asked_for() -> None:
    b = Builder()
    wide = b.relu(b.conv("x", (3, 8), "wide"))
    gate = b.conv(b.node("GlobalAveragePool", [wide], "average"), (8, 8), "gate", kernel=1)
    product = b.node("Mul", [wide, b.node("Sigmoid", [gate], "open")], "product")
    model = b.model(["n", 3, 64, 64], b.conv(product, (8, 4), "last"), ["n", 4, 64, 64])
    assert layers(model) == ("wide", "last")
    assert layers(model, Scheme(gates=True)) == ("wide", "gate", "last")


def test_attention_is_quantized_when_asked_for() -> None:
    b = Builder()
    key = b.node("Transpose", ["x"], "key", perm=[0, 2, 1])
    model = b.model(["n", 12, 32], b.node("MatMul", ["x", key], "scores"), ["n", 12, 12])
    assert layers(model) == ()
    assert layers(model, Scheme(attention=True)) == ("scores",)
    made = quantized(model, Scheme(attention=True))
    assert operators(made)["DequantizeLinear"] == 2
    assert cosine(answers(model, sequences(2)), answers(made, sequences(2))) > 0.999


def test_a_graph_of_operator_set_11_is_raised_and_computes_the_same() -> None:
    made = quantized(residual(opset=11), INPUTS)
    assert made.opset_imports[""] >= 13
    held_out = pictures(4, seed=3)
    assert cosine(answers(residual(opset=11), held_out), answers(made, held_out)) > 0.995
    assert {node.name for node in residual().graph} <= {node.name for node in made.graph}


def test_an_initialiser_of_two_layers_is_quantized_for_each() -> None:
    b = Builder()
    first = b.linear("x", (32, 32), "first")
    second = b.node("MatMul", [b.node("Relu", [first], "active"), "first_w"], "second")
    model = b.model(["n", 12, 32], second, ["n", 12, 32])
    made = quantized(model, INPUTS)
    assert cosine(answers(model, sequences(2)), answers(made, sequences(2))) > 0.999


# ---- weights ----


@pytest.mark.parametrize(("bits", "top"), [(8, 127), (7, 63)])
@pytest.mark.parametrize("axis", [0, 1, 3])
def test_each_channel_of_a_weight_uses_the_whole_range(bits: int, top: int, axis: int) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 5, 3, 6)).astype(np.float32)
    weight *= np.logspace(-3, 3, weight.shape[axis], dtype=np.float32).reshape(
        [-1 if each == axis else 1 for each in range(4)]
    )
    narrow, scales = quantize_weight(weight, axis, bits=bits)
    others = tuple(each for each in range(4) if each != axis)
    np.testing.assert_array_equal(np.abs(narrow.astype(int)).max(axis=others), top)
    shape = [-1 if each == axis else 1 for each in range(4)]
    assert np.all(np.abs(narrow * scales.reshape(shape) - weight) <= scales.reshape(shape) * 0.5001)


def test_a_channel_of_zeros_has_a_usable_scale() -> None:
    weight = np.array([[0.0, 0.0], [1.27, -0.5]], np.float32)
    narrow, scales = quantize_weight(weight, 0)
    np.testing.assert_array_equal(narrow[0], 0)
    np.testing.assert_allclose(scales, 0.01, rtol=1e-6)


def test_a_large_bias_on_a_small_channel_fits_32_bits() -> None:
    b = Builder()
    weight = np.full((2, 3, 1, 1), 1e-9, np.float32)
    weight[1] = 0.5
    b.weight("w", weight)
    b.weight("bias", np.array([50.0, 1.0], np.float32))
    model = b.model(["n", 3, 8, 8], b.node("Conv", ["x", "w", "bias"], "y"), ["n", 2, 8, 8])
    data = pictures(2, size=8)
    statistics = collect(model, data, watched(model))
    made = quantize(model, ranges(statistics, "minmax", BOTH), scheme=BOTH)
    for before, after in zip(answers(model, data), answers(made, data), strict=True):
        np.testing.assert_allclose(after[:, 0], before[:, 0], rtol=1e-3)


@pytest.mark.parametrize(
    ("features", "bits"),
    [(("avx2", "avx512_vnni"), 8), (("avx2", "avx_vnni"), 8), (("avx2", "fma"), 7), (("asimddp",), 8)],
)
def test_weights_have_seven_bits_where_sums_would_saturate(features: tuple[str, ...], bits: int) -> None:
    assert suited(BOTH, features).weight_bits == bits
    assert suited(BOTH, features).name == BOTH.name


def test_a_range_must_hold_zero() -> None:
    with pytest.raises(ValueError, match="hold zero"):
        Range(0.5, 1.0)


# ---- what the libraries make of it ----


def _ort_operators(model: ir.Model, folder: Path) -> Counter[str]:
    import onnxruntime

    save(model, folder / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def _openvino_precisions(model: ir.Model, folder: Path) -> dict[str, set[str]]:
    """Kind of layer -> the precisions it is executed in."""
    import openvino

    save(model, folder / "model.onnx")
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(str(folder / "model.onnx")), "CPU", options)
    found: dict[str, set[str]] = {}
    for operation in compiled.get_runtime_model().get_ops():
        about = operation.get_rt_info()
        found.setdefault(str(about["layerType"].value), set()).add(str(about["runtimePrecision"].value))
    return found


def test_onnx_runtime_computes_every_layer_in_integers_when_outputs_are_quantized_too(tmp_path: Path) -> None:
    found = _ort_operators(quantized(residual(), BOTH), tmp_path)
    assert found["QLinearConv"] == 8
    assert found["QGemm"] == 1
    assert found["QLinearAdd"] == 1
    assert found["QLinearConcat"] == 1
    assert not {"Conv", "FusedConv", "Gemm"} & set(found)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_openvino_computes_every_layer_in_integers(tmp_path: Path, scheme: Scheme) -> None:
    found = _openvino_precisions(quantized(residual(), scheme), tmp_path)
    assert found["Convolution"] <= {"u8", "i8"}
    assert found["FullyConnected"] <= {"u8", "i8"}
    assert found["Pooling"] <= {"u8", "i8"}
    assert found["Concatenation"] <= {"u8", "i8"}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_matrix_products_are_integers_in_both_libraries(tmp_path: Path, scheme: Scheme) -> None:
    made = quantized(transformer(), scheme)
    found = _ort_operators(made, tmp_path)
    assert found["QLinearMatMul"] + found["MatMulIntegerToFloat"] == 2
    assert _openvino_precisions(made, tmp_path)["FullyConnected"] <= {"u8", "i8"}


def _openvino_answers(model: ir.Model, folder: Path, data: Calibration) -> list[Array]:
    import openvino

    save(model, folder / "model.onnx")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(str(folder / "model.onnx")), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    request = compiled.create_infer_request()
    return [np.array(next(iter(request.infer(dict(sample)).values()))) for sample in data]


@pytest.mark.parametrize("scheme", [*SCHEMES.values(), Scheme("stored biases", int32_bias=True)], ids=lambda s: s.name)
@pytest.mark.parametrize("bias", ["none", "zeros", "some"])
def test_openvino_computes_a_gated_convolution_as_onnx_runtime_does(tmp_path: Path, scheme: Scheme, bias: str) -> None:
    b = Builder()
    wide = b.conv("x", (3, 16), "wide", kernel=1)
    if bias == "none":
        b.nodes[-1].input.pop()
    gate = b.conv(b.node("GlobalAveragePool", [wide], "average"), (16, 16), "gate", kernel=1)
    product = b.node("Mul", [wide, b.node("Sigmoid", [gate], "open")], "y")
    model = b.model(["n", 3, 64, 64], product, ["n", 16, 64, 64])
    if bias == "zeros":
        model.graph.initializers["wide_b"].const_value = ir.tensor(np.zeros(16, np.float32), name="wide_b")
    data = pictures(4)
    made = quantized(model, scheme)
    expected = answers(model, data)
    assert cosine(expected, answers(made, data)) > 0.999
    assert cosine(expected, _openvino_answers(made, tmp_path, data)) > 0.999


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("network", [residual, transformer])
def test_both_libraries_compute_the_same(network: Callable[[], ir.Model], scheme: Scheme, tmp_path: Path) -> None:
    data = pictures(3, seed=4) if network is residual else sequences(3, seed=4)
    made = quantized(network(), scheme)
    assert cosine(answers(made, data), _openvino_answers(made, tmp_path, data)) > 0.999
