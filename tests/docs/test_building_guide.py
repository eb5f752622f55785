"""The guide to building is true: its flags and defaults, its exit statuses, and the keys of every JSON document."""

import re
from pathlib import Path

import pytest
import typer.main

from penstock.cli import app
from penstock.cli.check import EXIT
from tests.docs.documented import PAGE, documented, unexplained

GUIDE = (Path(__file__).resolve().parents[2] / "docs/building.md").read_text(encoding="utf-8")


def section(verb: str) -> str:
    found = re.search(rf"^## {verb}\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("verb", ["build", "time", "compare"])
def test_the_table_of_flags_is_that_of_the_command_line(verb: str) -> None:
    flags = {
        frozenset(option.opts): "" if option.default is None or option.default is False else str(option.default)
        for option in typer.main.get_group(app).commands[verb].params
        if option.opts[0].startswith("-")
    }
    rows = re.findall(r"^\| (`-[^|]*) \| ([^|]*?) ?\|", section(verb), re.MULTILINE)
    assert {frozenset(re.findall(r"`(--?[\w-]+)`", names)): default for names, default in rows} == flags


def test_exit_statuses_of_check() -> None:
    rows = re.findall(r"^\| (\d) \| `(\w+)` \|", section("check"), re.MULTILINE)
    assert {action: int(status) for status, action in rows} == EXIT


def test_every_verb_has_its_document() -> None:
    verbs = set(typer.main.get_group(app).commands)
    sections = set(re.findall(r"^## (\w+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert sections >= verbs
    assert all(documented(verb) for verb in verbs)


def test_a_key_that_nobody_explained_is_found() -> None:
    document = {
        "file": "a",
        "shapes": {"x": [1]},
        "latency_ms": {"min": 1},
        "secret": 1,
        "regions": [{"name": "", "odd": 1}],
    }
    assert unexplained("time", document) == {"secret", "regions[].odd"}
