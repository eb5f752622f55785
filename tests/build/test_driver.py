"""Whole builds of small networks: what comes out is an engine that answers like its model, inside the gate."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import penstock as ps
from penstock import graph
from penstock.build.evidence import from_json
from penstock.engine import check
from penstock.engine.plan import Tactic
from penstock.errors import AccuracyError, InvalidArgument, ModelLoadError, NotFound, Unsupported
from tests.quantize import networks

Array = NDArray[Any]
SHAPES = "x:1x3x64x64,4x3x64x64,8x3x64x64"


@dataclass
class Heard:
    """What a build said."""

    stages: list[str] = field(default_factory=list)
    timed: set[Tactic] = field(default_factory=set)

    def stage(self, name: str, detail: str = "") -> None:
        self.stages.append(name)

    def racing(self, event: Any) -> None:
        if hasattr(event, "median_us"):
            self.timed.add(event.tactic)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "residual.onnx"
    graph.save(networks.residual(), path)
    return path


@pytest.fixture(scope="module")
def samples() -> list[Mapping[str, Array]]:
    return list(networks.pictures(40, size=64))


@dataclass(frozen=True)
class Built:
    engine: ps.Engine
    path: Path
    heard: Heard


@pytest.fixture(scope="module")
def built(
    model: Path, samples: Sequence[Mapping[str, Array]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Built]:
    """With calibration data, so that every precision took part."""
    path = tmp_path_factory.mktemp("engines") / "residual.engine"
    heard = Heard()
    engine = ps.build(
        model,
        output=path,
        shapes=SHAPES,
        calibration=samples,
        accuracy="cosine>=0.98",
        budget_seconds=60,
        progress=heard,
    )
    yield Built(engine, path, heard)
    engine.close()


def reference(model: Path, x: Array) -> Array:
    (found,) = ps.load(model)(x=x).values()
    return found


def cosine(a: Array, b: Array) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 8, 21])
def test_an_engine_answers_like_its_model(built: Built, model: Path, rows: int) -> None:
    x = np.concatenate([each["x"] for each in networks.pictures(rows, size=64, seed=99)])
    (found,) = built.engine(x=x).values()
    assert found.shape[0] == rows
    assert cosine(found, reference(model, x)) >= 0.97


def test_the_file_is_the_engine(built: Built) -> None:
    loaded = ps.load(built.path)
    x = next(iter(networks.pictures(1, size=64, seed=5)))["x"]
    for name, array in built.engine(x=x).items():
        np.testing.assert_array_equal(loaded(x=x)[name], array)
    assert check(built.path).action == "run"


def test_every_precision_took_part_and_the_evidence_says_so(built: Built) -> None:
    assert {"onnxruntime", "openvino"} == {tactic.runtime for tactic in built.heard.timed}
    assert {"fp32", "int8"} <= {tactic.precision for tactic in built.heard.timed}
    evidence = built.engine.evidence
    assert evidence["accuracy"]["passed"] is True
    assert evidence["accuracy"]["inputs"] == "calibration data"
    assert evidence["accuracy"]["measured"] >= 0.98
    assert evidence["calibration"]["samples"] == 32
    timed = {(each["tactic"]["runtime"], each["tactic"]["precision"]) for each in evidence["timings"]}
    assert ("onnxruntime", "fp32") in timed


def test_what_was_chosen_is_the_fastest_that_passed(built: Built) -> None:
    """Each bucket's program is within the tolerance of the best that the gate let through."""
    evidence = built.engine.evidence
    refused = [each["tactic"] | {"shapes": ""} for each in evidence["refused"]]
    for at, bucket in enumerate(built.engine.manifest.buckets):
        passed = [
            each for each in evidence["timings"]
            if each["bucket"] == at and each["tactic"] | {"shapes": ""} not in refused
        ]  # fmt: skip
        confirmed = [each for each in passed if each["confirmed"]] or passed
        assert bucket.microseconds <= 1.03 * min(each["median_us"] for each in confirmed)


def test_regions_carry_the_names_of_the_source(built: Built, model: Path) -> None:
    names = {node.name for node in graph.load(model).graph}
    found = [name for region in built.engine.manifest.regions for name in region.nodes]
    assert len(found) > 3
    assert set(found) <= names


def test_many_threads_with_many_shapes(built: Built, model: Path) -> None:
    rows = [1, 2, 3, 4, 5, 8, 13]
    inputs = {n: np.concatenate([each["x"] for each in networks.pictures(n, size=64, seed=n)]) for n in rows}
    expected = {n: next(iter(built.engine(x=x).values())) for n, x in inputs.items()}
    wrong: list[str] = []

    def call(first: int) -> None:
        for turn in range(12):
            n = rows[(first + turn) % len(rows)]
            (found,) = built.engine(x=inputs[n]).values()
            if not np.allclose(found, expected[n], rtol=1e-4, atol=1e-4):
                wrong.append(f"{n} rows: off by {np.abs(found - expected[n]).max()}")

    threads = [threading.Thread(target=call, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_a_library_computes_wrongly_is_sealed_at_no_shape(tmp_path: Path) -> None:
    """OpenVINO in eight bits with a free batch; what it computes rightly, for one shape, has a verdict of its own."""
    path = tmp_path / "recurrent.onnx"
    graph.save(networks.recurrent(), path)
    calibration = list(networks.pictures(40, size=64))
    settings = {"shapes": SHAPES, "calibration": calibration, "accuracy": "cosine>=0.998", "budget_seconds": 30}
    with closing_build(path, **settings) as engine:
        for rows in (1, 2, 4, 5, 8, 11):
            x = np.concatenate([each["x"] for each in networks.pictures(rows, size=64, seed=70 + rows)])
            (found,) = engine(x=x).values()
            assert min(cosine(a, b) for a, b in zip(found, reference(path, x), strict=True)) > 0.997
        told = from_json(engine.evidence)
        refused = {each.tactic for each in told.refused}
        own = {(each.tactic, each.bucket) for each in told.alone if each.passed}
        for bucket, tactic in enumerate(told.chosen):
            assert (tactic, bucket) in own or replace(tactic, shapes="dynamic") not in refused


def test_without_calibration_there_is_no_int8(model: Path) -> None:
    heard = Heard()
    with closing_build(model, shapes="x:1x3x64x64", budget_seconds=8, progress=heard) as engine:
        assert {tactic.precision for tactic in heard.timed} <= {"fp32", "bf16", "fp16"}
        assert engine.evidence["calibration"] is None
        assert engine.evidence["accuracy"]["inputs"] == "noise"


def test_a_budget_of_nothing_still_gives_a_safe_engine(model: Path) -> None:
    with closing_build(model, shapes=SHAPES, budget_seconds=0.001) as engine:
        assert {program.tactic for program in engine.manifest.programs} == {Tactic("onnxruntime", "fp32")}


def test_precision_is_a_floor(model: Path, samples: Sequence[Mapping[str, Array]]) -> None:
    heard = Heard()
    build_and_close(
        model, shapes="x:1x3x64x64", precision="fp32", calibration=samples, budget_seconds=8, progress=heard
    )
    assert {tactic.precision for tactic in heard.timed} == {"fp32"}


def test_nothing_is_sealed_that_fails(model: Path, tmp_path: Path) -> None:
    def never(run: Any) -> Array:
        """Scores that depend on who is asked: the reference is first."""
        calls.append(1)
        return np.full(8, 1.0 if len(calls) == 1 else 0.0)

    calls: list[int] = []
    with pytest.raises(AccuracyError, match="nothing that runs passes"):
        ps.build(
            model, output=tmp_path / "no.engine", shapes="x:1x3x64x64", accuracy=ps.Metric(never, 0.1), budget_seconds=5
        )
    assert list(tmp_path.iterdir()) == []


def test_preprocessing_and_reductions_are_part_of_the_engine(model: Path) -> None:
    raw = np.random.default_rng(3).integers(0, 256, (5, 64, 64, 3)).astype(np.uint8)
    name = graph.signature(graph.load(model))[1][0].name
    plain = reference(model, ((raw.astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2).copy())
    with closing_build(
        model,
        shapes="x:1x64x64x3,4x64x64x3,8x64x64x3",
        preprocess="x:uint8,nhwc,mean=127.5,std=127.5",
        reduce=f"{name}:argmax@1",
        precision="fp32",
        budget_seconds=20,
    ) as engine:
        found = engine(x=raw)
    np.testing.assert_array_equal(found[f"{name}_index"], plain.argmax(axis=1))
    np.testing.assert_allclose(found[f"{name}_value"], plain.max(axis=1), rtol=1e-3, atol=1e-4)
    assert set(found) == {f"{name}_index", f"{name}_value"}


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"precision": "fp7"}, InvalidArgument, "precision"),
        ({"device": "cuda:0"}, Unsupported, "cuda:0"),
        ({"shapes": "y:1x3x64x64"}, InvalidArgument, "'y'"),
        ({"shapes": "x:1x4x32x32"}, InvalidArgument, "x"),
        ({"accuracy": "better"}, InvalidArgument, "accuracy"),
        ({"calibration": "nowhere.npz"}, NotFound, "nowhere.npz"),
        ({"budget_seconds": -1.0}, InvalidArgument, "budget"),
        ({"workspace_bytes": 1, "budget_seconds": 2.0, "shapes": "x:1x3x64x64"}, InvalidArgument, "workspace"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_can_not_be_are_refused(
    model: Path, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ps.build(model, **settings)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model at all")
    with pytest.raises(ModelLoadError, match=r"model\.onnx"):
        ps.build(path)
    with pytest.raises(NotFound):
        ps.build(tmp_path / "none.onnx")


def test_a_model_that_is_no_model_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="expected a path or a torch module"):
        ps.build(ir.DataType.FLOAT)


def closing_build(model: Path, **settings: Any) -> Any:
    import contextlib

    return contextlib.closing(ps.build(model, **settings))


def build_and_close(model: Path, **settings: Any) -> None:
    ps.build(model, **settings).close()
