"""Engines in service: as a backend, from a repository, as a bare file and as an object, asked over HTTP."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock.backends.engine import BorrowedEngineBackend, EngineBackend
from penstock.engine import fingerprint, open_engine
from penstock.engine.plan import Reduction
from penstock.errors import InvalidArgument, Unavailable
from penstock.repository import bare
from penstock.tensors import TensorSpec
from tests import onnx_models
from tests.engine.engines import ORT, STATIC, Plan, profile, seal
from tests.serve.calls import Client, at_once, infer, serving


def plan(folder: Path) -> Plan:
    """y = 3x for up to 8 rows: static programs for 1 and 4, a dynamic one for the rest."""
    one, four, eight = ({"x": (rows, 4)} for rows in (1, 4, 8))
    return Plan(
        onnx_models.scale(folder / "scale.onnx", 3),
        profile("x", (1, 4), (4, 4), (8, 4)),
        [(ORT, {}), (STATIC, one), (STATIC, four)],
        [(one, 1, 10), (four, 2, 20), (eight, 0, 40)],
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "scale" / "1"
    folder.mkdir(parents=True)
    seal(plan(tmp_path), folder / "model.engine")
    return tmp_path / "models"


def configuration(server: ps.Server, model: str) -> dict[str, Any]:
    with Client(server) as client:
        found: dict[str, Any] = json.loads(client.get(f"/v2/models/{model}/config").body)
    return found


def test_an_engine_serves_as_a_backend(tmp_path: Path) -> None:
    backend = EngineBackend(open_engine(seal(plan(tmp_path), tmp_path / "m.engine")))
    assert (backend.name, backend.platform) == ("penstock_engine", "penstock_engine")
    assert backend.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert backend.outputs == (TensorSpec("y", "FP32", (-1, 4)),)
    assert (backend.max_batch_size, backend.fresh_outputs) == (8, True)
    instance = backend.instance(0, 1, None)
    for rows in (1, 3, 9):
        x = np.ones((rows, 4), np.float32)
        np.testing.assert_array_equal(instance.execute({"x": x})["y"], x * 3)
    instance.close()
    backend.close()
    with pytest.raises(Unavailable):
        backend.instance(0, 1, None)


def test_a_borrowed_engine_outlives_its_backend(tmp_path: Path) -> None:
    engine = open_engine(seal(plan(tmp_path), tmp_path / "m.engine"))
    BorrowedEngineBackend(engine).close()
    np.testing.assert_array_equal(engine(x=np.ones((1, 4), np.float32))["y"], [[3, 3, 3, 3]])


def test_an_engine_is_served_from_a_repository_with_a_configuration_of_its_own_making(repository: Path) -> None:
    with serving(model_repository=repository) as server:
        found = configuration(server, "scale")
        assert found["backend"] == found["platform"] == "penstock_engine"
        assert found["max_batch_size"] == 8
        assert found["default_model_filename"] == "model.engine"
        assert [(each["name"], each["dims"]) for each in found["input"]] == [("x", [4])]
        assert "dynamic_batching" in found
        for rows in (1, 3, 4, 8):
            x = np.random.default_rng(rows).random((rows, 4), np.float32)
            np.testing.assert_array_equal(infer(server, "scale", x=x).arrays["y"], x * np.float32(3))
        assert infer(server, "scale", x=np.ones((9, 4), np.float32)).status == 400


def test_many_clients_share_its_batches_and_get_their_own_rows(repository: Path) -> None:
    (repository / "scale" / "config.pbtxt").write_text("instance_group [{ count: 2 }]")
    with serving(model_repository=repository) as server:

        def work(client: Client, number: int) -> None:
            random = np.random.default_rng(number)
            for _ in range(20):
                x = random.random((int(random.integers(1, 9)), 4), np.float32)
                np.testing.assert_array_equal(client.infer("scale", x=x).arrays["y"], x * np.float32(3))

        at_once(server, work, 16)


def test_an_engine_goes_before_the_model_it_was_built_from(repository: Path) -> None:
    onnx_models.scale(repository / "scale" / "1" / "model.onnx", 5)
    with serving(model_repository=repository) as server:
        assert infer(server, "scale", x=np.ones((1, 4), np.float32)).arrays["y"][0, 0] == 3
    (repository / "scale" / "config.pbtxt").write_text('backend: "onnxruntime"')
    with serving(model_repository=repository) as server:
        assert infer(server, "scale", x=np.ones((1, 4), np.float32)).arrays["y"][0, 0] == 5


@pytest.mark.parametrize(
    ("config", "size"), [("max_batch_size: 2", 2), ("max_batch_size: 100", 100), ("max_batch_size: 0", 0)]
)
def test_a_written_batch_size_counts(config: str, size: int, repository: Path) -> None:
    (repository / "scale" / "config.pbtxt").write_text(config)
    with serving(model_repository=repository) as server:
        assert configuration(server, "scale")["max_batch_size"] == size
        x = np.ones((size or 5, 4), np.float32)
        np.testing.assert_array_equal(infer(server, "scale", x=x).arrays["y"], x * 3)


@pytest.mark.parametrize("data", [b"", b"not an engine", None])
def test_a_damaged_engine_keeps_its_model_out_and_the_server_alive(data: bytes | None, repository: Path) -> None:
    path = repository / "scale" / "1" / "model.engine"
    path.write_bytes(path.read_bytes()[:-100] if data is None else data)
    with serving(model_repository=repository, exit_on_error=False) as server:
        with Client(server) as client:
            assert client.get("/v2/health/live").status == 200
            assert client.get("/v2/models/scale/ready").status == 400
            (row,) = json.loads(client.ask("POST", "/v2/repository/index", b"{}").body)
        assert "model.engine is no engine, or it is cut" in row["reason"]
        assert str(repository) not in row["reason"]


def test_an_engine_of_another_machine_is_compiled_anew_and_served(repository: Path, tmp_path: Path) -> None:
    machine = replace(fingerprint.here(), features=("avx4096",))
    seal(replace(plan(tmp_path), machine=machine), repository / "scale" / "1" / "model.engine")
    with serving(model_repository=repository) as server:
        x = np.ones((3, 4), np.float32)
        np.testing.assert_array_equal(infer(server, "scale", x=x).arrays["y"], x * 3)


def test_a_bare_engine_and_one_in_memory_are_served(tmp_path: Path) -> None:
    path = seal(plan(tmp_path), tmp_path / "tripled.engine")
    with serving() as server:
        server.add(path)
        server.add(ps.load(path), name="in-memory")
        for name in ("tripled", "in-memory"):
            assert configuration(server, name)["max_batch_size"] == 8
            assert configuration(server, name)["platform"] == "penstock_engine"
            x = np.ones((8, 4), np.float32)
            np.testing.assert_array_equal(infer(server, name, x=x).arrays["y"], x * 3)


def test_a_runtime_for_an_engine_is_refused(tmp_path: Path) -> None:
    path = seal(plan(tmp_path), tmp_path / "m.engine")
    with pytest.raises(InvalidArgument, match=r"backend 'openvino' does not run 'm\.engine'"):
        bare(path, runtime="openvino")


def test_shapes_that_no_profile_takes_are_refused_with_its_limits(tmp_path: Path) -> None:
    """What clients see of a dimension that is free within limits is -1; the limits are in the answer."""
    model = onnx_models.double(tmp_path / "m.onnx", ("n", "width"))
    wide = Plan(model, profile("x", (1, 4), (4, 8), (8, 16)), [(ORT, {})], [({"x": (4, 8)}, 0, 10)])
    with serving() as server:
        server.add(seal(wide, tmp_path / "m.engine"))
        x = np.ones((2, 16), np.float32)
        np.testing.assert_array_equal(infer(server, "m", x=x).arrays["y"], x * 2)
        answer = infer(server, "m", x=np.ones((2, 17), np.float32))
        assert answer.status == 400
        assert "x [2, 17] are outside what the engine was built for: x [1, 4] to x [8, 16]" in answer.error
        assert infer(server, "m", x=x).status == 200


def test_reductions_are_what_clients_get(tmp_path: Path) -> None:
    outputs = (TensorSpec("y_index", "INT64", (-1,)), TensorSpec("y_value", "FP32", (-1,)))
    reduced = replace(
        plan(tmp_path), programs=[(ORT, {})], buckets=(), reductions=(Reduction("y", 1),), outputs=outputs
    )
    with serving() as server:
        server.add(seal(reduced, tmp_path / "m.engine"))
        found = infer(server, "m", x=np.array([[1, 5, 2, 3], [7, 1, 1, 7]], np.float32)).arrays
        assert {name: array.tolist() for name, array in found.items()} == {"y_index": [1, 0], "y_value": [15, 21]}
