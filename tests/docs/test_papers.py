"""What the papers name exists: files, tests, make targets; and every invariant names what holds it."""

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PAPERS = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md"), *CHECKOUT.glob("examples/*/*.md")])
FOLDERS = ("benches/", "crates/", "docs/", "examples/", "proto/", "python/", "requirements/", "tests/")


def named_places(text: str) -> list[str]:
    """`tests/a/test_b.py::test_c` and the like, in backticks; `a/{b,c}.py` is two."""
    found: list[str] = []
    for place in re.findall(r"`([^`\s]+)`", text):
        if not place.startswith(FOLDERS) or "*" in place:
            continue
        before, brace, rest = place.partition("{")
        inside, _, after = rest.partition("}")
        found += [f"{before}{each}{after}" for each in inside.split(",")] if brace else [place]
    return found


def is_there(place: str) -> bool:
    path, _, name = place.partition("::")
    file = CHECKOUT / path
    return file.exists() and (not name or re.search(rf"\b(?:def|fn) {name}\b", file.read_text("utf-8")) is not None)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.relative_to(CHECKOUT).as_posix())
def test_named_files_and_tests_exist(paper: Path) -> None:
    assert [place for place in named_places(paper.read_text(encoding="utf-8")) if not is_there(place)] == []


def test_a_name_of_nothing_would_be_seen() -> None:
    text = "`tests/docs/{__init__,nowhere}.py`, `tests/docs/test_papers.py::test_nothing`, `tests/docs`, `make it`"
    assert [place for place in named_places(text) if not is_there(place)] == [
        "tests/docs/nowhere.py",
        "tests/docs/test_papers.py::test_nothing",
    ]


def test_every_invariant_names_its_test() -> None:
    section = (CHECKOUT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("## Invariants")[2]
    bullets = re.findall(r"^- .*?(?=^- |^$)", section, re.MULTILINE | re.DOTALL)
    assert len(bullets) > 10
    assert [bullet for bullet in bullets if not re.search(r"`(?:tests|crates/\w+/(?:tests|src))/", bullet)] == []


@pytest.mark.parametrize("paper", ["README.md", "CONTRIBUTING.md", "examples/ocr/README.md"])
def test_make_targets_exist(paper: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = (CHECKOUT / paper).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^ *)make ([a-z-]+)", text, re.MULTILINE))
    assert named
    assert named <= targets
