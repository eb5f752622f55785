"""Tactics through the libraries: what is asked is done, artifacts answer as the original, profiles name nodes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import penstock as ps
from penstock.engine import fingerprint, runtimes
from penstock.engine.plan import WIDE_KEY, Tactic
from penstock.engine.runtimes.base import Compiled
from penstock.errors import ExecutionError, InvalidArgument, ModelLoadError, NotFound, Unavailable, Unsupported
from tests import onnx_models

LIBRARIES = ("onnxruntime", "openvino")
SHAPE = {"x": (2, 3, 48, 160)}


def x_of(rows: int, width: int = 160) -> Any:
    return np.random.default_rng(0).random((rows, 3, 48, width), np.float32) * 2 - 1


def first(runtime: Compiled, x: Any) -> Any:
    return next(iter(runtime(x=x).values()))


def reopened(runtime: Compiled, tactic: Tactic) -> Compiled:
    names = tuple(spec.name for spec in runtime.outputs)
    return runtimes.reopen(memoryview(runtime.export()), tactic, output_names=names, name="m.engine")


def convolution(path: Path, *, quantized: bool) -> Path:
    """Relu(Conv(x)) of 8 channels, plain or with Q/DQ around the convolution's inputs."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((8, 8, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1])]
    held = [numpy_helper.from_array(weights, "w")]
    if quantized:
        scale = np.float32(np.abs(weights).max() / 127)
        held = [
            numpy_helper.from_array(np.round(weights / scale).astype(np.int8), "wq"),
            numpy_helper.from_array(scale, "ws"),
            numpy_helper.from_array(np.int8(0), "wz"),
            numpy_helper.from_array(np.float32(4 / 255), "xs"),
            numpy_helper.from_array(np.uint8(128), "xz"),
        ]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "q"),
            helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], "dq"),
            helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], "wdq"),
            helper.make_node("Conv", ["xd", "wd"], ["c"], "conv", pads=[1, 1, 1, 1]),
        ]
    nodes.append(helper.make_node("Relu", ["c"], ["r"], "relu"))
    if quantized:
        held += [numpy_helper.from_array(np.float32(0.1), "rs"), numpy_helper.from_array(np.uint8(0), "rz")]
        nodes.append(helper.make_node("QuantizeLinear", ["r", "rs", "rz"], ["rq"], "rq"))
        nodes.append(helper.make_node("DequantizeLinear", ["rq", "rs", "rz"], ["y"], "rdq"))
    else:
        nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 16, 16])],
        held,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("library", LIBRARIES)
def test_compiling_in_fp32_answers_exactly_as_loading(library: str, recogniser: Path) -> None:
    x = x_of(2)
    expected = first(ps.load(recogniser, runtime=library), x)  # type: ignore[arg-type]
    np.testing.assert_array_equal(first(runtimes.compile(recogniser, Tactic(library, "fp32")), x), expected)


@pytest.mark.parametrize(
    "tactic",
    [
        Tactic("onnxruntime", "fp32"),
        Tactic("onnxruntime", "fp32", options=(("graph_optimization_level", "basic"),)),
        Tactic("openvino", "fp32"),
        Tactic("openvino", "fp32", shapes="static"),
        Tactic("openvino", "fp32", threads=1),
    ],
    ids=lambda tactic: tactic.name,
)
def test_an_artifact_answers_exactly_as_what_it_was_exported_from(tactic: Tactic, recogniser: Path) -> None:
    shapes = SHAPE if tactic.shapes == "static" else None
    made = runtimes.compile(recogniser, tactic, shapes=shapes)
    again = reopened(made, tactic)
    assert [spec.name for spec in again.outputs] == [spec.name for spec in made.outputs]
    assert again.inputs == made.inputs
    np.testing.assert_array_equal(first(again, x_of(2)), first(made, x_of(2)))
    # And once more from the artifact itself.
    np.testing.assert_array_equal(first(reopened(again, tactic), x_of(2)), first(made, x_of(2)))


def test_outputs_keep_their_names_through_an_artifact(tmp_path: Path) -> None:
    model = onnx_models.add_and_subtract(tmp_path / "m.onnx")
    one = np.ones((1, 3), np.float32)
    for library in LIBRARIES:
        made = runtimes.compile(model, Tactic(library, "fp32"))
        answers = reopened(made, Tactic(library, "fp32"))(a=one, b=one)
        assert {name: float(array[0, 0]) for name, array in answers.items()} == {"sum": 2.0, "difference": 0.0}


def test_a_static_program_takes_its_shape_and_no_other(recogniser: Path) -> None:
    made = runtimes.compile(recogniser, Tactic("openvino", "fp32", shapes="static"), shapes=SHAPE)
    assert made.inputs[0].shape == SHAPE["x"]
    assert first(made, x_of(2)).shape[0] == 2
    with pytest.raises(InvalidArgument, match=r"has shape \[2, 3, 48, 160\], got \[1, 3, 48, 160\]"):
        made(x=x_of(1))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_narrow_precision_is_computed_in_or_refused(precision: str, recogniser: Path) -> None:
    """OpenVINO takes BF16 for FP16 in silence where there is no FP16: the answer must never be called FP16 then."""
    tactic = Tactic("openvino", precision)
    if precision not in runtimes.features()["openvino"]:
        with pytest.raises(Unsupported, match=r"this processor has no .* arithmetic and OpenVINO would take"):
            runtimes.compile(recogniser, tactic)
        return
    made = runtimes.compile(recogniser, tactic)
    for each in (made, reopened(made, tactic)):
        used = {region.precision for region in each.regions({"x": x_of(1)}, 1)}
        assert precision in used
        assert used <= {precision, "fp32", ""}
        y = first(each, x_of(1))
        assert y.dtype == np.float32
        exact = first(runtimes.compile(recogniser, Tactic("openvino", "fp32")), x_of(1))
        assert 0 < np.abs(y - exact).max() < 0.2


def residual_block(path: Path, wide: Sequence[str]) -> Path:
    """Relu(third(second(first(x))) + first(x)) of 8 channels; the nodes named are marked to stay in FP32."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w2", "b2"], ["b"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "w3", "b3"], ["c"], "third", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "a"], ["d"], "sum"),
        helper.make_node("Relu", ["d"], ["y"], "relu"),
    ]
    for node in nodes:
        if node.name in wide:
            node.metadata_props.add(key=WIDE_KEY, value="fp32")
    held = [
        numpy_helper.from_array(random.standard_normal((8, 8, 3, 3)).astype(np.float32), f"w{n}") for n in (1, 2, 3)
    ]
    held += [numpy_helper.from_array(random.standard_normal(8).astype(np.float32), f"b{n}") for n in (1, 2, 3)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8, 16, 16]) for name in "xy"]
    graph = helper.make_graph(nodes, "block", ends[:1], ends[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.skipif("bf16" not in runtimes.features()["openvino"], reason="this processor computes nothing in BF16")
@pytest.mark.parametrize("shapes", [None, {"x": (2, 8, 16, 16)}], ids=["dynamic", "static"])
@pytest.mark.parametrize(
    "wide", [(), ("first",), ("second",), ("third", "sum", "relu"), ("first", "second", "third", "sum", "relu")]
)
def test_marked_convolutions_stay_in_fp32_and_no_others(
    wide: tuple[str, ...], shapes: dict[str, Any] | None, tmp_path: Path
) -> None:
    path = residual_block(tmp_path / "block.onnx", wide)
    tactic = Tactic("openvino", "bf16", shapes="static" if shapes else "dynamic")
    made = runtimes.compile(path, tactic, shapes=shapes)
    x = np.random.default_rng(1).standard_normal((2, 8, 16, 16)).astype(np.float32)
    for each in (made, reopened(made, tactic)):
        found = [region for region in each.regions({"x": x}, 1) if region.kind == "convolution"]
        assert len(found) == 3
        names = [region.nodes[0] if region.nodes else region.name for region in found]
        precisions = {name.removesuffix("/WithoutBiases"): r.precision for name, r in zip(names, found, strict=True)}
        assert {name for name, used in precisions.items() if used == "fp32"} == set(wide) & set(precisions)
        assert [spec.name for spec in each.outputs] == ["y"]
    exact = first(runtimes.compile(path, Tactic("openvino", "fp32")), x)
    error = np.abs(first(made, x) - exact).max() / np.abs(exact).max()
    assert (error < 1e-5) == (len(wide) == 5)
    assert error < 0.05


def test_what_libraries_can_do_agrees_with_the_processor() -> None:
    found = runtimes.features()
    assert set(found) == set(LIBRARIES)
    assert all(name in found[library] for library in LIBRARIES for name in ("int8", "fp32"))
    features = fingerprint.here().features
    assert ("bf16" in found["openvino"]) == any("bf16" in name for name in features)
    assert ("fp16" in found["openvino"]) == any("fp16" in name or name == "fphp" for name in features)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_quantized_form_is_computed_in_integers(library: str, tmp_path: Path) -> None:
    made = runtimes.compile(convolution(tmp_path / "q.onnx", quantized=True), Tactic(library, "int8"))
    x = np.random.default_rng(1).random((2, 8, 16, 16), np.float32) * 2 - 1
    regions = made.regions({"x": x}, 2)
    assert any(region.precision == "int8" and "conv" in region.kind for region in regions), regions
    plain = runtimes.compile(convolution(tmp_path / "p.onnx", quantized=False), Tactic(library, "fp32"))
    assert 0 < np.abs(made(x=x)["y"] - plain(x=x)["y"]).max() < 0.5
    assert not any(region.precision == "int8" for region in plain.regions({"x": x}, 1))


@pytest.mark.parametrize("library", LIBRARIES)
def test_regions_name_the_nodes_that_were_fused(library: str, tmp_path: Path) -> None:
    made = runtimes.compile(convolution(tmp_path / "m.onnx", quantized=False), Tactic(library, "fp32"))
    x = np.ones((1, 8, 16, 16), np.float32)
    regions = made.regions({"x": x}, 3)
    (fused,) = [region for region in regions if "conv" in region.nodes]
    assert set(fused.nodes) == {"conv", "relu"}
    assert fused.precision == "fp32"
    assert fused.microseconds > 0
    assert fused.kind.startswith("conv")
    assert fused.tactic


@pytest.mark.parametrize("library", LIBRARIES)
def test_regions_of_the_recogniser_cover_its_nodes_once(library: str, recogniser: Path) -> None:
    made = runtimes.compile(recogniser, Tactic(library, "fp32"))
    regions = made.regions({"x": x_of(1)}, 2)
    named = [node for region in regions for node in region.nodes]
    known = {node.name for node in onnx.load(str(recogniser)).graph.node}
    assert len(set(named) & known) > 150
    convolutions = [name for name in set(named) & known if name.startswith("Conv.")]
    assert len(convolutions) > 40
    assert all(named.count(name) == 1 for name in convolutions)
    assert sum(region.microseconds for region in regions) > 1000
    # Asking changed nothing.
    np.testing.assert_allclose(first(made, x_of(1)).sum(-1), 1, atol=1e-3)


@pytest.mark.parametrize("library", LIBRARIES)
def test_views_answer_as_execute_and_executed_arrays_stay(library: str, tmp_path: Path) -> None:
    instance = runtimes.compile(onnx_models.scale(tmp_path / "m.onnx", 2), Tactic(library, "fp32")).instance()
    one, two = np.ones((1, 4), np.float32), np.full((1, 4), 2, np.float32)
    kept = instance.execute({"x": one})["y"]
    np.testing.assert_array_equal(instance.views({"x": two})["y"], two * 2)
    np.testing.assert_array_equal(kept, one * 2)


@pytest.mark.parametrize(
    ("tactic", "error", "message"),
    [
        (
            Tactic("tensorrt", "fp32"),
            InvalidArgument,
            "unknown runtime 'tensorrt', expected one of onnx",
        ),
        (Tactic("onnxruntime", "fp16"), Unsupported, "ONNX Runtime on a CPU computes in fp32, or in int8"),
        (Tactic("onnxruntime", "bf16"), Unsupported, "got bf16"),
        (Tactic("openvino", "fp8"), Unsupported, "fp8 is not among them"),
        (Tactic("openvino", "fp32", shapes="static"), InvalidArgument, "is static; say for which shapes"),
        (
            Tactic("onnxruntime", "fp32", options=(("graph_optimization_level", "most"),)),
            InvalidArgument,
            "graph_optimization_level=most: expected one of disabled, basic, extended, all",
        ),
        (Tactic("onnxruntime", "fp32", options=(("threads", "3"),)), InvalidArgument, "option 'threads' is none of"),
        (Tactic("openvino", "fp32", options=(("NO_SUCH_OPTION", "3"),)), ModelLoadError, "NO_SUCH_OPTION"),
        (
            Tactic("openvino", "int8", options=(("INFERENCE_PRECISION_HINT", "f16"),)),
            None if "fp16" in runtimes.features()["openvino"] else Unsupported,
            "no f16 arithmetic",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Tactic) else "",
)
def test_tactics_that_can_not_be_done_are_refused(
    tactic: Tactic, error: type[Exception] | None, message: str, tmp_path: Path
) -> None:
    model = onnx_models.scale(tmp_path / "m.onnx", 2)
    if error is None:
        runtimes.compile(model, tactic)
        return
    with pytest.raises(error, match=message):
        runtimes.compile(model, tactic)


def test_session_entries_reach_onnx_runtime(tmp_path: Path) -> None:
    model = onnx_models.scale(tmp_path / "m.onnx", 2)
    good = Tactic("onnxruntime", "fp32", options=(("session.disable_prepacking", "1"),))
    np.testing.assert_array_equal(runtimes.compile(model, good)(x=np.ones((1, 4), np.float32))["y"], [[2, 2, 2, 2]])


def test_a_missing_file_is_named_without_its_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"^model file 'absent\.onnx' does not exist$"):
        runtimes.compile(tmp_path / "absent.onnx", Tactic("openvino", "fp32"))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("data", [b"", b"garbage" * 1000])
def test_an_artifact_that_is_none_is_refused(library: str, data: bytes) -> None:
    tactic = Tactic(library, "fp32")
    with pytest.raises(ModelLoadError, match=r"m\.engine can't be loaded by"):
        runtimes.reopen(memoryview(data), tactic, output_names=("y",), name="m.engine")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_closed_runtime_exports_nothing(library: str, tmp_path: Path) -> None:
    made = runtimes.compile(onnx_models.scale(tmp_path / "m.onnx", 2), Tactic(library, "fp32"))
    made.close()
    x = np.ones((1, 4), np.float32)
    for call in (made.export, lambda: made.regions({"x": x}, 1), lambda: made(x=x)):
        with pytest.raises(Unavailable, match="closed"):
            call()


def test_an_export_whose_model_is_gone_fails_in_one_clean_sentence(tmp_path: Path) -> None:
    model = onnx_models.scale(tmp_path / "m.onnx", 2)
    made = runtimes.compile(model, Tactic("onnxruntime", "fp32"))
    model.unlink()
    with pytest.raises(ExecutionError, match=r"^ONNX Runtime failed: Load model from m\.onnx failed") as error:
        made.export()
    assert str(tmp_path) not in str(error.value)
