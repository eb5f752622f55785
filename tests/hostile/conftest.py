"""After each case the server lives and answers the next good request rightly."""

from collections.abc import Iterator

import pytest

from tests.hostile.json_cases import GOOD
from tests.servers.cases import INFER
from tests.servers.process import RunningServer
from tests.servers.raw import ask

SERVERS = ("server", "strict_server")


def assert_well(server: RunningServer) -> None:
    assert server.process.poll() is None, f"the server has ended:\n{server.log_tail()}"
    assert ask(server, "GET", "/v2/health/live").status == 200
    reply = ask(server, "POST", INFER, GOOD)
    assert reply.status == 200
    assert reply.json()["outputs"][0]["data"] == [2.0] * 16


@pytest.fixture(autouse=True)
def still_well(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in SERVERS:
        if name in request.fixturenames:
            assert_well(request.getfixturevalue(name))
