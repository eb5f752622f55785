"""Which models a server has: repositories and how they are followed, readiness, versions, instances."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock.errors import PenstockError
from penstock.repository import Repository
from tests.serve.calls import Array, Client, at_once, eventually, infer, serving
from tests.servers.onnx_files import write_scale

X = np.arange(4, dtype=np.float32)[None]
# Seconds between looks at the repository.
POLL = 0.05


def factor(server: ps.Server, model: str, version: str = "") -> float:
    """By what the model multiplies now; 0 while it answers no request."""
    answer = infer(server, model, version=version, x=X)
    return float(answer.arrays["y"][0, 1]) if answer.status == 200 else 0.0


def put(repository: Path, name: str, by: float, version: int = 1) -> Path:
    """Writes or replaces a model at once, as a careful deployment does: never half a file at its place."""
    path = repository / name / str(version) / "model.onnx"
    write_scale(path.with_suffix(".new"), by)
    path.with_suffix(".new").replace(path)
    return path


def put_broken(repository: Path, name: str) -> None:
    path = repository / name / "1/model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_bytes(b"this is no ONNX file")
    path.with_suffix(".new").replace(path)


def remove(repository: Path, name: str) -> None:
    (repository / name).rename(repository.parent / f"{name}-removed")


def ready(server: ps.Server) -> int:
    with Client(server) as client:
        return client.get("/v2/health/ready").status


def echo(name: str = "m", function: Callable[[Array], Any] = lambda x: x, **settings: Any) -> ps.ModelFunction:
    return ps.model(name=name, inputs={"x": ps.F32[4]}, outputs={"y": ps.F32[4]}, **settings)(function)


# ---- the repository ----


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    put(folder, "first", 2)
    return folder


def test_polling_follows_the_files(repository: Path) -> None:
    """New, changed, removed, broken, good again: each is seen without anybody asking."""
    with serving(model_repository=repository, model_control_mode="poll", repository_poll_seconds=POLL) as server:
        assert factor(server, "first") == 2
        put(repository, "new", 3)
        eventually("the new model serves", lambda: factor(server, "new") == 3)
        put(repository, "first", 5)
        eventually("the changed model serves", lambda: factor(server, "first") == 5)
        put(repository, "first", 7, version=2)
        eventually("the new version serves", lambda: factor(server, "first") == 7)
        remove(repository, "new")
        eventually("the removed model is gone", lambda: factor(server, "new") == 0)
        assert infer(server, "new", x=X).status == 404
        assert ready(server) == 200

        put(repository, "second", 1)
        eventually("the second model serves", lambda: factor(server, "second") == 1)
        put_broken(repository, "second")
        put(repository, "marker", 1)  # "second" comes after "marker", so two polls after it the broken file was seen
        eventually("the marker serves", lambda: factor(server, "marker") == 1)
        put(repository, "marker", 2)
        eventually("the marker is polled again", lambda: factor(server, "marker") == 2)
        assert factor(server, "second") == 1, "a broken file must leave the old model serving"
        put(repository, "second", 4)
        eventually("the mended model serves", lambda: factor(server, "second") == 4)


def test_a_repository_that_is_gone_for_a_while_is_said_once_and_read_again(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    away = repository.with_name("away")

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if "read" in record.getMessage()]

    with serving(model_repository=repository, model_control_mode="poll", repository_poll_seconds=POLL) as server:
        assert factor(server, "first") == 2
        repository.rename(away)
        eventually("it is said", lambda: lines() != [])
        with Client(server) as client:
            refused = client.ask("POST", "/v2/repository/index", b"")
        assert refused.status == 503
        assert f"'{repository.name}' can't be read" in refused.error
        assert str(repository.parent) not in refused.error
        time.sleep(5 * POLL)
        assert factor(server, "first") == 2
        put(away, "first", 5)
        away.rename(repository)
        eventually("the changed model serves", lambda: factor(server, "first") == 5)
    assert len(lines()) == 2, lines()
    assert not any(record.exc_info for record in caplog.records)


def test_a_directory_whose_name_no_model_can_have_is_said_once(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (repository / "my model" / "1").mkdir(parents=True)
    (repository / ".git").mkdir()
    with serving(model_repository=repository, model_control_mode="poll", repository_poll_seconds=POLL) as server:
        put(repository, "new", 3)
        eventually("the new model serves", lambda: factor(server, "new") == 3)
    (line,) = [record.getMessage() for record in caplog.records if "not served" in record.getMessage()]
    assert "'my model'" in line


def test_a_setting_without_effect_is_warned_of(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    (repository / "first" / "config.pbtxt").write_text("instance_group [ { rate_limiter { priority: 1 } } ]")
    with serving(model_repository=repository):
        pass
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("model 'first': rate_limiter has no effect")


def test_a_model_that_goes_while_the_repository_is_looked_at_is_gone(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed, and removed before its files are read: the next look must still know that it was in service."""
    put(repository, "new", 3)
    names, going = Repository.names, threading.Event()

    def listed(self: Repository) -> list[str]:
        found = names(self)
        if going.is_set() and "new" in found:
            remove(repository, "new")
        return found

    monkeypatch.setattr(Repository, "names", listed)
    with serving(model_repository=repository, model_control_mode="poll", repository_poll_seconds=POLL) as server:
        assert factor(server, "new") == 3
        going.set()
        eventually("the removed model is gone", lambda: factor(server, "new") == 0)
        assert infer(server, "new", x=X).status == 404
        assert factor(server, "first") == 2


def test_a_model_that_comes_to_lie_in_two_repositories_serves_until_it_is_in_none(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "others"
    other.mkdir()
    with serving(
        model_repository=[repository, other], model_control_mode="poll", repository_poll_seconds=POLL
    ) as server:
        put(other, "first", 5)
        eventually("the doubt is told", lambda: "'first' is in 2 repositories" in caplog.text)
        assert factor(server, "first") == 2
        remove(repository, "first")
        eventually("the one that is left serves", lambda: factor(server, "first") == 5)
        caplog.clear()
        put(repository, "first", 7)
        eventually("the doubt is told", lambda: "'first' is in 2 repositories" in caplog.text)
        (other / "first").rename(tmp_path / "gone")
        (repository / "first").rename(tmp_path / "gone too")
        eventually("the removed model is gone", lambda: factor(server, "first") == 0)


def test_a_broken_model_that_appears_makes_a_strict_server_unready_until_it_is_mended_or_gone(repository: Path) -> None:
    with serving(model_repository=repository, model_control_mode="poll", repository_poll_seconds=POLL) as server:
        put_broken(repository, "mended")
        eventually("the broken model is noticed", lambda: ready(server) == 400)
        assert factor(server, "first") == 2
        put(repository, "mended", 3)
        eventually("the mended model serves", lambda: factor(server, "mended") == 3)
        assert ready(server) == 200
        put_broken(repository, "gone")
        eventually("the broken model is noticed", lambda: ready(server) == 400)
        remove(repository, "gone")
        eventually("the server is ready again", lambda: ready(server) == 200)


@pytest.mark.parametrize(
    ("load", "loaded"),
    [((), set()), (("second",), {"second"}), (("first", "second"), {"first", "second"}), (("*",), {"first", "second"})],
    ids=["none", "one", "two", "all"],
)
def test_explicit_control_loads_what_is_named(repository: Path, load: tuple[str, ...], loaded: set[str]) -> None:
    put(repository, "second", 3)
    with serving(model_repository=repository, model_control_mode="explicit", load_models=load) as server:
        assert {name for name in ("first", "second") if factor(server, name)} == loaded
        assert ready(server) == 200


def test_explicit_control_with_a_name_that_is_nowhere_fails_the_start(repository: Path) -> None:
    with (
        pytest.raises(PenstockError, match="'absent'"),
        serving(model_repository=repository, model_control_mode="explicit", load_models=["absent"]),
    ):
        pass


@pytest.mark.parametrize("name", ["absent", "..%2Fmodels", "a%20b"])
def test_asking_for_a_model_that_is_nowhere_changes_nothing(repository: Path, name: str) -> None:
    """A client's typing error must not make the server unready, nor stay in the index."""
    with (
        serving(model_repository=repository, model_control_mode="explicit", load_models=["*"]) as server,
        Client(server) as client,
    ):
        index = client.ask("POST", "/v2/repository/index").json()
        for operation, statuses in (("load", (400, 404)), ("unload", (200, 400, 404))):
            with Client(server) as asking:
                assert asking.ask("POST", f"/v2/repository/models/{name}/{operation}", b"{}").status in statuses
            assert client.get("/v2/health/ready").status == 200
            assert client.ask("POST", "/v2/repository/index").json() == index


def test_a_model_that_fails_ends_the_start_or_stays_away(repository: Path) -> None:
    put_broken(repository, "bad")
    with pytest.raises(PenstockError, match="'bad'") as caught, serving(model_repository=repository):
        pass
    assert str(repository) not in str(caught.value)
    with serving(model_repository=repository, exit_on_error=False) as server:
        assert factor(server, "first") == 2
        assert infer(server, "bad", x=X).status == 404


@pytest.mark.parametrize(("strict", "status"), [(True, 400), (False, 200)])
def test_a_broken_model_counts_for_strict_readiness_only(repository: Path, strict: bool, status: int) -> None:
    put_broken(repository, "bad")
    with (
        serving(
            model_repository=repository,
            model_control_mode="explicit",
            load_models=["*"],
            exit_on_error=False,
            strict_readiness=strict,
        ) as server,
        Client(server) as client,
    ):
        assert client.get("/v2/health/live").status == 200
        assert client.get("/v2/health/ready").status == status
        assert client.get("/v2/models/first/ready").status == 200
        assert client.get("/v2/models/bad/ready").status == 400
        put(repository, "bad", 6)
        assert client.ask("POST", "/v2/repository/models/bad/load", b"{}").status == 200
        assert client.get("/v2/health/ready").status == 200
        assert factor(server, "bad") == 6


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", {3}),
        ("version_policy { latest { num_versions: 2 } }", {2, 3}),
        ("version_policy { specific { versions: [1, 3] } }", {1, 3}),
        ("version_policy { all { } }", {1, 2, 3}),
    ],
    ids=["default", "latest-2", "specific", "all"],
)
def test_versions_are_served_side_by_side(repository: Path, policy: str, served: set[int]) -> None:
    for version in (1, 2, 3):
        put(repository, "first", 10 * version, version)
    (repository / "first/config.pbtxt").write_text(policy)
    with serving(model_repository=repository) as server:
        for version in (1, 2, 3, 4):
            assert factor(server, "first", str(version)) == (10 * version if version in served else 0)
        assert factor(server, "first") == 10 * max(served)


# ---- instances ----


def test_two_instances_run_at_once() -> None:
    """Each waits in the model until the other is there too."""
    meeting = threading.Barrier(2, timeout=20)

    def function(x: Array) -> Array:
        meeting.wait()
        return x

    with serving(echo(function=function, max_batch_size=1, instances=2)) as server:
        at_once(server, lambda client, _: np.testing.assert_array_equal(client.infer("m", x=X).arrays["y"], X), 2)


def test_one_instance_runs_one_batch_at_a_time() -> None:
    inside = threading.Lock()

    def function(x: Array) -> Array:
        assert inside.acquire(blocking=False), "two calls at once"
        try:
            return x + 0
        finally:
            inside.release()

    def ask(client: Client, _: int) -> None:
        for _ in range(20):
            np.testing.assert_array_equal(client.infer("m", x=X).arrays["y"], X)

    with serving(echo(function=function, max_batch_size=1)) as server:
        at_once(server, ask, 8)


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_instances_share_one_runtime_and_leave_it_open(tmp_path: Path, rng: np.random.Generator, library: str) -> None:
    write_scale(tmp_path / "m.onnx", 3)
    runtime = ps.load(tmp_path / "m.onnx", runtime=library, threads=1, instances=3)
    inputs = rng.standard_normal((16, 4)).astype(np.float32)

    def ask(client: Client, number: int) -> None:
        x = inputs[number : number + 1]
        for _ in range(20):
            np.testing.assert_allclose(client.infer("m", x=x).arrays["y"], x * 3, rtol=1e-6)

    server = ps.Server(http_port=0, grpc_port=None, metrics_port=None)
    server.add(runtime, name="m", instances=3)
    for _ in range(2):
        with server:
            at_once(server, ask, 16)
    np.testing.assert_allclose(runtime(x=X)["y"], X * 3)
