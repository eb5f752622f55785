"""One program in a process of its own, outside a race: to be run by the gate, profiled for a report, or exported.

Like everything here it fails as CandidateLost or Lost, never as a crash of the builder. Called by `build`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from penstock.engine.plan import Region, Shapes, Tactic
from penstock.engine.runtimes.base import Arrays
from penstock.tactics.candidates import Form
from penstock.tactics.child import CandidateLost, Child, Limits
from penstock.tactics.results import Lost

_BUCKET: Final = 0  # a process of its own knows one set of inputs
PROFILED_CALLS: Final = 20  # per-layer times are means; twenty calls bring their spread to a few percent


@dataclass(frozen=True, slots=True)
class Exported:
    """An artifact that was written."""

    path: Path
    bytes: int
    compile_seconds: float
    held_bytes: int
    """Memory the process gained by compiling."""


@contextmanager
def compiled(
    tactic: Tactic, form: Form, shapes: Shapes | None = None, *, limits: Limits | None = None
) -> Iterator[Child]:
    """The tactic compiled in a process that lives as long as the `with`: `child.run(inputs)` is one call.

    shapes  for static tactics, those to compile for.

    Raises CandidateLost when it can't be compiled; so do the process's commands.
    """
    with Child(tactic, limits or Limits()) as child:
        child.compile(form.path, shapes if tactic.shapes == "static" else None)
        yield child


def profile(
    tactic: Tactic,
    form: Form,
    shapes: Shapes,
    inputs: Arrays,
    *,
    repeats: int = PROFILED_CALLS,
    limits: Limits | None = None,
) -> tuple[Region, ...] | Lost:
    """What the library executes for these inputs, region by region, by its own clock."""
    try:
        with compiled(tactic, form, shapes, limits=limits) as child:
            child.load(_BUCKET, inputs)
            return child.regions(_BUCKET, repeats)
    except CandidateLost as error:
        return error.lost


def export(
    tactic: Tactic, form: Form, shapes: Shapes | None, path: Path, *, limits: Limits | None = None
) -> Exported | Lost:
    """Compile and write what makes the program loadable without compiling."""
    try:
        with Child(tactic, limits or Limits()) as child:
            made = child.compile(form.path, shapes if tactic.shapes == "static" else None)
            return Exported(path, child.export(path), made.seconds, made.bytes)
    except CandidateLost as error:
        return error.lost
