"""Models whose configuration asks for an engine: served as they are until it is there, then by it, with no gap."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import penstock as ps
from penstock.serve.accelerator import ENOUGH_BATCHES
from tests.serve.calls import Array, Client, eventually, infer, serving

# Building takes some seconds of two cores, more where they are busy.
BUILD_SECONDS = 120.0
WIDTH = 1 << 18
STEPS = 24
X = np.linspace(-1, 1, WIDTH, dtype=np.float32)[None]

ENGINE, PLAIN = "penstock_engine", "onnxruntime_onnx"


def write_chain(path: Path, size: int | str = WIDTH) -> None:
    """y = x after many cheap steps over much data: FP32 [batch, size]. Joined into one they take a part of the time,
    and the runtime that serves the model as it is does not join them."""
    nodes, constants, last = [], [], "x"
    for step in range(STEPS):
        scale, shift = (f"{kind}{step}" for kind in ("scale", "shift"))
        constants += [
            helper.make_tensor(scale, TensorProto.FLOAT, [1], [1.01]),
            helper.make_tensor(shift, TensorProto.FLOAT, [1], [0.02]),
        ]
        nodes += [
            helper.make_node("Mul", [last, scale], [f"m{step}"]),
            helper.make_node("Add", [f"m{step}", shift], [f"a{step}"]),
            helper.make_node("Relu", [f"a{step}"], [f"r{step}"] if step < STEPS - 1 else ["y"]),
        ]
        last = f"r{step}"
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", shapes[:1], shapes[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))


def chained(x: Array) -> Array:
    for _ in range(STEPS):
        x = np.maximum(x * np.float32(1.01) + np.float32(0.02), 0)
    return x


def put(folder: Path, *, size: int | str = WIDTH, batch: int = 4, **parameters: str) -> Path:
    """A repository with the one model `chain`."""
    write_chain(folder / "chain/1/model.onnx", size)
    lines = "".join(f'parameters {{ key: "{key}" value: "{value}" }} ' for key, value in parameters.items())
    accelerator = f'cpu_execution_accelerator : [ {{ name : "openvino" {lines} }} ]'
    (folder / "chain/config.pbtxt").write_text(
        f"max_batch_size: {batch}\noptimization {{ execution_accelerators {{ {accelerator} }} }}\n"
    )
    return folder


def platform(server: ps.Server) -> str:
    with Client(server) as client:
        return str(json.loads(client.get("/v2/models/chain").body)["platform"])


def reason(server: ps.Server) -> str:
    """What the index says of the only model, which is in service."""
    with Client(server) as client:
        (row,) = json.loads(client.ask("POST", "/v2/repository/index", b"{}").body)
    assert row["state"] == "READY"
    return str(row.get("reason", ""))


def children(folder: Path) -> list[int]:
    """Processes that keep their temporary files beneath the folder: a build, and everything it started."""
    wanted = f"TMPDIR={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [each for each in found if each != os.getpid()]


@contextmanager
def asked_all_the_time(server: ps.Server, ask: Callable[[Client], None], clients: int = 2) -> Iterator[list[int]]:
    """Clients that never pause; yields how often they asked. What they raise is raised at the end."""
    over = threading.Event()
    counts = [0] * clients

    def run(server_client: Client, number: int) -> None:
        with server_client as client:
            while not over.is_set():
                ask(client)
                counts[number] += 1

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(run, Client(server), number) for number in range(clients)]
        try:
            yield counts
        finally:
            over.set()
        for each in running:
            each.result()


EXPECTED = chained(X)


def check_answer(client: Client) -> None:
    np.testing.assert_allclose(client.infer("chain", x=X).arrays["y"], EXPECTED, rtol=1e-3)


def test_the_model_answers_until_the_engine_does_and_no_request_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "penstock")
    repository, cache = put(tmp_path / "models", batch=1, budget="15s"), tmp_path / "cache"
    with serving(model_repository=repository, engine_cache=cache) as server:
        assert platform(server) == PLAIN
        assert "serves as it is" in reason(server)
        with asked_all_the_time(server, check_answer) as counts:
            eventually("the build is over", lambda: "serves as it is: an" not in reason(server), BUILD_SECONDS)
            assert (reason(server), platform(server)) == ("", ENGINE)
            before = list(counts)
            eventually("it is asked, too", lambda: all(now > then for now, then in zip(counts, before, strict=True)))
        assert reason(server) == ""
        with Client(server) as client:
            assert client.statistics("chain")["inference_stats"]["fail"]["count"] == 0
        eventually("nothing but the engine is left", lambda: len(list(cache.iterdir())) == 1)
    assert "took over from onnxruntime" in caplog.text
    (engine,) = cache.iterdir()
    assert engine.suffix == ".engine"
    assert not list(repository.rglob("*.engine"))

    with serving(model_repository=repository, engine_cache=cache) as server:
        assert platform(server) == ENGINE  # from the first moment on
        with Client(server) as client:
            check_answer(client)

    engine.write_bytes(engine.read_bytes()[:1000])
    with serving(model_repository=repository, engine_cache=cache) as server:
        assert platform(server) == PLAIN
        with Client(server) as client:
            check_answer(client)


def test_shapes_are_learnt_from_what_is_served_and_others_are_answered_as_before(tmp_path: Path) -> None:
    repository, cache = put(tmp_path / "models", size="size", batch=1, budget="15s"), tmp_path / "cache"
    with serving(model_repository=repository, engine_cache=cache) as server:
        assert "enough requests" in reason(server)
        with Client(server) as client:
            for turn in range(ENOUGH_BATCHES):
                client.infer("chain", x=X[:, : WIDTH // (1 + turn % 2)])
        eventually("the build is over", lambda: "serves as it is: an" not in reason(server), BUILD_SECONDS)
        assert (reason(server), platform(server)) == ("", ENGINE)
        for width in (7, WIDTH // 2, WIDTH // 2 + 5, WIDTH, WIDTH + 1):  # between two that were seen, and beyond
            x = np.ones((1, width), np.float32)
            np.testing.assert_allclose(infer(server, "chain", x=x).arrays["y"], chained(x), rtol=1e-3)


def test_a_build_that_fails_leaves_the_model_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    repository, cache = put(tmp_path / "models", shapes="absent:1x4"), tmp_path / "cache"
    with serving(model_repository=repository, engine_cache=cache) as server:
        eventually("the build has failed", lambda: "the build failed" in reason(server), BUILD_SECONDS)
        assert "shapes name an input 'absent'" in reason(server)
        assert str(tmp_path) not in reason(server)
        assert platform(server) == PLAIN
        with Client(server) as client:
            check_answer(client)
            assert client.get("/v2/health/ready").status == 200
        eventually("nothing is left of it", lambda: list(cache.iterdir()) == [])
    assert [each.levelname for each in caplog.records if "the build failed" in each.message] == ["WARNING"]


@pytest.mark.parametrize("way", ["stop", "unload", "reload"])
def test_a_build_ends_with_its_model(way: str, tmp_path: Path) -> None:
    repository, cache = put(tmp_path / "models", budget="1h"), tmp_path / "cache"
    options = {"model_control_mode": "explicit", "load_models": ["chain"]}
    with serving(model_repository=repository, engine_cache=cache, **options) as server:
        # The build, and a library that it is trying.
        eventually("the build has children", lambda: len(children(cache)) >= 2, BUILD_SECONDS)
        if way != "stop":
            with Client(server) as client:
                if way == "reload":
                    (repository / "chain/config.pbtxt").write_text("max_batch_size: 4")
                name = "load" if way == "reload" else "unload"
                assert client.ask("POST", f"/v2/repository/models/chain/{name}", b"{}").status == 200
            eventually("its processes are gone", lambda: children(cache) == [])
            eventually("its files are gone", lambda: list(cache.iterdir()) == [])
    eventually("its processes are gone", lambda: children(cache) == [])
    assert list(cache.iterdir()) == []


def test_a_cache_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    repository, cache = put(tmp_path / "models"), tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    with serving(model_repository=repository, engine_cache=cache) as server:
        eventually("it is refused", lambda: "can be written to by others" in reason(server))
        assert platform(server) == PLAIN
