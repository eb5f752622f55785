"""A loaded engine: any thread, any batch and shape of its profiles, contexts, reductions, other machines."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors import safe_open

import penstock as ps
from penstock.engine import Engine, check, fingerprint, open_engine
from penstock.engine.plan import Fingerprint, Reduction, Tactic
from penstock.errors import InvalidArgument, ModelLoadError, ResourceExhausted, Unavailable
from penstock.tensors import TensorSpec
from tests import onnx_models
from tests.engine.engines import OPENVINO, ORT, STATIC, Plan, profile, seal

HERE = fingerprint.here()


def loaded(plan: Plan, folder: Path, **settings: Any) -> Engine:
    return open_engine(seal(plan, folder / "m.engine"), **settings)


def scale_plan(folder: Path) -> Plan:
    """y = 3x for [1..8, 4]: OpenVINO for exactly 1 and 4 rows, ONNX Runtime for everything."""
    one, four, eight = ({"x": (rows, 4)} for rows in (1, 4, 8))
    return Plan(
        onnx_models.scale(folder / "m.onnx", 3),
        profile("x", (1, 4), (4, 4), (8, 4)),
        [(ORT, {}), (STATIC, one), (STATIC, four)],
        [(one, 1, 10), (four, 2, 20), (eight, 0, 40)],
        bytes=1000,
    )


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return loaded(scale_plan(tmp_path), tmp_path)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 21])
def test_any_number_of_rows_is_answered_row_by_row(rows: int, engine: Engine) -> None:
    x = np.random.default_rng(rows).random((rows, 4), np.float32)
    y = engine(x=x)["y"]
    assert y.shape == (rows, 4)
    np.testing.assert_array_equal(y, x * np.float32(3))


def test_it_looks_like_a_runtime(engine: Engine) -> None:
    assert engine.name == "engine"
    assert engine.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert engine.outputs == (TensorSpec("y", "FP32", (-1, 4)),)
    assert engine.max_batch_size == 8
    assert engine.evidence == {"note": "by a test"}
    assert len(engine.content_hash) == 64
    instance = engine.instance()
    x = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(instance.execute({"x": x})["y"], x * 3)
    instance.close()


def test_outputs_are_the_callers_own(engine: Engine) -> None:
    """For exact, padded and split calls alike: later calls change nothing, and what the caller changes is its own."""
    for rows in (1, 4, 3, 9):
        x = np.ones((rows, 4), np.float32)
        first = engine(x=x)["y"]
        first += 1
        second = engine(x=x * 2)["y"]
        np.testing.assert_array_equal(first, np.full((rows, 4), 4, np.float32))
        np.testing.assert_array_equal(second, np.full((rows, 4), 6, np.float32))
        assert not np.shares_memory(first, second)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((2, 5), np.float32)}, r"input 'x' has shape \[-1, 4\], got \[2, 5\]"),
        ({"x": np.ones((0, 4), np.float32)}, "at least one row"),
        ({"x": np.ones((2, 4))}, "input 'x' is FP32, got an array of FP64"),
        ({"z": np.ones((2, 4), np.float32)}, "unexpected input 'z'"),
        ({}, "input 'x' is missing"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: dict[str, Any], message: str, engine: Engine) -> None:
    with pytest.raises(InvalidArgument, match=message):
        engine(**arrays)
    with engine.context() as context, pytest.raises(InvalidArgument, match=message):
        context.enqueue(**arrays).result()


def test_a_closed_engine_says_so(engine: Engine) -> None:
    x = np.ones((1, 4), np.float32)
    engine(x=x)
    engine.close()
    for call in (lambda: engine(x=x), engine.instance, engine.context):
        with pytest.raises(Unavailable, match=r"m\.engine is closed"):
            call()


def test_closing_under_load_answers_or_says_so_and_keeps_nothing(engine: Engine) -> None:
    x = np.ones((3, 4), np.float32)
    begun = threading.Barrier(9)
    outcomes: list[str] = []

    def work() -> None:
        begun.wait()
        try:
            for _ in range(10_000):
                np.testing.assert_array_equal(engine(x=x)["y"], x * 3)
        except Unavailable:
            outcomes.append("closed")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    begun.wait()
    engine.close()
    for thread in threads:
        thread.join()
    assert outcomes == ["closed"] * 8
    assert not engine._idle


def test_contexts_run_their_calls_in_order_and_apart_from_each_other(engine: Engine) -> None:
    with engine.context() as one, engine.context() as other:
        futures = [
            (at, context.enqueue(x=np.full((1 + at % 9, 4), at, np.float32)))
            for at in range(40)
            for context in (one, other)
        ]
        for at, future in futures:
            np.testing.assert_array_equal(future.result()["y"], np.full((1 + at % 9, 4), 3 * at, np.float32))
    with pytest.raises(Unavailable, match=r"the context is closed"):
        one.enqueue(x=np.ones((1, 4), np.float32))


def hammer(call: Callable[[int, np.random.Generator], None], threads: int, rounds: int) -> None:
    """Everybody at once; the first failure is raised."""
    ready = threading.Barrier(threads)

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        ready.wait()
        for at in range(rounds):
            call(at, random)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, seed) for seed in range(threads)]:
            done.result()


def test_32_threads_with_inputs_of_their_own_each_get_their_own_answers(engine: Engine) -> None:
    def call(_: int, random: np.random.Generator) -> None:
        x = random.random((int(random.integers(1, 20)), 4), np.float32)
        np.testing.assert_array_equal(engine(x=x)["y"], x * np.float32(3))

    hammer(call, 32, 60)


def test_a_load_with_little_memory_does_without_programs(tmp_path: Path) -> None:
    plan = scale_plan(tmp_path)
    engine = loaded(plan, tmp_path, memory_bytes=1500)
    for rows in (1, 4, 9):
        x = np.ones((rows, 4), np.float32)
        np.testing.assert_array_equal(engine(x=x)["y"], x * 3)
    with pytest.raises(ResourceExhausted, match="needs 1000 bytes at least, the limit is 999"):
        ps.load(tmp_path / "m.engine", memory_bytes=999)


def test_an_engine_brings_its_own_libraries(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"m\.engine is an engine and brings its own libraries"):
        ps.load(tmp_path / "m.engine", runtime="openvino")


# ---- reductions beside the library call ----


@pytest.mark.parametrize("tactic", [ORT, OPENVINO])
def test_a_reduction_beside_the_call_answers_index_and_value(tactic: Tactic, tmp_path: Path) -> None:
    outputs = (
        TensorSpec("sum_index", "INT64", (-1,)),
        TensorSpec("sum_value", "FP32", (-1,)),
        TensorSpec("difference", "FP32", (-1, 3)),
    )
    model = onnx_models.add_and_subtract(tmp_path / "m.onnx")
    limits = profile("a", (1, 3), (2, 3), (4, 3))
    both = replace(
        limits, **{side: {**getattr(limits, side), "b": getattr(limits, side)["a"]} for side in limits.__slots__}
    )
    plan = Plan(model, both, [(tactic, {})], reductions=(Reduction("sum", 1),), outputs=outputs)
    engine = loaded(plan, tmp_path)
    random = np.random.default_rng(0)
    kept: list[tuple[Any, Any]] = []
    for rows in (1, 4, 7):
        a, b = random.random((2, rows, 3), np.float32)
        answer = engine(a=a, b=b)
        assert {spec.name for spec in engine.outputs} == set(answer)
        assert answer["sum_index"].dtype == np.int64
        np.testing.assert_array_equal(answer["sum_index"], (a + b).argmax(1))
        np.testing.assert_array_equal(answer["sum_value"], (a + b).max(1))
        kept.append((answer["difference"], a - b))
    for answer_difference, expected in kept:  # copies: later calls did not write into them
        np.testing.assert_array_equal(answer_difference, expected)


# ---- other machines ----


def foreign(**changes: Any) -> Fingerprint:
    return replace(HERE, **changes)


OTHER_OPENVINO = {**HERE.libraries, "openvino": "1.0"}


@pytest.mark.parametrize(
    ("machine", "action", "reason"),
    [
        (HERE, "run", None),
        (foreign(cores=HERE.cores + 1), "run", "timed on"),
        (foreign(model="Another CPU"), "retune", "it was built for Another CPU, this is"),
        (foreign(features=(*HERE.features, "avx4096")), "retune", "with avx4096, which"),
        (foreign(features=HERE.features[1:]), "retune", f"has {HERE.features[0]}, which"),
        (foreign(libraries=OTHER_OPENVINO), "retune", "it was built with openvino 1.0, here is"),
        (foreign(libraries={"onnxruntime": HERE.libraries["onnxruntime"]}), "retune", "built with openvino None"),
        (
            foreign(device="cuda:NVIDIA H200"),
            "refuse",
            "it was built for cuda:NVIDIA H200, this is cpu; build it again",
        ),
    ],
)
def test_where_an_engine_runs_is_retuned_or_refused(
    machine: Fingerprint, action: str, reason: str | None, tmp_path: Path
) -> None:
    path = seal(replace(scale_plan(tmp_path), machine=machine), tmp_path / "m.engine")
    verdict = check(path)
    assert verdict.action == action
    assert [reason is not None and reason in each for each in verdict.reasons] == ([] if reason is None else [True])


def test_a_missing_library_is_named_with_its_package(tmp_path: Path) -> None:
    path = seal(scale_plan(tmp_path), tmp_path / "m.engine")
    here = foreign(libraries={"onnxruntime": HERE.libraries["onnxruntime"]})
    verdict = check(path, here)
    assert (verdict.action, verdict.reasons) == ("refuse", ("openvino is not installed here; pip install openvino",))


def test_an_engine_of_another_machine_is_compiled_anew_and_its_artifacts_are_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = replace(scale_plan(tmp_path), machine=foreign(model="Another CPU"))
    with caplog.at_level(logging.WARNING, "penstock"):
        engine = loaded(plan, tmp_path)
    assert "m.engine is compiled anew: it was built for Another CPU" in caplog.text
    for rows in (1, 3, 4, 9):
        x = np.ones((rows, 4), np.float32)
        np.testing.assert_array_equal(engine(x=x)["y"], x * 3)


def test_artifacts_of_another_machine_are_never_opened(tmp_path: Path) -> None:
    """They are poison here: an engine that opened one would fail."""
    from penstock.engine import sealed
    from tests.engine.engines import members

    manifest, held = members(replace(scale_plan(tmp_path), machine=foreign(features=("avx4096",))))
    held |= {program.artifact: b"poison" for program in manifest.programs}
    sealed.write(tmp_path / "m.engine", manifest, held, {})
    np.testing.assert_array_equal(ps.load(tmp_path / "m.engine")(x=np.ones((1, 4), np.float32))["y"], [[3, 3, 3, 3]])
    sealed.write(tmp_path / "m.engine", replace(manifest, fingerprint=HERE), held, {})
    with pytest.raises(ModelLoadError, match=r"m\.engine can't be loaded by"):
        ps.load(tmp_path / "m.engine")


def test_without_its_graphs_an_engine_of_another_machine_is_refused(tmp_path: Path) -> None:
    plan = replace(scale_plan(tmp_path), machine=foreign(model="Another CPU"), graphs=False)
    path = seal(plan, tmp_path / "m.engine")
    with pytest.raises(ModelLoadError, match=r"built for Another CPU.*artifacts/source\.onnx is not inside"):
        ps.load(path)


def test_a_precision_that_is_not_here_falls_back_to_fp32(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from penstock.engine import sealed
    from tests.engine.engines import members

    manifest, held = members(replace(scale_plan(tmp_path), machine=foreign(model="Another CPU")))
    # No ONNX Runtime on a CPU computes in FP16: this tactic can be compiled nowhere.
    half = replace(manifest.programs[0], tactic=Tactic("onnxruntime", "fp16"))
    manifest = replace(manifest, programs=(half, *manifest.programs[1:]))
    sealed.write(tmp_path / "m.engine", manifest, held, {})
    with caplog.at_level(logging.WARNING, "penstock"):
        engine = ps.load(tmp_path / "m.engine")
    assert "FP32 instead" in caplog.text
    np.testing.assert_array_equal(engine(x=np.ones((8, 4), np.float32))["y"], np.full((8, 4), 3, np.float32))


# ---- the real recogniser ----

WIDTHS = (64, 160, 320)


@pytest.fixture(scope="module")
def text_engine(recogniser: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP32 in both libraries: dynamic everywhere, static for a batch of two at width 160."""
    two = {"x": (2, 3, 48, 160)}
    plan = Plan(
        recogniser,
        profile("x", (1, 3, 48, 32), (2, 3, 48, 160), (4, 3, 48, 320)),
        [(OPENVINO, {}), (STATIC, two), (ORT, {})],
        [({"x": (1, 3, 48, 160)}, 0, 8000), (two, 1, 14000), ({"x": (4, 3, 48, 320)}, 2, 60000)],
    )
    return seal(plan, tmp_path_factory.mktemp("text") / "rec.engine")


def test_the_recogniser_answers_threads_with_shapes_of_their_own(text_engine: Path, recogniser: Path) -> None:
    """32 threads, every call of another batch and width, each answer compared with ONNX Runtime alone."""
    engine = open_engine(text_engine, instances=2)
    reference = ps.load(recogniser)
    random = np.random.default_rng(7)
    cases = []
    for rows, width in [(1, 64), (1, 160), (2, 160), (3, 160), (5, 64), (2, 64), (6, 96), (4, 64)]:
        x = random.random((rows, 3, 48, width), np.float32) * 2 - 1
        cases.append((x, next(iter(reference(x=x).values()))))
    (name,) = (spec.name for spec in engine.outputs)

    def call(at: int, random: np.random.Generator) -> None:
        x, expected = cases[int(random.integers(len(cases)))]
        np.testing.assert_allclose(engine(x=x)[name], expected, atol=2e-4)

    hammer(call, 32, 1)


@pytest.mark.slow
@pytest.mark.parametrize("tactic", [OPENVINO, ORT], ids=lambda tactic: tactic.runtime)
def test_a_21_mb_model_loads_within_300_ms(tactic: Tactic, recogniser: Path, tmp_path: Path) -> None:
    """Of the process's own time: what else the machine does is not the engine's matter."""
    limits = profile("x", (1, 3, 48, 32), (2, 3, 48, 160), (4, 3, 48, 320))
    path = seal(Plan(recogniser, limits, [(tactic, {})]), tmp_path / "rec.engine")
    assert min(_seconds_to_load(path) for _ in range(5)) < 0.3


def _seconds_to_load(path: Path) -> float:
    wall, own = time.perf_counter(), time.process_time()
    ps.load(path).close()
    return min(time.perf_counter() - wall, time.process_time() - own)


def test_an_engine_is_compiled_anew_from_graphs_that_share_their_weights(recogniser: Path, tmp_path: Path) -> None:
    """As builds write them: two forms, each weight once, and the source comes out equal to what went in."""
    from penstock.build.weights import shared
    from penstock.engine import sealed
    from penstock.engine.retuning import unpack
    from tests.engine.engines import members

    limits = profile("x", (1, 3, 48, 32), (2, 3, 48, 160), (4, 3, 48, 320))
    plan = Plan(
        recogniser,
        limits,
        [(OPENVINO, {}), (replace(ORT, form="optimized"), {})],
        [({"x": (1, 3, 48, 160)}, 0, 8000), ({"x": (4, 3, 48, 320)}, 1, 60000)],
        machine=foreign(model="Another CPU"),
        forms={"optimized": recogniser},
    )
    manifest, held = members(plan)
    folder = tmp_path / "graphs"
    folder.mkdir()
    graphs, weights = shared({"source": recogniser, "optimized": recogniser}, folder)
    held |= {sealed.graph_member(name): path for name, path in graphs.items()}
    held[sealed.WEIGHTS] = weights
    size = recogniser.stat().st_size
    assert sum(path.stat().st_size for path in [*graphs.values(), weights]) < 1.1 * size
    path = tmp_path / "rec.engine"
    sealed.write(path, manifest, held, {})

    out = tmp_path / "out"
    out.mkdir()
    unpack(sealed.read(path), out)
    assert sorted(each.name for each in out.iterdir()) == ["optimized.onnx", "source.onnx", sealed.WEIGHTS]
    before, after = onnx.load(str(recogniser)), onnx.load(str(out / "source.onnx"))
    tensors = {each.name: numpy_helper.to_array(each) for each in before.graph.initializer}
    again = {each.name: numpy_helper.to_array(each) for each in after.graph.initializer}
    assert tensors.keys() == again.keys()
    assert all(np.array_equal(array, again[name]) for name, array in tensors.items())
    assert [node.op_type for node in before.graph.node] == [node.op_type for node in after.graph.node]
    with safe_open(out / sealed.WEIGHTS, "np") as stored:
        assert all(any(np.array_equal(stored.get_tensor(key), array) for array in tensors.values())
                   for key in list(stored.keys())[:5])  # fmt: skip

    engine, reference = ps.load(path), ps.load(recogniser)
    for rows in (1, 4):
        x = np.random.default_rng(rows).random((rows, 3, 48, 160), np.float32) * 2 - 1
        (found,), (expected,) = engine(x=x).values(), reference(x=x).values()
        np.testing.assert_allclose(found, expected, atol=2e-4)
