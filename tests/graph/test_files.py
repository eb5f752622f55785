"""What `load` takes and refuses, and that what `save` writes comes back."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from penstock import limits
from penstock.errors import ModelLoadError, NotFound, Unsupported
from penstock.graph import files, load, optimize, save, signature, to_bytes
from tests import onnx_models
from tests.graph.small import graph, normal, operators, run


def test_a_file_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    model = graph("(float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) }", {"w": normal(4, 3)})
    save(model, tmp_path / "m.onnx")
    again = load(tmp_path / "m.onnx")
    assert to_bytes(again) == to_bytes(model)
    inputs = {"x": normal(2, 4)}
    assert np.array_equal(run(model, inputs)["y"], run((tmp_path / "m.onnx").read_bytes(), inputs)["y"])


def test_nodes_get_names_of_their_own(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="kept"),
        helper.make_node("Relu", ["a"], ["b"], name="twice"),
        helper.make_node("Relu", ["b"], ["c"], name="twice"),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"], name="Relu_3"),
    ]
    value = helper.make_tensor_value_info
    made = helper.make_graph(nodes, "g", [value("x", 1, [2])], [value("y", 1, [2])])
    onnx_models.save(helper.make_model(made), tmp_path / "m.onnx")
    names = [node.name for node in load(tmp_path / "m.onnx").graph]
    assert names[0] == "kept"
    assert names[4] == "Relu_3"
    assert len(set(names)) == 5
    assert all(names)


def test_nodes_out_of_order_are_sorted(tmp_path: Path) -> None:
    proto = ir.to_proto(graph("(float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }"))
    nodes = list(reversed(proto.graph.node))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx_models.save(proto, tmp_path / "m.onnx")
    assert [node.op_type for node in load(tmp_path / "m.onnx").graph] == ["Relu", "Neg"]


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    proto = ir.to_proto(graph("(float[2] x) => (float[2] y) { a = Add(x, x) y = Neg(a) }"))
    proto.graph.node[0].input[0] = "y"
    onnx_models.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelLoadError, match="its own output"):
        load(tmp_path / "m.onnx")


def test_initialisers_among_the_inputs_are_constants(tmp_path: Path) -> None:
    proto = ir.to_proto(graph("(float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) }", {"w": normal(4, 3)}))
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    proto.ir_version = 3
    onnx_models.save(proto, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    assert [spec.name for spec in signature(model)[0]] == ["x"]
    assert run(model, {"x": normal(2, 4)})["y"].shape == (2, 3)


def test_tensors_beside_the_model_are_read_and_saved_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.bin").write_bytes(np.arange(8, dtype=np.float32).tobytes())
    onnx_models.external(tmp_path / "m.onnx", {"location": "w.bin", "offset": "16", "length": "16"})
    model = load(tmp_path / "m.onnx")
    (weight,) = model.graph.initializers.values()
    assert isinstance(weight.const_value, ir.ExternalTensor)
    assert weight.const_value.numpy().tolist() == [4, 5, 6, 7]
    monkeypatch.chdir(tmp_path.parent)  # the tensor's place does not depend on where one is
    save(model, tmp_path.parent / "inside.onnx")
    answer = run((tmp_path.parent / "inside.onnx").read_bytes(), {"x": np.zeros((1, 4), np.float32)})
    assert answer["y"].tolist() == [[4, 5, 6, 7]]


@pytest.mark.parametrize("nested", [False, True])
def test_a_model_whose_tensors_all_lie_beside_it_is_optimized_from_anywhere(
    nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's exporter writes them, the shapes of Reshapes too."""
    inner = "{ r = Reshape(x, s) z = Identity(r) a = MatMul(z, w) y = Mul(a, g) }"
    weights = {"s": np.array([-1, 2, 8]), "w": normal(8, 5), "g": normal(5, seed=1)}
    inside = graph(f"(float[N,16] x) => (float[?,?,?] y) {inner}", weights)
    proto = ir.to_proto(inside)
    if nested:
        outer = "(float[N,16] x) => (float[?,?,?] y) { c = Constant<value_int=1>() t = Cast<to=9>(c) y = Identity(x) }"
        proto = ir.to_proto(graph(outer))
        body = ir.to_proto(inside).graph
        del body.input[:]
        del proto.graph.node[-1]
        proto.graph.node.append(helper.make_node("If", ["t"], ["y"], then_branch=body, else_branch=body))
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    found = optimize(load(folder / "m.onnx"))
    if not nested:
        assert operators(found.model) == operators(optimize(inside).model) == {"Reshape": 1, "MatMul": 1}
    x = {"x": normal(3, 16, seed=2)}
    assert np.allclose(run(found.model, x)["y"], run(inside, x)["y"], atol=1e-6)


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "../w.bin"},
        {"location": "link.bin"},
        {"location": "hard.bin"},
        {"location": "missing.bin"},
        {"location": "w.bin", "length": "-4"},
        {"location": "w.bin", "offset": "9999999999999"},
        {"location": "w.bin", "length": "4"},
        {"location": "w.bin", "offset": "60"},
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_external_data_that_is_unsafe_or_wrong_is_refused(
    tmp_path: Path, entries: dict[str, str], nested: bool
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(64))
    (tmp_path / "m" / "w.bin").write_bytes(bytes(64))
    (tmp_path / "m" / "link.bin").symlink_to(tmp_path / "w.bin")
    (tmp_path / "m" / "hard.bin").hardlink_to(tmp_path / "w.bin")
    path = onnx_models.external(tmp_path / "m" / "model.onnx", entries, nested)
    with pytest.raises(ModelLoadError) as raised:
        load(path)
    assert str(tmp_path) not in str(raised.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"no model", b"\x08\x0a", b"\xff" * 64, b"\x08\x0a\x3a\x02\x0a\x00"],
    ids=["empty", "text", "cut", "ones", "blank"],
)
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ModelLoadError, match=r"m\.onnx"):
        load(tmp_path / "m.onnx")


def test_every_cut_of_a_model_is_refused_in_plain_words_or_loaded(tmp_path: Path) -> None:
    data = to_bytes(graph("(float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) }", {"w": normal(4, 3)}))
    refused: list[str] = []
    for end in range(len(data)):
        (tmp_path / "m.onnx").write_bytes(data[:end])
        try:
            load(tmp_path / "m.onnx")
        except ModelLoadError as error:
            refused.append(str(error))
    assert len(refused) > 0.9 * len(data)
    assert all("m.onnx" in message and str(tmp_path) not in message for message in refused)


@pytest.mark.parametrize("dims", [[1 << 40], [1 << 31, 1 << 31], [-1], [3]])
def test_a_tensor_that_claims_another_size_is_refused(tmp_path: Path, dims: list[int]) -> None:
    proto = ir.to_proto(graph("(float[4] x) => (float[4] y) { y = Add(x, w) }", {"w": normal(4)}))
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    onnx_models.save(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelLoadError, match="'w'"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize(("bound", "words"), [("ONNX_NODES", "nodes"), ("ONNX_INITIALISERS", "initialisers")])
def test_counts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, words: str) -> None:
    save(
        graph("(float[4] x) => (float[4] y) { a = Add(x, w) y = Add(a, v) }", {"w": normal(4), "v": normal(4)}),
        tmp_path / "m.onnx",
    )
    load(tmp_path / "m.onnx")
    monkeypatch.setattr(limits, bound, 1)
    with pytest.raises(ModelLoadError, match=f"2 {words}"):
        load(tmp_path / "m.onnx")


def test_functions_that_multiply_are_bounded() -> None:
    from penstock.graph import optimize

    calls = "".join(
        f'<domain: "own", opset_import: ["" : 17, "own" : 1]> f{level} (p) => (q) '
        + "{ "
        + " ".join(f"t{i} = own.f{level - 1}({'p' if i == 0 else f't{i - 1}'})" for i in range(9))
        + f" q = own.f{level - 1}(t8) }}"
        for level in range(1, 8)
    )
    text = f"""<ir_version: 10, opset_import: ["" : 17, "own" : 1]> g (float[N] x) => (float[N] y) {{ y = own.f7(x) }}
        <domain: "own", opset_import: ["" : 17]> f0 (p) => (q) {{ q = Neg(p) }} {calls}"""
    with pytest.raises(ModelLoadError, match="unfold to 10000000 nodes"):
        optimize(ir.from_proto(onnx.parser.parse_model(text)))


def test_a_large_model_is_saved_with_its_tensors_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph("(float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", {"w": normal(64, 64)})
    monkeypatch.setattr(files, "_PROTOBUF_BYTES", files._ROOM_BYTES + 1000)
    with pytest.raises(Unsupported, match="does not fit"):
        to_bytes(model)
    save(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 1000
    assert (tmp_path / "m.onnx.data").stat().st_size >= 64 * 64 * 4
    monkeypatch.undo()
    assert to_bytes(load(tmp_path / "m.onnx")) == to_bytes(model)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"m\.onnx"):
        load(tmp_path / "m.onnx")
    with pytest.raises(NotFound, match=r"m\.onnx"):
        save(graph("(float[1] x) => (float[1] y) { y = Relu(x) }"), tmp_path / "no" / "m.onnx")


def test_a_signature_has_names_types_shapes_and_axes() -> None:
    model = graph("(float16[N,3,?] x, string[2] s) => (float16[N,3,?] y, string[2] t) { y = Abs(x) t = Identity(s) }")
    inputs, outputs = signature(model)
    assert [str(spec) for spec in inputs] == ["x FP16[-1, 3, -1]", "s BYTES[2]"]
    assert inputs[0].axes == ("N", None, None)
    assert [spec.name for spec in outputs] == ["y", "t"]


def test_a_signature_without_a_tensor_is_refused() -> None:
    model = graph("(seq(float[2]) s) => (float[2] y) { i = Constant<value_int=0>() y = SequenceAt(s, i) }")
    with pytest.raises(ModelLoadError, match="'s' has type"):
        signature(model)
