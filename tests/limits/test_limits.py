"""One source of bounds: every table has a reason, every constant exists and is the table's value."""

from pathlib import Path

import pytest

from penstock import limits

SOURCE = Path(limits.__file__).with_name("limits.toml")


def test_every_bound_has_a_constant_of_its_value_and_no_constant_is_left_over() -> None:
    constants = {name: value for name, value in vars(limits).items() if name.isupper() and name != "LIMITS"}
    assert constants == {name.upper(): limit.value for name, limit in limits.LIMITS.items()}


def test_the_body_limit_is_64_mebibytes() -> None:
    assert limits.BODY_BYTES == 64 * 1024 * 1024


def test_reasons_are_sentences() -> None:
    assert all(len(limit.reason) > 30 and limit.reason.endswith(".") for limit in limits.LIMITS.values())


@pytest.mark.parametrize(
    "text",
    [
        "[a]\nvalue = 1",
        '[a]\nvalue = 0\nreason = "r"',
        '[a]\nvalue = true\nreason = "r"',
        '[a]\nvalue = 1.5\nreason = "r"',
        '[a]\nvalue = 1\nreason = ""',
        '[a]\nvalue = 1\nreason = "r"\nunit = "bytes"',
        "a = 1",
    ],
)
def test_a_table_that_is_not_a_value_and_a_reason_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="limit a"):
        limits.read(text)


def test_the_file_is_flat_so_that_a_build_script_can_read_it() -> None:
    assert set(limits.read(SOURCE.read_text())) == set(limits.LIMITS)
