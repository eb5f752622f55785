"""Warm-up before a model is ready: every instance on its own thread, past the statistics, and what failures leave."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import penstock as ps
from penstock.errors import ExecutionError, PenstockError
from penstock.repository import Model, Repository, from_function, messages, warmup
from penstock.serve.catalogue import Catalogue
from penstock.serve.engine_cache import EngineCache
from penstock.serve.warming import warm_up
from tests import onnx_models
from tests.engine.engines import OPENVINO, ORT, Plan, profile, seal
from tests.serve.calls import SECONDS, Array, Client, batch_sizes, eventually, infer, serving
from tests.servers.onnx_files import write_scale

X = np.arange(4, dtype=np.float32)[None]
INSTANCES = 3


def one(source: str, datatype: str = "TYPE_FP32", dims: Sequence[int] = (4,)) -> str:
    sizes = ", ".join(map(str, dims))
    return f'inputs {{ key: "x" value {{ data_type: {datatype} dims: [ {sizes} ] {source} }} }}'


def sample(inputs: str, *, name: str = "s", batch_size: int = 1, count: int = 0) -> str:
    return f'model_warmup [ {{ name: "{name}" batch_size: {batch_size} count: {count} {inputs} }} ]\n'


ZEROS = one("zero_data: true")


@dataclass
class Warm:
    """A function with warm-up samples, as a server takes what makes models of itself."""

    function: ps.ModelFunction
    text: str

    @property
    def name(self) -> str:
        return self.function.name

    def served(self) -> list[Model]:
        model = from_function(self.function)
        model.config.message.MergeFrom(messages.from_text(self.text, "a test"))
        model.warmup = warmup.samples(model.config, Path(), Path())
        return [model]


def echo(function: Callable[[Array], Any], **settings: Any) -> ps.ModelFunction:
    return ps.model(name="m", inputs={"x": ps.F32[4]}, outputs={"y": ps.F32[4]}, **settings)(function)


@contextmanager
def warmed(function: Callable[[Array], Any], text: str, **settings: Any) -> Iterator[ps.Server]:
    server = ps.Server(http_port=0, grpc_port=None, metrics_port=0)
    server.add(Warm(echo(function, **settings), text))
    with server:
        yield server


def load(client: Client, name: str = "m") -> tuple[int, str]:
    reply = client.ask("POST", f"/v2/repository/models/{name}/load", b"{}")
    return reply.status, "" if reply.status == 200 else reply.error


# ---- who runs what ----


def test_every_instance_runs_every_sample_on_its_own_thread() -> None:
    seen: dict[str, list[tuple[int, ...]]] = {}

    def function(x: Array) -> Array:
        seen.setdefault(threading.current_thread().name, []).append(x.shape)
        return x

    text = sample(ZEROS, name="single", count=2) + sample(ZEROS, name="full", batch_size=8)
    with warmed(function, text, max_batch_size=8, instances=INSTANCES):
        assert seen == {f"penstock-m-1-{number}": [(1, 4), (1, 4), (8, 4)] for number in range(INSTANCES)}


def test_instances_of_several_groups_are_warmed() -> None:
    seen: set[str] = set()

    def function(x: Array) -> Array:
        seen.add(threading.current_thread().name)
        return x

    groups = "instance_group [ { count: 1 }, { count: 2 } ]\n"
    with warmed(function, groups + sample(ZEROS), max_batch_size=8):
        assert seen == {f"penstock-m-1-{number}" for number in range(4)}  # the function's own group comes first


def test_a_function_that_writes_to_its_inputs_spoils_no_other_execution() -> None:
    seen: list[float] = []

    def function(x: Array) -> Array:
        seen.append(float(x.sum()))
        x += 1
        return x

    with warmed(function, sample(ZEROS, count=3, batch_size=2), max_batch_size=2, instances=2) as server:
        assert seen == [0.0] * 6
        np.testing.assert_array_equal(infer(server, "m", x=X).arrays["y"], X + 1)


def test_statistics_and_metrics_do_not_see_it() -> None:
    with warmed(lambda x: x, sample(ZEROS, count=5, batch_size=2), max_batch_size=8, instances=2) as server:
        with Client(server) as client:
            statistics = client.statistics("m")
            assert (statistics["inference_count"], statistics["execution_count"]) == (0, 0)
            assert {key: value["count"] for key, value in statistics["inference_stats"].items() if value["count"]} == {}
            assert batch_sizes(statistics) == {}
            client.infer("m", x=X)
            assert batch_sizes(client.statistics("m")) == {1: 1}
        page = metrics(server)
        for name in ("nv_inference_request_success", "nv_inference_count", "nv_inference_exec_count"):
            (line,) = [line for line in page.splitlines() if line.startswith(f"{name}{{") and 'model="m"' in line]
            assert line.endswith(" 1"), line


def metrics(server: ps.Server) -> str:
    client = Client(server)
    assert server.metrics_port is not None
    client.connection.port = server.metrics_port
    with client:
        return client.get("/metrics").body.decode()


def test_a_model_is_ready_only_afterwards() -> None:
    entered, go = threading.Event(), threading.Event()

    def function(x: Array) -> Array:
        entered.set()
        assert go.wait(SECONDS)
        return x

    with serving() as server, Client(server) as client:
        adding = threading.Thread(target=server.add, args=[Warm(echo(function, max_batch_size=4), sample(ZEROS))])
        adding.start()
        try:
            assert entered.wait(SECONDS)
            assert client.get("/v2/models/m/ready").status == 400
            assert infer(server, "m", x=X).status != 200
            rows = json.loads(client.ask("POST", "/v2/repository/index", b'{"ready": true}').body)
            assert rows == []
        finally:
            go.set()
            adding.join(SECONDS)
        assert client.get("/v2/models/m/ready").status == 200
        np.testing.assert_array_equal(infer(server, "m", x=X).arrays["y"], X)


# ---- what fails ----


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("only even rows"), "ValueError: only even rows"),
        (ExecutionError("the library says no"), "the library says no"),
        (FileNotFoundError(2, "No such file or directory", "/secret/place"), "FileNotFoundError: No such file"),
        (SystemExit(3), "SystemExit: 3"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, BaseException) else "",
)
def test_one_instance_that_fails_fails_the_load(
    error: BaseException, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The second one; what the first has is given back, and a mended model takes the name."""
    broken = True

    def function(x: Array) -> Array:
        if broken and threading.current_thread().name.endswith("-1"):
            raise error
        return x

    model = Warm(echo(function, max_batch_size=4, instances=INSTANCES), sample(ZEROS, name="full", batch_size=4))
    with serving() as server:
        with pytest.raises(PenstockError) as caught:
            server.add(model)
        message = caught.value.message
        for word in ("failed to load 'm'", "version 1", "sample 'full'", "input", "'x' [4, 4]", "instance 1", words):
            assert word in message
        assert "/secret" not in message
        assert caught.value.http_status == 400
        assert [record.exc_info is not None for record in caplog.records if "sample 'full' failed" in record.message]
        eventually("its threads have ended", lambda: not threads("penstock-m-"))
        assert infer(server, "m", x=X).status != 200
        broken = False
        server.add(model)
        np.testing.assert_array_equal(infer(server, "m", x=X).arrays["y"], X)


def threads(prefix: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)]


def write_table(path: Path, factor: float) -> None:
    """y = table[x] * factor for INT64 [batch, 1]: an index beyond the table is an error when it runs."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["found"]), helper.make_node("Mul", ["found", "factor"], ["y"])],
        "table",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [
            helper.make_tensor("table", TensorProto.FLOAT, [3], [1, 2, 3]),
            helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx_models.save(model, path)


def test_a_reload_that_fails_leaves_the_old_version_in_service(tmp_path: Path) -> None:
    """Not before it is warm is a version put in the place of another, and not at all when it fails."""
    folder, row = tmp_path / "m", np.ones((1, 1), np.int64)
    data = folder / "warmup/raw"
    data.parent.mkdir(parents=True)
    data.write_bytes(np.array([2], "<i8").tobytes())
    write_table(folder / "1/model.onnx", 10)
    text = sample(one('input_data_file: "raw"', "TYPE_INT64", [1]), name="index")
    (folder / "config.pbtxt").write_text("instance_group [ { count: 2 } ]\n" + text)

    options = {"model_control_mode": "explicit", "load_models": ["m"]}
    with serving(model_repository=tmp_path, **options) as server, Client(server) as client:
        assert client.infer("m", x=row).arrays["y"].item() == 20
        write_table(folder / "1/model.onnx", 100)
        data.write_bytes(np.array([3], "<i8").tobytes())
        status, error = load(client)
        assert status == 400
        for word in ("failed to load 'm'", "version 1", "sample 'index'", "'x' [1, 1]", "instance 0"):
            assert word in error
        assert str(tmp_path) not in error
        data.write_bytes(bytes(7))
        status, error = load(client)
        assert status == 400
        assert "sample 'index': input 'x': its file has 7 bytes, expected 8" in error
        assert client.infer("m", x=row).arrays["y"].item() == 20
        assert client.get("/v2/models/m/ready").status == 200
        assert client.statistics("m")["inference_stats"]["fail"]["count"] == 0
        data.write_bytes(np.array([0], "<i8").tobytes())
        assert load(client) == (200, "")
        assert client.infer("m", x=row).arrays["y"].item() == 200


# ---- the libraries ----


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_models_of_every_library_are_warmed(backend: str, tmp_path: Path) -> None:
    write_scale(tmp_path / "m/1/model.onnx", 3)
    text = sample(one("random_data: true"), batch_size=4, count=2) + sample(ZEROS)
    (tmp_path / "m/config.pbtxt").write_text(f'backend: "{backend}"\ninstance_group [ {{ count: 2 }} ]\n' + text)
    with serving(model_repository=tmp_path) as server, Client(server) as client:
        assert client.statistics("m")["execution_count"] == 0
        np.testing.assert_array_equal(client.infer("m", x=X).arrays["y"], 3 * X)


@pytest.mark.parametrize("tactic", [ORT, OPENVINO], ids=["onnxruntime", "openvino"])
def test_engines_are_warmed_and_a_shape_that_no_profile_takes_fails_the_load(tactic: Any, tmp_path: Path) -> None:
    source = onnx_models.scale(tmp_path / "source.onnx", 3, ("n", "size"))
    (tmp_path / "models/m/1").mkdir(parents=True)
    plan = Plan(source, profile("x", (1, 4), (2, 4), (4, 8)), [(tactic, {})])
    seal(plan, tmp_path / "models/m/1/model.engine")
    config = tmp_path / "models/m/config.pbtxt"
    groups = "instance_group [ { count: 2 } ]\n"
    config.write_text(groups + sample(one("random_data: true", dims=[8]), batch_size=4))
    with serving(model_repository=tmp_path / "models", model_control_mode="explicit", load_models="*") as server:
        np.testing.assert_array_equal(infer(server, "m", x=X).arrays["y"], 3 * X)
        config.write_text(groups + sample(one("random_data: true", dims=[9])))
        with Client(server) as client:
            status, error = load(client)
            assert status == 400
            assert "sample 's' with inputs 'x' [1, 9] failed on instance 0" in error
        np.testing.assert_array_equal(infer(server, "m", x=X).arrays["y"], 3 * X)


def test_a_model_that_an_engine_is_built_for_does_not_take_it_for_what_clients_send(tmp_path: Path) -> None:
    """Its shapes and how often they come are learnt from requests."""
    onnx_models.scale(tmp_path / "m/1/model.onnx", 3, ("n", "size"))
    accelerator = 'optimization { execution_accelerators { cpu_execution_accelerator : [ { name : "openvino" } ] } }\n'
    (tmp_path / "m/config.pbtxt").write_text(accelerator + sample(ZEROS, count=500))
    with serving(model_repository=tmp_path, engine_cache=tmp_path / "cache") as server:
        catalogue = server._catalogue
        assert isinstance(catalogue, Catalogue)
        (hosted,) = catalogue._entries["m"].hosted
        assert hosted.model.buildable is not None
        batches = hosted.model.buildable.plain.batches
        assert (batches.total, batches.kept(), batches.ranges()) == (0, [], {})
        infer(server, "m", x=X)
        assert batches.total == 1


def test_an_engine_from_the_cache_is_warmed_with_the_files_of_the_load(tmp_path: Path) -> None:
    """They lie in a private folder, which goes with the model that the engine replaces."""
    source = onnx_models.scale(tmp_path / "models/m/1/model.onnx", 3)
    config = {
        "max_batch_size": 4,
        "optimization": {"execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]}},
        "model_warmup": [{
            "name": "s", "batch_size": 1,
            "inputs": {"x": {"data_type": "TYPE_FP32", "dims": [4], "input_data_file": "raw"}},
        }],
    }  # fmt: skip
    text, files = json.dumps(config), {"1/model.onnx": source.read_bytes(), "warmup/raw": X.tobytes()}
    repository = Repository([tmp_path / "models"])
    cache = EngineCache(tmp_path / "cache")
    (model,) = repository.load("m", text, files)
    engine = seal(Plan(source, profile("x", (1, 4), (2, 4), (4, 4))), tmp_path / "built.engine")
    cache.put(cache.key(model), engine)
    model.close()
    options = {"model_control_mode": "explicit", "engine_cache": tmp_path / "cache"}
    with serving(model_repository=tmp_path / "models", **options) as server, Client(server) as client:
        assert server._catalogue is not None
        server._catalogue.load("m", text, files)
        assert json.loads(client.get("/v2/models/m").body)["platform"] == "penstock_engine"
        np.testing.assert_array_equal(client.infer("m", x=X).arrays["y"], 3 * X)


# ---- instances that lend memory, and ends ----


def test_batches_are_laid_out_where_the_instance_lends_memory() -> None:
    lent = np.zeros(32, np.uint8)
    seen: list[tuple[bool, float]] = []

    class Instance:
        def execute(self, inputs: dict[str, Array]) -> dict[str, Array]:
            x = inputs["x"]
            seen.append((np.shares_memory(x, lent), float(x.sum())))
            return {"y": x}

        def close(self) -> None: ...

    text = "".join(sample(one("random_data: true"), batch_size=rows) for rows in (2, 3))
    (model,) = Warm(echo(lambda x: x, max_batch_size=4), text).served()
    warm_up(model, 0, Instance(), {"x": lent}, lambda: False)
    assert [there for there, _ in seen] == [True, False]
    assert seen[0][1] / 2 == pytest.approx(seen[1][1] / 3)


def test_a_server_that_stops_does_not_wait_for_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "penstock")
    entered = threading.Event()
    failures: list[PenstockError] = []

    def function(x: Array) -> Array:
        entered.set()
        time.sleep(0.01)  # a model that takes its time: all of it would take minutes
        return x

    def add() -> None:
        try:
            server.add(Warm(echo(function, max_batch_size=4), sample(ZEROS, count=10_000)))
        except PenstockError as error:
            failures.append(error)

    with serving() as server:
        adding = threading.Thread(target=add)
        adding.start()
        assert entered.wait(SECONDS)
    adding.join(SECONDS)
    assert not adding.is_alive()
    assert "warm-up was ended" in failures[0].message
    eventually("its threads have ended", lambda: not threads("penstock-m-"))
