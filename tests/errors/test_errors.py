"""The error tree: statuses, and that both languages give the same ones."""

import re
from pathlib import Path

import pytest

from penstock import errors
from penstock.errors import PenstockError

ROOT = Path(__file__).resolve().parents[2]

# Class -> the Rust `Code` that stands for the same thing.
SAME = {
    "InvalidArgument": "InvalidArgument",
    "Unauthenticated": "Unauthenticated",
    "NotFound": "NotFound",
    "AlreadyExists": "AlreadyExists",
    "Cancelled": "Cancelled",
    "ResourceExhausted": "TooLarge",
    "Unsupported": "Unsupported",
    "Unavailable": "Unavailable",
    "DeadlineExceeded": "DeadlineExceeded",
    "Internal": "Internal",
}


def classes() -> list[type[PenstockError]]:
    return [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, PenstockError)]


def rust_statuses(function: str) -> dict[str, int]:
    source = (ROOT / "crates/schema/src/error.rs").read_text()
    body = source[source.index(f"fn {function}") :]
    body = body[: body.index("\n    }")]
    return {
        name: int(status)
        for names, status in re.findall(r"((?:Code::\w+[\s|]*)+)=> (\d+)", body)
        for name in re.findall(r"Code::(\w+)", names)
    }


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_the_tree_at_the_top_shows_each_class_with_its_status(kind: type[PenstockError]) -> None:
    drawn = re.search(rf"[\s─]{kind.__name__}\s+(\d+)\s+[A-Z_]+", errors.__doc__ or "")
    assert drawn is not None
    assert int(drawn[1]) == kind.http_status


@pytest.mark.parametrize(("name", "code"), SAME.items())
def test_python_and_rust_agree_on_statuses(name: str, code: str) -> None:
    kind = getattr(errors, name)
    assert kind.http_status == rust_statuses("http_status")[code]
    assert kind.grpc_code == rust_statuses("grpc_status")[code]


def test_the_message_is_what_was_raised() -> None:
    assert errors.ConfigError("model 'x' has no inputs").message == "model 'x' has no inputs"
    assert issubclass(errors.ConfigError, errors.InvalidArgument)
