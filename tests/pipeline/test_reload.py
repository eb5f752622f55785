"""Models come and go under pipelines that call them: a reload loses no call, and what is gone is named."""

import threading
from pathlib import Path

import numpy as np

import penstock as ps
from tests.serve.calls import Client, at_once, eventually, infer, serving
from tests.servers.cases import assert_clean_error
from tests.servers.onnx_files import write_scale
from tests.servers.raw import dumps

X = np.arange(4, dtype=np.float32)
RELOADS, CLIENTS = 8, 4


@ps.pipeline
async def scaled(x: ps.F32[4]) -> ps.F32[-1, 4]:
    return await ps.gather(ps.use("scale")(x) for _ in range(5))


def test_reloads_of_a_model_lose_no_call_of_pipelines_under_way(tmp_path: Path) -> None:
    """All clients go on until the last reload is done; each answer is that of the old or of the new model."""
    write_scale(tmp_path / "scale/1/model.onnx", 1)
    over, answered = threading.Event(), []

    def work(client: Client, number: int) -> None:
        if number == 0:
            for factor in range(2, 2 + RELOADS):
                write_scale(tmp_path / "scale/1/model.onnx", factor)
                assert client.ask("POST", "/v2/repository/models/scale/load", dumps()).status == 200
                before = len(answered)
                eventually("some are answered by it", lambda before=before: len(answered) > before + CLIENTS)  # type: ignore[misc]
            over.set()
            return
        while not over.is_set():
            rows = client.infer("scaled", x=X).arrays["output"]
            factors = rows[:, 1]
            assert set(factors.tolist()) <= set(range(1, 2 + RELOADS))
            np.testing.assert_array_equal(rows, factors[:, None] * X)
            answered.append(factors)

    options = {"model_repository": tmp_path, "model_control_mode": "explicit", "load_models": ["scale"]}
    with serving(scaled, **options) as server:
        try:
            at_once(server, work, 1 + CLIENTS)
        finally:
            over.set()
        assert server.pipeline_statistics("scaled").request.errors == 0
        np.testing.assert_array_equal(infer(server, "scaled", x=X).arrays["output"][0], (1 + RELOADS) * X)


def test_a_model_may_be_added_after_the_pipeline_that_calls_it_and_is_missed_by_name_until_then(tmp_path: Path) -> None:
    write_scale(tmp_path / "scale/1/model.onnx", 3)
    with (
        serving(scaled, model_repository=tmp_path, model_control_mode="explicit") as server,
        Client(server) as client,
    ):
        answer = client.infer("scaled", x=X)
        assert answer.status == 404
        assert_clean_error(answer.reply, ("call of 'scale'", "not found"))
        assert client.ask("POST", "/v2/repository/models/scale/load", dumps()).status == 200
        np.testing.assert_array_equal(client.infer("scaled", x=X).arrays["output"][4], X * 3)
        assert client.ask("POST", "/v2/repository/models/scale/unload", dumps()).status == 200
        answer = client.infer("scaled", x=X)
        assert answer.status == 404
        assert_clean_error(answer.reply, ("call of 'scale'", "no available versions"))


def test_a_pipeline_is_unloaded_once_its_requests_are_answered(tmp_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def wait(x: object) -> object:
        inside.set()
        go_on.wait()
        return x

    @ps.pipeline
    async def body(x: ps.F32[4]) -> ps.F32[4]:
        return await ps.cpu(wait, x)

    with (
        serving(body, model_repository=tmp_path, model_control_mode="explicit") as server,
        Client(server) as client,
        Client(server) as other,
    ):
        client.send("body", {"x": X})
        assert inside.wait(20)
        assert other.ask("POST", "/v2/repository/models/body/unload", dumps()).status == 200
        assert other.infer("body", x=X).status == 404
        go_on.set()
        np.testing.assert_array_equal(client.answer().arrays["output"], X)
