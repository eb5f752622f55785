"""HTTP framing that lies: one refusal, then the connection is closed; the hidden request is never answered."""

import pytest

from tests.hostile.framing_cases import CASES, NO_HOST_1_0, ONE_RESPONSE, SIZE, RawCase, length, post
from tests.hostile.json_cases import GOOD
from tests.hostile.memory import measure
from tests.servers.cases import assert_clean_error
from tests.servers.process import RunningServer
from tests.servers.raw import Exchange, exchange

pytestmark = pytest.mark.penstock_only


def assert_one_answer(case: RawCase, done: Exchange) -> None:
    assert len(done.replies) <= 1, f"{case.name}: answered {[reply.status for reply in done.replies]}"
    status = done.replies[0].status if done.replies else 0
    assert status in case.statuses, f"{case.name}: {status} {[reply.body[:300] for reply in done.replies]}"
    assert done.closed, f"{case.name}: the connection was kept"
    assert not done.rest
    # The HTTP library refuses what it cannot read before the server sees a request; it does so without a body.
    if status >= 400 and done.replies[0].body:
        assert_clean_error(done.replies[0])


@pytest.mark.parametrize("case", [*CASES, *ONE_RESPONSE, NO_HOST_1_0], ids=lambda case: case.name)
def test_a_message_without_clear_bounds_is_refused_and_closed(server: RunningServer, case: RawCase) -> None:
    assert_one_answer(case, exchange(server, case.sent, half_close=case.half_close))


def test_refused_framing_leaves_no_memory_behind(server: RunningServer) -> None:
    def work() -> int:
        for case in CASES * 3:
            exchange(server, case.sent, half_close=case.half_close)
        return len(CASES) * 3

    growth = measure(server.resident_bytes, work)
    assert not growth.leaks, growth


def test_a_connection_cut_at_any_byte_is_forgotten(server: RunningServer) -> None:
    """The client goes away in the middle of a good request, wherever that is."""
    whole = post(length(SIZE), body=GOOD)
    for cut in range(1, len(whole), 5):
        done = exchange(server, whole[:cut], half_close=True)
        assert all(reply.status in (400, 408) for reply in done.replies), cut
        assert done.closed
