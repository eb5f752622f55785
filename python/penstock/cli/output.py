"""What verbs have in common: where words go, and how flags are read.

Results go to standard output, as tables for people or, with `--json`, as one document; progress and everything else
goes to standard error. Called by the verbs.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import typer

from penstock.errors import InvalidArgument
from penstock.tensors import TensorSpec

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from penstock.build.evidence import Evidence

# Where there is no terminal to fit, lines are as wide as they need to be.
_WIDE = 240


def console() -> "Console":
    """For results, on standard output."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else _WIDE)


def say(text: str) -> None:
    """A line on standard error."""
    print(f"penstock: {text}", file=sys.stderr, flush=True)


def print_json(document: Mapping[str, Any]) -> None:
    """One document on standard output; what is no finite number is null."""
    print(json.dumps(plain(document), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def specs_json(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in specs]


def shapes_text(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name}:{'x'.join(map(str, shape)) or 'scalar'}" for name, shape in shapes.items())


def table(*columns: str) -> "Table":
    """Columns align to the left; with a leading `>` to the right."""
    from rich.table import Table

    made = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.lstrip(">"), justify="right" if right else "left", no_wrap=right)
    return made


def size_text(count: float) -> str:
    """`12.3 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def read(parser: Callable[[str], Any]) -> Callable[[str], Any]:
    """A flag's text through a parser of the package; what it refuses is wrong usage."""

    def reader(text: str) -> Any:
        try:
            return parser(text)
        except InvalidArgument as error:
            raise typer.BadParameter(error.message) from None

    return reader


def ranges(text: str) -> Any:
    """One `--shapes`; wrong usage as `read` has it."""
    from penstock.build.shapes import parse_shapes

    return read(parse_shapes)(text)


def accuracy_text(found: "Evidence") -> str:
    """One line: what was compared on what, and how it went."""
    by = found.accuracy.inputs
    return found.accuracy.message if by == "metric" else f"accuracy on {by}: {found.accuracy.message}"
