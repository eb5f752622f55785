"""docs/json.md as data: which keys of which verb's document it explains."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs/json.md"


def documented(verb: str) -> frozenset[str]:
    """Keys in the first column of the verb's table: `a`, `a.b`, `a[].b`, `a.*`."""
    section = re.search(rf"^## {verb}\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert section is not None, f"no section {verb}"
    rows = re.findall(r"^\| (`[^|]*) \|", section[1], re.MULTILINE)
    return frozenset(key for row in rows for key in re.findall(r"`([^`]+)`", row))


def keys(value: Any, before: str = "") -> Iterator[str]:
    """Every place of a document where a value is, but for what lies in lists of values."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from keys(item, f"{before}.{key}" if before else key)
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for item in value:
            yield from keys(item, f"{before}[]")
    else:
        yield before


def unexplained(verb: str, document: Any) -> set[str]:
    """Keys of a document that the page does not have."""
    known = documented(verb)
    open_ended = tuple(key.removesuffix("*") for key in known if key.endswith(".*"))
    return {key for key in keys(document) if key not in known and not key.startswith(open_ended or ("\0",))}
