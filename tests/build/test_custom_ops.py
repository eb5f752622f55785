"""Custom operators: a model with operators that only Python knows is built, sealed, loaded and run like any other."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import penstock as ps
from penstock import graph
from penstock.build import custom_ops
from penstock.build.custom_ops import write_parts
from penstock.build.options import BuildOptions
from penstock.engine import check, custom, runtimes, sealed
from penstock.engine.check import Verdict
from penstock.engine.custom import OpName
from penstock.engine.engine import from_sealed
from penstock.engine.plan import CustomOperator, Tactic
from penstock.errors import ExecutionError, InvalidArgument, ModelLoadError, PenstockError, Unsupported
from penstock.graph.signatures import spec
from penstock.tactics import Limits
from penstock.tensors import TensorSpec
from tests import onnx_models
from tests.build import operators
from tests.build.operators import DOMAIN

Array = NDArray[Any]
ROOT = Path(__file__).resolve().parents[2]
MODULE = operators.__name__

RNG = np.random.default_rng(3)
WEIGHTS = {
    "w1": RNG.standard_normal((8, 16)).astype(np.float32),
    "w2": RNG.standard_normal((16, 4)).astype(np.float32),
    "bias": RNG.standard_normal(4).astype(np.float32),
}


def write(
    path: Path, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], columns: int = 4, domain: str = DOMAIN
) -> Path:
    """A model of [batch, 8] -> [batch, columns], without a word about the tensors inside."""
    made = helper.make_graph(
        nodes,
        "custom",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", columns]) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    return onnx_models.save(helper.make_model(made, opset_imports=opsets, ir_version=9), path)


def write_net(path: Path) -> Path:
    """Two custom operators side by side, and one behind both."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Twice", ["a"], ["left"], name="left", domain=DOMAIN),
        helper.make_node("Twice", ["b"], ["right"], name="right", domain=DOMAIN),
        helper.make_node("MatMul", ["left", "w2"], ["c"], name="second"),
        helper.make_node("MatMul", ["right", "w2"], ["d"], name="third"),
        helper.make_node("Mix", ["c", "d", "bias"], ["e"], name="mix", domain=DOMAIN, alpha=0.25),
        helper.make_node("Add", ["e", "c"], ["y"], name="last"),
    ]
    return write(path, nodes, ["y"])


def expected(x: Array) -> Array:
    a = x @ WEIGHTS["w1"]
    c, d = 2 * a @ WEIGHTS["w2"], 2 * np.maximum(a, 0) @ WEIGHTS["w2"]
    answer: Array = 0.25 * c + 0.75 * d + WEIGHTS["bias"] + c
    return answer


def rows(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)


@dataclass(frozen=True)
class Built:
    engine: ps.Engine
    path: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("custom")
    path = folder / "net.engine"
    engine = ps.build(write_net(folder / "net.onnx"), output=path, shapes="x:1x8,4x8,16x8", budget_seconds=12)
    yield Built(engine, path)
    engine.close()


# ---- a whole build ----


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 4, 16, 37])
def test_an_engine_answers_like_its_model(built: Built, count: int) -> None:
    x = rows(count)
    np.testing.assert_allclose(built.engine(x=x)["y"], expected(x), rtol=0.02, atol=0.3)


@pytest.mark.slow
def test_the_file_answers_from_many_threads(built: Built) -> None:
    loaded = ps.load(built.path, instances=2)
    inputs = [rows(1 + at % 7, seed=at) for at in range(64)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda x: loaded(x=x)["y"], inputs))
    for x, y in zip(inputs, answers, strict=True):
        np.testing.assert_allclose(y, expected(x), rtol=0.02, atol=0.3)
    loaded.close()


@pytest.mark.slow
def test_python_functions_are_regions_with_a_time(built: Built) -> None:
    kinds = {region.name: region for region in built.engine.manifest.regions}
    for name, kind in [("left", "Twice"), ("right", "Twice"), ("mix", "Mix")]:
        assert kinds[name].kind == f"{DOMAIN}::{kind}"
        assert kinds[name].nodes == (name,)
        assert kinds[name].tactic == "python"
        assert kinds[name].microseconds > 0
    nodes = {node for region in kinds.values() for node in region.nodes}
    assert nodes >= {"first", "second", "third", "last", "mix"}


@pytest.mark.slow
def test_the_manifest_says_what_is_needed(built: Built) -> None:
    found = sealed.read(built.path).manifest.custom_ops
    assert set(found) == {CustomOperator(DOMAIN, "Twice", MODULE), CustomOperator(DOMAIN, "Mix", MODULE)}
    assert check(built.path).action == "run"


@pytest.mark.slow
def test_graphs_inside_are_compiled_anew(built: Built) -> None:
    file = sealed.read(built.path)
    again = from_sealed(file, Verdict("retune", ("another machine",), file))
    x = rows(5)
    np.testing.assert_allclose(again(x=x)["y"], expected(x), rtol=0.02, atol=0.3)
    again.close()


LOAD = """
import sys, numpy as np, penstock as ps
engine = ps.load(sys.argv[1], custom_ops=sys.argv[2:])
print(engine(x=np.ones((2, 8), np.float32))["y"].shape)
"""


@pytest.mark.slow
def test_a_process_without_the_functions_refuses_until_it_is_given_them(built: Built) -> None:
    def load(*modules: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LOAD, str(built.path), *modules]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)

    refused = load()
    assert refused.returncode == 1
    line = refused.stderr.splitlines()[-1]
    assert line.startswith("penstock.errors.ModelLoadError: it needs custom operators that are not registered here: ")
    assert f"{DOMAIN}::Twice" in line
    assert f"(of {MODULE})" in line
    assert load(MODULE).stdout == "(2, 4)\n"


# ---- programs ----

TACTICS = [
    (Tactic("onnxruntime", "fp32"), None),
    (Tactic("openvino", "fp32"), None),
    (Tactic("openvino", "fp32", shapes="static"), {"x": (3, 8)}),
]


@pytest.mark.parametrize(("tactic", "shapes"), TACTICS, ids=lambda each: each.name if isinstance(each, Tactic) else "")
def test_a_program_reopens_as_it_was(tactic: Tactic, shapes: dict[str, tuple[int, ...]] | None, tmp_path: Path) -> None:
    path = typed(write_net(tmp_path / "net.onnx"), tmp_path)
    made = runtimes.compile(path, tactic, shapes=shapes)
    again = runtimes.reopen(memoryview(made.export()), tactic, output_names=("y",), name="net")
    assert again.inputs == made.inputs
    assert again.inputs[0].shape == (3 if shapes else -1, 8)
    x = rows(3)
    np.testing.assert_allclose(again(x=x)["y"], expected(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(again(x=x)["y"], made(x=x)["y"])


def typed(path: Path, folder: Path) -> Path:
    """As a build prepares a model, with its parts beside it."""
    work = folder / "work"
    work.mkdir()
    prepared = custom_ops.prepare(path, work, BuildOptions(), Limits())
    write_parts(graph.load(prepared.path), prepared.path)
    return prepared.path


@pytest.mark.parametrize("cut", [20, 200, -1])
def test_a_program_that_is_cut_is_refused(cut: int, tmp_path: Path) -> None:
    made = runtimes.compile(typed(write_net(tmp_path / "net.onnx"), tmp_path), TACTICS[0][0])
    with pytest.raises(ModelLoadError, match="net"):
        runtimes.reopen(memoryview(made.export()[:cut]), TACTICS[0][0], output_names=("y",), name="net")


def test_answers_belong_to_the_caller(tmp_path: Path) -> None:
    node = helper.make_node("Same", ["x"], ["y"], name="same", domain=DOMAIN)
    made = runtimes.compile(typed(write(tmp_path / "same.onnx", [node], ["y"], columns=8), tmp_path), TACTICS[0][0])
    x = rows(2)
    answer = made(x=x)["y"]
    answer[:] = 0
    assert np.all(x != 0)


# ---- types ----


def test_types_come_from_the_registration_where_it_says_them(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Halves", ["x"], ["l", "r"], name="h", domain=DOMAIN, axis=1),
        helper.make_node("Add", ["l", "r"], ["y"], name="y"),
    ]
    model = graph.load(typed(write(tmp_path / "m.onnx", nodes, ["y"]), tmp_path))
    found = {value.name: value for node in model.graph for value in node.outputs}
    assert spec(found["l"]) == TensorSpec("l", "FP32", (-1, 4))
    assert spec(found["r"]) == TensorSpec("r", "FP32", (-1, 4))
    assert not (tmp_path / "work/example").exists()


def test_types_are_found_by_an_example_where_nothing_says_them(tmp_path: Path) -> None:
    model = graph.load(typed(write_net(tmp_path / "net.onnx"), tmp_path))
    found = {value.name: value for node in model.graph for value in node.outputs}
    for name in ("left", "right", "e"):
        assert spec(found[name]) == TensorSpec(name, "FP32", (-1, -1))


def test_a_bare_model_takes_no_functions(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"m\.onnx is no engine"):
        ps.load(onnx_models.double(tmp_path / "m.onnx"), custom_ops=MODULE)


def test_a_model_without_custom_operators_stays_as_it_is(tmp_path: Path) -> None:
    path = onnx_models.double(tmp_path / "m.onnx")
    assert custom_ops.prepare(path, tmp_path, BuildOptions(), Limits()) == custom_ops.Prepared(path, ())


# ---- mistakes ----

FAULTS = [
    ("raise", "raised ValueError: no boxes in"),
    ("write", "raised ValueError: assignment destination is read-only"),
    ("type", "returned FP64 for 'y', expected FP32; convert it with .astype"),
    ("rank", r"returned shape \[1, 2, 8\] for 'y', expected \[-1, 8\]"),
    ("shape", r"returned shape \[2, 7\] for 'y', expected \[-1, 8\]"),
    ("few", "returned 0 arrays, expected 1"),
    ("words", "returned BYTES for 'y', expected FP32"),
    ("odd", "returned for 'y': no v2 datatype for arrays of complex64"),
]


@pytest.mark.parametrize(("how", "message"), FAULTS, ids=[how for how, _ in FAULTS])
def test_what_a_function_does_wrong_names_the_operator(how: str, message: str, tmp_path: Path) -> None:
    node = helper.make_node("Faulty", ["x"], ["y"], name="bad", domain=DOMAIN, how=how)
    made = runtimes.compile(typed(write(tmp_path / "m.onnx", [node], ["y"], columns=8), tmp_path), TACTICS[0][0])
    where = r"^custom operator tests\.build::Faulty \(node 'bad'\) "
    with pytest.raises(ExecutionError, match=where + message) as raised:
        made(x=rows(2))
    assert "/srv" not in str(raised.value)


def test_a_function_that_takes_no_noise_is_told_how_to_help(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Picky", ["x"], ["p"], name="picky", domain=DOMAIN),
        helper.make_node("Relu", ["p"], ["y"], name="r"),
    ]
    with pytest.raises(ModelLoadError, match=r"Picky .* raised ValueError: expected real boxes; .* outputs= as a func"):
        typed(write(tmp_path / "m.onnx", nodes, ["y"], columns=8), tmp_path)


def test_a_shape_that_the_next_layer_can_not_take_names_where_it_came_from(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Narrow", ["x"], ["n"], name="narrow", domain=DOMAIN),
        helper.make_node("MatMul", ["n", "w1"], ["y"], name="m"),
    ]
    made = runtimes.compile(typed(write(tmp_path / "m.onnx", nodes, ["y"], columns=16), tmp_path), TACTICS[0][0])
    with pytest.raises(ExecutionError, match=r"it was given n \[2, 7\] of custom operator tests\.build::Narrow"):
        made(x=rows(2))


def test_an_operator_that_nobody_registered_is_one_line(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Lost", ["x"], ["a"], name="first", domain="far.away"),
        helper.make_node("Gone", ["a"], ["y"], name="second", domain="far.away"),
    ]
    path = write(tmp_path / "m.onnx", nodes, ["y"], domain="far.away")
    with pytest.raises(Unsupported) as raised:
        ps.build(path, budget_seconds=5)
    message = str(raised.value)
    assert message.startswith("m.onnx: no library knows operator far.away::Lost (node 'first'), nor 1 more")
    assert '@ps.custom_op("far.away", "Lost")' in message
    assert "--custom-ops" in message
    assert "\n" not in message


def test_operators_of_the_program_itself_can_not_be_had_by_others() -> None:
    def here(x: Array) -> Array:
        return x

    here.__module__ = "__main__"
    ps.custom_op("tests.main", "Here")(here)
    with pytest.raises(InvalidArgument, match=r"tests\.main::Here is defined in the program itself"):
        custom.Imports.of([OpName("tests.main", "Here")])


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_standard_operators_are_not_replaced(domain: str) -> None:
    with pytest.raises(InvalidArgument, match="a domain of your own"):
        ps.custom_op(domain, "Relu")


def test_two_functions_for_one_operator_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"tests\.build::Twice is registered for tests\.build\.operators\.twice"):
        ps.custom_op(DOMAIN, "Twice")(np.negative)
    ps.custom_op(DOMAIN, "Twice")(operators.twice)  # the same once more, as a module that is imported anew does


@pytest.mark.parametrize(
    ("source", "message"),
    [("no_such_module", "there is no module 'no_such_module'"), (f"{MODULE}:absent", "has no attribute 'absent'")],
)
def test_modules_that_can_not_be_imported(source: str, message: str) -> None:
    with pytest.raises(PenstockError, match=message):
        ps.build("m.onnx", custom_ops=source)
