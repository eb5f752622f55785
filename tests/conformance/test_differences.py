"""The table of differences is one of real cases, each once, and the page in the documentation is rendered from it."""

import re
from pathlib import Path

from tests.conformance import http_cases
from tests.conformance.differences import DIFFERENCES, PAGE, page
from tests.hostile import binary_cases, grpc_cases, json_cases, model_cases

HTTP_CASES = [
    *http_cases.CASES,
    *json_cases.REFUSED,
    *json_cases.ACCEPTED,
    *binary_cases.REFUSED,
    *binary_cases.ACCEPTED,
    *model_cases.REFUSED,
]
# Each case of the tables with what Penstock must answer.
TABLES = {case.name: str(case.status) for case in HTTP_CASES} | {case.name: case.status for case in grpc_cases.MESSAGES}


def asked_for_by_name() -> set[str]:
    """Cases that a test outside the tables names: `expected("...")`."""
    tests = Path(__file__).parents[1]
    sources = "".join(path.read_text(encoding="utf-8") for path in tests.glob("*/test_*.py"))
    return set(re.findall(r'expected\("([^"]+)"', sources))


def test_every_difference_belongs_to_a_case() -> None:
    named = asked_for_by_name()
    for difference in DIFFERENCES:
        if difference.case in TABLES:
            assert TABLES[difference.case] == difference.penstock, difference
        else:
            assert any(difference.case.startswith(name) for name in named), f"no test asks for {difference.case}"


def test_every_difference_is_one_and_is_told_once() -> None:
    assert len({difference.case for difference in DIFFERENCES}) == len(DIFFERENCES)
    for difference in DIFFERENCES:
        assert difference.triton != difference.penstock, difference
        assert difference.why


def test_the_page_is_rendered_from_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again: python -m tests.conformance.differences"
