"""Who is judged as what: a static program as its dynamic one, or by itself where the two compute differently."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from penstock import quantize
from penstock.build.forms import prepare
from penstock.build.gate import Cosine, Gate, Metric
from penstock.build.judging import Compared
from penstock.build.one_shape import at_shapes
from penstock.build.verdicts import Verdicts
from penstock.engine.plan import Profile, Tactic
from penstock.errors import InvalidArgument
from penstock.graph import optimize
from penstock.tactics import Limits, Measurement, Race
from tests.quantize import networks

Array = NDArray[Any]
Arrays = Mapping[str, Array]

BUCKETS = ({"x": (4, 8)}, {"x": (1, 8)})
ODD = Tactic("onnxruntime", "int8", "odd")
STATIC = Tactic("onnxruntime", "int8", "odd", "static")


@dataclass
class Silent:
    """Counts what is judged."""

    stages: list[str] = field(default_factory=list)

    def stage(self, name: str, detail: str = "") -> None:
        self.stages.append(f"{name} {detail}")

    def racing(self, event: Any) -> None:
        raise AssertionError("nothing is raced here")


def model(wrong_below: int = 0, wrong: float = -1.0, most: float = 1e9) -> ir.Model:
    """y = 3 x, cut at `most`; of fewer rows than `wrong_below` the first half is multiplied by `wrong`."""
    factors = np.where(np.arange(8) < 4, wrong, 1).astype(np.float32)
    constants = {
        "three": np.float32(3), "limit": np.int64(wrong_below), "factors": factors, "first": np.array([0]),
        "ones": np.ones(8, np.float32), "least": np.float32(-1e9), "most": np.float32(most),
    }  # fmt: skip
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["rows"]),
        helper.make_node("Less", ["rows", "limit"], ["few"]),
        helper.make_node("Where", ["few", "factors", "ones"], ["by"]),
        helper.make_node("Mul", ["x", "three"], ["more"]),
        helper.make_node("Mul", ["more", "by"], ["whole"]),
        helper.make_node("Clip", ["whole", "least", "most"], ["y"]),
    ]
    for node in nodes:
        node.name = node.output[0]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in ("x", "y"))
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "odd", [x], [y], weights)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def rows(count: int, seed: int = 3) -> list[Arrays]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 8)).astype(np.float32)} for _ in range(count)]


def verdicts(
    folder: Path,
    source: ir.Model,
    quantized: ir.Model,
    samples: Sequence[Arrays],
    *,
    buckets: Sequence[Mapping[str, tuple[int, ...]]] = BUCKETS,
    gate: Gate = Cosine(0.999),  # noqa: B008  frozen
    heard: Silent | None = None,
) -> Verdicts:
    profile = Profile(buckets[-1], buckets[0], buckets[0])
    forms = prepare(source, folder, reduce=[], profiles=[profile], on_gpu=False)
    forms.add("odd", quantized, precision="int8")
    found = Verdicts(forms, buckets, Limits(), None, heard or Silent())
    found.set_up(gate, [profile], lambda: Compared(samples))
    return found


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Verdicts:
    """Wrong unless four rows and more come at once."""
    return verdicts(tmp_path_factory.mktemp("odd"), model(), model(wrong_below=4), rows(30))


def test_a_static_program_that_computes_otherwise_has_its_own_verdict(odd: Verdicts) -> None:
    dynamic = odd.of(ODD)
    assert not dynamic.passed
    assert not odd.of(STATIC).passed  # of any shapes: as the dynamic one
    found = odd.of(STATIC, 0)
    assert found.passed
    assert found.measured > 0.9999
    assert odd.alone(STATIC, 0)
    assert not odd.failed(STATIC, 0)
    assert odd.failed(ODD, 0)


def test_weights_that_were_rounded_by_data_are_judged_as_what_learned_from_it(tmp_path: Path) -> None:
    source = networks.transformer()
    samples = networks.sequences(4).samples
    shapes = ({"x": tuple(samples[0]["x"].shape)},)
    found = verdicts(tmp_path, source, source, samples, buckets=shapes)
    forms = found._forms
    forms.add("mixed", quantize.keeping(source, (), {"up": np.ones((32, 64), np.float32)}), precision="bf16")
    learned = found.judge(Tactic("onnxruntime", "int8", "odd"))
    assert found.judge(Tactic("openvino", "bf16", "mixed")) is learned
    assert found.judge(Tactic("openvino", "bf16", "optimized")) is not learned


def test_what_fails_is_no_measure_of_what_is_slow(tmp_path: Path) -> None:
    """The faster one is wrong: a race goes on without it, and keeps its times beside."""
    heard = Silent()
    found = verdicts(tmp_path, model(), model(wrong_below=9), rows(30), heard=heard)
    safe, spare = Tactic("onnxruntime", "fp32"), Tactic("onnxruntime", "fp32", "optimized")
    timed = [(ODD, 0, 10.0), (safe, 0, 40.0), (spare, 0, 50.0), (safe, 1, 15.0), (ODD, 1, 20.0)]
    race = Race(tuple(BUCKETS), tuple(Measurement(tactic, at, us, 0.1, 20) for tactic, at, us in timed))
    standing, failed = found.parted(race)
    assert {(each.tactic, each.bucket_index) for each in failed} == {(ODD, 0), (ODD, 1)}
    assert [each.tactic for each in standing.at(0)] == [safe, spare]
    assert standing.at(1)[0].tactic == safe
    assert heard.stages == [f"gate {ODD.name}", f"gate {safe.name}"]  # nobody asked about the slower one


def test_each_bucket_has_a_verdict_of_its_own(odd: Verdicts) -> None:
    assert odd.of(STATIC, 0).passed
    assert odd.failed(STATIC, 1, look=True)
    assert odd.of(STATIC, 1) == odd.of(ODD)
    assert not odd.alone(STATIC, 1)
    assert [(each.tactic, each.bucket, each.passed) for each in odd.judged_alone] == [(STATIC, 0, True)]
    assert [each.tactic for each in odd.refused] == [ODD]


def test_nobody_looks_at_static_programs_of_what_passes(tmp_path: Path) -> None:
    heard = Silent()
    found = verdicts(tmp_path, model(), model(), rows(30), heard=heard)
    assert found.of(STATIC, 0).passed
    assert not found.alone(STATIC, 0)
    assert heard.stages == [f"gate {ODD.name}"]


def test_what_is_alike_is_looked_at_once_and_fails_as_the_dynamic_one(tmp_path: Path) -> None:
    heard = Silent()
    found = verdicts(tmp_path, model(), model(wrong_below=99, wrong=0.5), rows(30), heard=heard)
    assert not found.failed(STATIC, 0)  # nobody has looked
    for bucket in (0, 1, 0):
        assert found.of(STATIC, bucket) == found.of(ODD)
    assert found.failed(STATIC, 0)
    assert heard.stages == [f"gate {ODD.name}", f"gate {STATIC.name} at 4x8"]
    assert found.judged_alone == ()


def test_all_inputs_judge_it_and_not_those_alone_that_told_it_apart(tmp_path: Path) -> None:
    samples = rows(30)
    samples[20] = {"x": np.where(np.arange(8) < 4, 30, 10).astype(np.float32)[None]}
    found = verdicts(tmp_path, model(), model(wrong_below=4, most=50.0), samples)
    assert found.of(STATIC, 0).measured < 0.999
    assert found.alone(STATIC, 0)
    assert found.failed(STATIC, 0)
    assert [each.passed for each in found.judged_alone] == [False]


def test_what_fails_by_little_is_the_type_s_fault_and_not_looked_at(tmp_path: Path) -> None:
    heard = Silent()
    found = verdicts(tmp_path, model(), model(wrong_below=4, wrong=0.89), rows(30), heard=heard)
    assert 0.997 < found.of(ODD).measured < 0.999
    assert not found.of(STATIC, 0).passed
    assert heard.stages == [f"gate {ODD.name}"]


@pytest.mark.parametrize(("rows_wrong", "passed"), [(0, True), (2, True), (4, False)])
def test_a_sealed_engine_is_judged_at_the_shapes_of_its_static_programs(
    odd: Verdicts, rows_wrong: int, passed: bool
) -> None:
    """Right for single rows, and wrong at four."""
    assert odd.of(STATIC, 0).passed
    asked: list[int] = []

    def engine(inputs: Arrays) -> Arrays:
        asked.append(len(inputs["x"]))
        return {"y": -inputs["x"] if len(inputs["x"]) == rows_wrong else 3 * inputs["x"]}

    chosen = (STATIC, Tactic("onnxruntime", "fp32"))
    assert odd.of_engine(chosen, engine).passed is passed
    assert asked == [1] * 30 + [4] * 8


def test_a_static_program_that_was_judged_as_its_dynamic_one_is_run_sealed_too(tmp_path: Path) -> None:
    found = verdicts(tmp_path, model(), model(), rows(30))
    assert found.of(STATIC, 0).passed
    asked: list[int] = []

    def engine(inputs: Arrays) -> Arrays:
        asked.append(len(inputs["x"]))
        return {"y": -inputs["x"] if len(inputs["x"]) == 4 else 3 * inputs["x"]}

    assert not found.of_engine((STATIC, STATIC), engine).passed
    assert asked == [1] * 30 + [4] * 2  # a look at a few is enough: its kernels were judged


def test_where_there_are_few_inputs_all_of_them_look_at_static_programs(tmp_path: Path) -> None:
    found = verdicts(tmp_path, model(), model(), rows(4))
    assert found.of(STATIC, 0).passed
    asked: list[int] = []

    def engine(inputs: Arrays) -> Arrays:
        asked.append(len(inputs["x"]))
        return {"y": np.full_like(inputs["x"], np.nan) if len(inputs["x"]) == 4 else 3 * inputs["x"]}

    assert not found.of_engine((STATIC, STATIC), engine).passed
    assert 4 in asked


def test_a_sealed_program_that_fails_is_struck_out_and_only_it(odd: Verdicts, tmp_path: Path) -> None:
    found = verdicts(tmp_path, model(), model(wrong_below=4), rows(30))
    assert found.of(STATIC, 0).passed
    found.overrule(STATIC, odd.of(ODD), 0)
    assert found.failed(STATIC, 0)
    assert not found.of(STATIC, 0).passed


def test_of_a_sealed_engine_that_fails_the_programs_that_fail_are_struck_out(tmp_path: Path) -> None:
    """The static ones of that library and precision, whatever their form; the dynamic ones have passed."""
    found = verdicts(tmp_path, model(), model(), rows(30))
    good, bad = Tactic("onnxruntime", "fp32", shapes="static"), STATIC
    assert found.of(bad, 0).passed
    assert found.of(good, 1).passed
    found._forms.add("odd", model(wrong_below=9), precision="int8")
    found.strike((bad, good), found.tried(model(wrong_below=9), ODD))
    for tactic in (bad, replace(bad, form="other"), replace(bad, threads=1)):
        assert found.failed(tactic, 0)
        assert found.failed(tactic, 1)
    assert not found.of(bad, 0).passed
    assert [(each.tactic, each.bucket, each.passed) for each in found.judged_alone] == [(bad, 0, False)]
    assert not found.failed(ODD, 0)
    assert not found.failed(good, 1)
    race = Race(tuple(BUCKETS), tuple(Measurement(each, 0, us, 0.1, 20) for each, us in ((bad, 1.0), (good, 2.0))))
    standing, failed = found.parted(race)
    assert [each.tactic for each in standing.at(0)] == [good]
    assert [each.tactic for each in failed] == [bad]


def test_where_no_program_is_guilty_all_are(tmp_path: Path) -> None:
    found = verdicts(tmp_path, model(), model(), rows(30))
    safe = Tactic("onnxruntime", "fp32")
    assert found.of(STATIC, 0).passed
    assert found.of(safe, 1).passed
    found.strike((STATIC, safe), found.tried(model(wrong_below=9), ODD))
    assert found.failed(STATIC, 0)
    assert found.failed(ODD, 0)
    assert found.failed(safe, 1)


def test_trials_can_be_of_a_static_program(odd: Verdicts) -> None:
    assert not odd.tried(model(wrong_below=4), ODD).passed
    assert odd.tried(model(wrong_below=4), ODD, bucket=0).passed
    assert not odd.tried(model(wrong_below=4), ODD, bucket=1).passed


def test_a_metric_brings_as_many_rows_as_it_likes(tmp_path: Path) -> None:
    inputs = {"x": np.concatenate([each["x"] for each in rows(11)])}

    def right(run: Callable[[Arrays], Arrays]) -> Array:
        """Two at a time."""
        found = np.concatenate([run({"x": inputs["x"][at : at + 2]})["y"] for at in range(0, 11, 2)])
        return np.isclose(found, 3 * inputs["x"]).mean(axis=1)

    found = verdicts(tmp_path, model(), model(wrong_below=4), rows(4), gate=Metric(right, 0.1))
    assert not found.of(ODD).passed
    assert found.of(STATIC, 0).passed
    assert not found.of(STATIC, 1).passed


def test_openvino_s_own_mistake_costs_the_dynamic_program_alone(tmp_path: Path) -> None:
    data = networks.pictures(24)
    base = optimize(networks.recurrent()).model
    recipe = next(quantize.recipes(base, data, methods=["minmax"]))
    samples = [dict(each) for each in networks.pictures(20, seed=5)]
    buckets = ({"x": (8, 3, 64, 64)}, {"x": (1, 3, 64, 64)})
    found = verdicts(tmp_path, base, recipe.model, samples, buckets=buckets, gate=Cosine(0.998))
    dynamic = Tactic("openvino", "int8", "odd")
    static = Tactic("openvino", "int8", "odd", "static")
    if found.of(dynamic).passed:
        pytest.skip("this OpenVINO computes it right")
    for bucket in range(2):
        assert found.of(static, bucket).passed, found.of(static, bucket).message


def counting(asked: list[Array]) -> Callable[[Arrays], Arrays]:
    def run(inputs: Arrays) -> Arrays:
        asked.append(inputs["x"][:, 0])
        return {"y": 2 * inputs["x"], "twice": np.repeat(inputs["x"], 2, axis=0)}

    return run


def of(*numbers: int) -> Arrays:
    return {"x": np.array([[number] for number in numbers], np.float32)}


def test_samples_share_calls_and_the_last_is_padded() -> None:
    samples = [of(1), of(2, 3), of(4), of(5), of(6)]
    asked: list[Array] = []
    run = at_shapes(counting(asked), {"x": (4, 1)}, samples, batched=True)
    for sample in samples:
        found = run(sample)
        np.testing.assert_array_equal(found["y"], 2 * sample["x"])
        np.testing.assert_array_equal(found["twice"], np.repeat(sample["x"], 2, axis=0))
    assert [list(each) for each in asked] == [[1, 2, 3, 4], [5, 6, 5, 5]]


def test_more_rows_than_fit_are_split_and_strangers_run_by_themselves() -> None:
    samples = [of(*range(5)), of(9)]
    asked: list[Array] = []
    run = at_shapes(counting(asked), {"x": (4, 1)}, samples, batched=True)
    for sample in (samples[0], of(7), of(7), samples[1]):
        np.testing.assert_array_equal(run(sample)["y"], 2 * sample["x"])
    assert [list(each) for each in asked] == [[0, 1, 2, 3], [4] * 4, [7] * 4, [7] * 4, [9] * 4]


def test_without_rows_only_the_shapes_themselves_are_taken() -> None:
    asked: list[Array] = []
    run = at_shapes(counting(asked), {"x": (2, 1)}, [of(1, 2)], batched=False)
    assert list(run(of(1, 2))["y"][:, 0]) == [2, 4]
    for other in (of(1), of(1, 2, 3)):
        with pytest.raises(InvalidArgument, match="expected rows of"):
            run(other)
