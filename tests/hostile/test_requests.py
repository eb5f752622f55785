"""Well-framed requests with bad contents: each is refused with the right status and a reason, and leaves nothing."""

from collections.abc import Sequence

import pytest

from tests.hostile import binary_cases, json_cases, model_cases
from tests.hostile.memory import measure
from tests.servers.cases import HttpCase, check
from tests.servers.process import RunningServer
from tests.servers.raw import ask

GROUPS: dict[str, Sequence[HttpCase]] = {
    "json": json_cases.REFUSED,
    "binary": binary_cases.REFUSED,
    "models": model_cases.REFUSED,
}
REFUSED = [case for group in GROUPS.values() for case in group]


def test_case_names_are_unique() -> None:
    names = [case.name for case in REFUSED]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_a_bad_request_is_refused_with_a_reason(server: RunningServer, case: HttpCase) -> None:
    check(server, case)


@pytest.mark.parametrize("case", [*json_cases.ACCEPTED, *binary_cases.ACCEPTED], ids=lambda case: case.name)
def test_an_odd_but_right_request_is_answered(server: RunningServer, case: HttpCase) -> None:
    check(server, case)


@pytest.mark.penstock_only
@pytest.mark.parametrize("group", GROUPS)
def test_refusals_leave_no_memory_behind(server: RunningServer, group: str) -> None:
    def work() -> int:
        for case in GROUPS[group]:
            ask(server, case.method, case.path, case.content(), case.headers)
        return len(GROUPS[group])

    growth = measure(server.resident_bytes, work)
    assert not growth.leaks, growth
