"""The runtime `cuda` on torch's CPU device: everything of it but CUDA graphs and our own kernels' machine code."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

import torch

from penstock import graph
from penstock.engine.cuda import form
from penstock.engine.cuda.runtime import CudaRuntime
from penstock.engine.cuda.tuning import Tuning
from penstock.engine.plan import Tactic
from penstock.engine.runtimes.base import Shelf
from penstock.errors import InvalidArgument, Unavailable, Unsupported
from penstock.graph.lowering import lower
from tests.quantize import networks

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")
BATCHES = (1, 4)
# Norm-relative; FP16 keeps 11 bits and BF16 eight, over some ten layers.
TOLERANCES = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 3e-2}


def tactic(precision: str = "fp32", steps: str = "plain") -> Tactic:
    return Tactic("cuda", precision, "lowered", "static", options=(("steps", steps),))


def shapes(batch: int) -> dict[str, tuple[int, ...]]:
    return {"x": (batch, 3, 64, 64)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("form")
    graph.save(networks.residual(), found / "m.onnx")
    model = graph.load(found / "m.onnx")
    made = [(shapes(batch), *lower(graph.optimize(model, shapes=shapes(batch)).model)) for batch in BATCHES]
    form.write(found / "lowered.safetensors", made)
    Tuning.prepare(found / "lowered.safetensors", 1.0)
    return found


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return folder / "lowered.safetensors"


def compiled(path: Path, which: Tactic, batch: int | None) -> CudaRuntime:
    at = shapes(batch) if batch is not None else None
    return CudaRuntime.compile(path, which, shapes=at, instances=1, threads=None, device=CPU)


def expected(folder: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "m.onnx"), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def picture(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 64, 64)).astype(np.float32)


def error(found: np.ndarray, right: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - right) / np.linalg.norm(right))


@pytest.mark.parametrize("steps", ["plain", "tuned"])
@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_a_form_answers_as_its_model(precision: str, steps: str, path: Path, folder: Path) -> None:
    runtime = compiled(path, tactic(precision, steps), 4)
    x = picture(4)
    assert error(runtime(x=x)["fc"], expected(folder, x)) < TOLERANCES[precision]
    assert [str(spec) for spec in (*runtime.inputs, *runtime.outputs)] == ["x FP32[4, 3, 64, 64]", "fc FP32[4, 10]"]


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 9])
def test_with_every_bucket_any_number_of_rows_is_answered(rows: int, path: Path, folder: Path) -> None:
    runtime = compiled(path, tactic(), None)
    assert runtime.inputs[0].shape == (-1, 3, 64, 64)
    x = picture(rows, seed=rows)
    found = runtime(x=x)["fc"]
    assert found.shape == (rows, 10)
    assert error(found, expected(folder, x)) < TOLERANCES["fp32"]


@pytest.mark.parametrize("precision", list(TOLERANCES))
def test_what_was_exported_is_reopened_with_the_weights_of_all_programs_once(precision: str, path: Path) -> None:
    which = tactic(precision, "tuned")
    read = []

    def member(name: str) -> bytes:
        read.append(name)
        return (path.parent / f"{name}.safetensors").read_bytes()

    shelf = Shelf(member)
    for batch in BATCHES:
        runtime = compiled(path, which, batch)
        again = CudaRuntime.reopen(
            memoryview(runtime.export()), which, ("fc",), "m.engine", instances=1, threads=None, shelf=shelf, device=CPU
        )
        np.testing.assert_array_equal(again(x=picture(batch))["fc"], runtime(x=picture(batch))["fc"])
    assert read == ["lowered"]
    (model,) = shelf.kept.values()
    pointers = {tensor.data_ptr() for tensor in model._placed.values()}
    assert len(pointers) == len(model._placed) == len({name for name, _ in model._placed})


def test_choices_are_found_once_and_taken_over_by_precisions_of_the_same_width(path: Path, folder: Path) -> None:
    beside = folder / "lowered.tuning.json"
    Tuning.prepare(path, 1.0)
    compiled(path, tactic("fp16", "tuned"), 1)
    first = beside.read_text()
    assert len(json.loads(first)["choices"]) == 1
    compiled(path, tactic("bf16", "tuned"), 1)
    assert beside.read_text() == first
    compiled(path, tactic("fp32", "tuned"), 1)
    assert len(json.loads(beside.read_text())["choices"]) == 2


def test_regions_name_every_step_with_its_time_and_what_executes_it(path: Path) -> None:
    runtime = compiled(path, tactic("fp32", "tuned"), 4)
    regions = runtime.regions({"x": picture(4)})
    assert len(regions) == len({region.name for region in regions}) > 5
    assert all(region.microseconds > 0 and region.tactic and region.nodes for region in regions)
    assert {region.precision for region in regions} == {"fp32"}
    assert "conv+bias+relu" in {region.kind for region in regions}


def test_regions_say_what_they_compute_and_move(path: Path) -> None:
    """The classifier at 4 rows: 32 numbers to 10 of each, in FP32."""
    runtime = compiled(path, tactic("fp32"), 4)
    (last,) = [region for region in runtime.regions({"x": picture(4)}) if region.kind.startswith("gemm")]
    inputs = last.flops / (2 * 4 * 10)
    assert inputs == int(inputs) > 1
    assert last.bytes == 4 * (4 * inputs + 10 * inputs + 10 + 4 * 10)
    narrow = next(r for r in compiled(path, tactic("fp16"), 4).regions({"x": picture(4)}) if r.name == last.name)
    assert narrow.flops == last.flops
    assert last.bytes / 2 <= narrow.bytes < last.bytes
    ceilings = runtime.ceilings()
    assert ceilings == runtime.ceilings()
    assert min(ceilings.flops_per_second, ceilings.bytes_per_second, ceilings.launch_us) > 0


def test_memory_is_weights_once_and_a_context_of_each_bucket(path: Path) -> None:
    one, four, both = (compiled(path, tactic("fp32"), batch).device_memory() for batch in (1, 4, None))
    assert one.weights == four.weights == both.weights > 30_000
    assert compiled(path, tactic("fp16"), 1).device_memory().weights == one.weights / 2
    assert one.context < four.context < 5 * one.context
    assert both.context == one.context + four.context
    assert both.total == both.weights + both.program + both.context


@pytest.mark.parametrize(
    ("which", "batch", "words"),
    [
        (tactic(steps="guessed"), 4, "expected steps=plain or steps=tuned"),
        (tactic(), 3, "are not prepared, expected one of"),
        (tactic("int4"), 4, "has no int4"),
    ],
)
def test_what_it_can_not_do_is_refused(which: Tactic, batch: int, words: str, path: Path) -> None:
    with pytest.raises((InvalidArgument, Unsupported), match=words):
        compiled(path, which, batch)


def test_a_closed_program_says_so(path: Path) -> None:
    runtime = compiled(path, tactic(), 1)
    runtime.close()
    with pytest.raises(Unavailable, match="load it again"):
        runtime(x=picture(1))


# ---- types ----


def product(kind: int, size: int = 64) -> bytes:
    """y = x @ w - relu(x) in one type of float."""
    helper = onnx.helper
    w = np.random.default_rng(3).standard_normal((size, size)).astype(helper.tensor_dtype_to_np_dtype(kind))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Sub", ["p", "r"], ["y"]),
    ]
    infos = [helper.make_tensor_value_info(name, kind, [2, size]) for name in ("x", "y")]
    made = helper.make_graph(nodes, "product", infos[:1], infos[1:], [onnx.numpy_helper.from_array(w, "w")])
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(made, opset_imports=opset, ir_version=9).SerializeToString())


def asked(
    model: bytes | str, inputs: dict[str, np.ndarray], at: Path, precision: str = "fp32"
) -> dict[str, np.ndarray]:
    """What the runtime answers for a model, as ONNX or in its text form."""
    if isinstance(model, str):
        text = f'<ir_version: 9, opset_import: ["" : 17]> small {model}'
        model = onnx.parser.parse_model(text).SerializeToString()
    (at / "m.onnx").write_bytes(model)
    sizes = {name: array.shape for name, array in inputs.items()}
    bound = graph.optimize(graph.load(at / "m.onnx"), shapes=sizes).model
    form.write(at / "lowered.safetensors", [(sizes, *lower(bound))])
    runtime = CudaRuntime.compile(
        at / "lowered.safetensors", tactic(precision), shapes=sizes, instances=1, threads=None, device=CPU
    )
    return runtime(**inputs)


# What comes out is rounded to the model's own type, and what is computed to the precision's.
@pytest.mark.parametrize("precision", [*TOLERANCES, "tf32"])
@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE"])
def test_a_model_of_any_float_is_computed_in_any_precision(kind: str, precision: str, tmp_path: Path) -> None:
    number = onnx.TensorProto.DataType.Value(kind)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(number)
    x = np.random.default_rng(4).standard_normal((2, 64)).astype(dtype)
    found = asked(product(number), {"x": x}, tmp_path, precision)["y"]
    if kind == "BFLOAT16":
        assert found.dtype == np.uint16  # as it travels
        found = found.view(dtype)
    assert found.dtype == dtype
    w = np.random.default_rng(3).standard_normal((64, 64)).astype(dtype).astype(np.float64)
    right = x.astype(np.float64) @ w - np.maximum(x, 0).astype(np.float64)
    own = {"FLOAT16": TOLERANCES["fp16"], "BFLOAT16": TOLERANCES["bf16"]}.get(kind, 0.0)
    assert error(found, right) < max(own, TOLERANCES.get(precision, TOLERANCES["fp32"]))


@pytest.mark.parametrize("precision", list(TOLERANCES))
@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        ("(bool[2,4] x) => (bool[2,4] y) { y = Not(x) }", {"x": np.arange(8).reshape(2, 4) % 3 == 0}),
        (
            "(bool[2,4] c, float16[2,4] x) => (float16[2,4] y) { n = Neg(x) y = Where(c, x, n) }",
            {"c": np.arange(8).reshape(2, 4) % 2 == 0, "x": np.arange(8).reshape(2, 4).astype(np.float16)},
        ),
        (
            "(uint8[2,4] x) => (float16[2,4] y) { y = Cast<to=10>(x) }",
            {"x": np.arange(200, 208, dtype=np.uint8).reshape(2, 4)},
        ),
        (
            "(float[2,4] x) => (uint8[2,4] y) { z = Mul(x, x) y = Cast<to=2>(z) }",
            {"x": np.full((2, 4), 15.5, np.float32)},
        ),
        (
            "(int64[3] x) => (float16[3,2] y) <float[4,2] v = {0.5, 1, 2, 3, 4, 5, 6, 7}>"
            " { w = Cast<to=10>(v) y = Gather<axis=0>(w, x) }",
            {"x": np.array([1, 3, -1])},
        ),
        (
            "(int64[2,2] x) => (int64[2,2] y) <int64[2] w = {4611686018427387904, 3}> { y = Add(x, w) }",
            {"x": np.array([[1, 2], [3, 4]])},
        ),
        (
            "(int64[4] x) => (bool[4] y) <bool[4] w = {1, 0, 1, 0}> { c = Cast<to=9>(x) y = And(c, w) }",
            {"x": np.array([0, 1, 2, 3])},
        ),
        (
            "(uint8[4] x) => (uint8[2] y) <int64[2] w = {3, 0}> { y = Gather<axis=0>(x, w) }",
            {"x": np.array([1, 2, 3, 255], np.uint8)},
        ),
    ],
)  # fmt: skip
def test_types_that_are_no_fp32_come_in_and_go_out_as_they_are(
    text: str, inputs: dict[str, np.ndarray], precision: str, tmp_path: Path
) -> None:
    import onnxruntime

    found = asked(text, inputs, tmp_path, precision)["y"]
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (right,) = session.run(None, inputs)
    assert found.dtype == right.dtype
    np.testing.assert_array_equal(found, right)


def test_bfloat16_weights_of_a_form_are_those_that_were_written(tmp_path: Path) -> None:
    kind = onnx.TensorProto.BFLOAT16
    asked(product(kind), {"x": np.zeros((2, 64), np.uint16)}, tmp_path)
    found = form.read((tmp_path / "lowered.safetensors").read_bytes(), "m.engine")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    w = np.random.default_rng(3).standard_normal((64, 64)).astype(dtype)
    (name,) = found.weights
    assert found.weights[name].tobytes() == np.ascontiguousarray(w.T).tobytes()
