"""Cases as data: one HTTP request and what Penstock must answer; one call sends it and compares.

Where a real Triton answers something else, the difference stands in `tests/conformance/differences.py`, and a run with
`--server triton` expects that. So the tables are a record of both servers.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from tests.conformance.differences import NOT_SENT, expected
from tests.servers.process import RunningServer
from tests.servers.raw import Reply, ask

INFER = "/v2/models/double_fp32/infer"
Body = bytes | Callable[[], bytes]

# Host paths, tracebacks and panics; none of these belongs into an answer.
LEAKS = re.compile(
    r"/(?:home|root|tmp|usr|var|opt|etc|proc|dev|work|mnt)/|Traceback|panicked|\.rs:\d|\.py[\":]|site-packages"
)


@dataclass(frozen=True)
class HttpCase:
    """`names`: words that the error of a refusal must hold, so that it names the thing. `text`: the whole error."""

    name: str
    status: int
    path: str = INFER
    method: str = "POST"
    body: Body | None = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()
    text: str | None = None

    def content(self) -> bytes | None:
        return self.body() if callable(self.body) else self.body


def assert_clean_error(reply: Reply, names: Sequence[str] = ()) -> None:
    """A refusal says what is wrong, in one JSON document, and nothing about the machine."""
    error = reply.error
    assert not LEAKS.search(error), f"the error tells about the machine: {error}"
    assert len(error) < 2000, f"the error repeats the request: {len(error)} characters"
    for name in names:
        assert name.lower() in error.lower(), f"{name!r} is not named in: {error}"


def check(server: RunningServer, case: HttpCase) -> Reply:
    """Sends the case and compares the answer."""
    wanted = expected(case.name, server.kind, str(case.status))
    if wanted == NOT_SENT:
        pytest.skip("would end the server: recorded in tests/conformance/differences.py")
    reply = ask(server, case.method, case.path, case.content(), case.headers)
    assert str(reply.status) == wanted, f"{case.name}: {reply.status} {reply.body[:500]!r}"
    if reply.status >= 400 and case.method != "HEAD":
        if case.text is not None:
            assert reply.error == case.text
        if server.kind == "penstock":
            assert_clean_error(reply, case.names)
    return reply
