"""The pytest option `--server` and the fixtures that start servers: one for the whole session, others by need.

Loaded by `tests/conftest.py`, so that conformance, hostile and soak tests share the one child process.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.servers import onnx_files, triton_repository
from tests.servers.process import Kind, RunningServer, penstock_server, triton_folder, triton_server

# Long enough for a loaded machine to finish a header, short enough to be waited for.
PATIENCE_SECONDS = 2
SMALL_BODY_BYTES = 1 << 20


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server",
        choices=("penstock", "triton"),
        default="penstock",
        help="the server to test; a real Triton is found through PENSTOCK_LAB or .peers/",
    )
    parser.addoption("--seed", type=int, default=None, help="the seed of random inputs; printed in the header")


def _seed(config: pytest.Config) -> int:
    seed = config.getoption("--seed")
    return int(seed if seed is not None else os.environ.get("PENSTOCK_TEST_SEED", "20261121"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "peer: compares with another server, which must be installed")
    config.addinivalue_line("markers", "penstock_only: about behaviour that is Penstock's own")


def pytest_report_header(config: pytest.Config) -> str:
    return f"server under test: {config.getoption('--server')}; seed of random inputs: {_seed(config)} (--seed)"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--server") != "triton":
        return
    own = pytest.mark.skip(reason="about behaviour that is Penstock's own")
    absent = pytest.mark.skip(reason="no Triton in PENSTOCK_LAB or .peers/: `make peers` installs one")
    for item in items:
        if "server_kind" not in getattr(item, "fixturenames", ()):
            continue
        item.add_marker(pytest.mark.peer)
        if item.get_closest_marker("penstock_only"):
            item.add_marker(own)
        elif triton_folder() is None:
            item.add_marker(absent)


@pytest.fixture(scope="session")
def server_kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.config.getoption("--server")
    return kind


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Fresh for each test, so that a test's inputs do not depend on which tests ran before it."""
    return np.random.default_rng([_seed(request.config), *request.node.name.encode()])


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(f"{_seed(request.config)} {request.node.name}")


def _triton() -> Path:
    folder = triton_folder()
    assert folder is not None, "tests without a Triton are skipped at collection"
    return folder


@pytest.fixture(scope="session")
def server(server_kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The zoo with default options."""
    folder = tmp_path_factory.mktemp("server")
    log = folder / "server.log"
    if server_kind == "penstock":
        with penstock_server(log, {}) as running:
            yield running
        return
    repository = folder / "models"
    triton_repository.write_zoo(repository)
    with triton_server(_triton(), log, repository) as running:
        yield running


@pytest.fixture(scope="session")
def strict_server(server_kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Penstock with a small body limit and short time limits for heads and bodies."""
    assert server_kind == "penstock", "mark the test penstock_only"
    log = tmp_path_factory.mktemp("strict") / "server.log"
    options = {
        "http_header_timeout_seconds": PATIENCE_SECONDS,
        "http_body_timeout_seconds": PATIENCE_SECONDS,
        "max_body_bytes": SMALL_BODY_BYTES,
    }
    with penstock_server(log, options) as running:
        yield running


@pytest.fixture(scope="session")
def explicit_repository(server_kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("explicit") / "models"
    writer = onnx_files if server_kind == "penstock" else triton_repository
    writer.write_explicit(repository)
    return repository


@pytest.fixture(scope="session")
def explicit_server(
    server_kind: Kind, explicit_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A repository under explicit control: nothing is loaded at the start."""
    log = tmp_path_factory.mktemp("explicit-log") / "server.log"
    if server_kind == "penstock":
        options = {"model_repository": str(explicit_repository), "model_control_mode": "explicit"}
        with penstock_server(log, options) as running:
            yield running
        return
    with triton_server(_triton(), log, explicit_repository, "--model-control-mode=explicit") as running:
        yield running
