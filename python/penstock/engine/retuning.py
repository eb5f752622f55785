"""An engine's programs compiled anew, from the graphs inside the file: on another machine than it was built on.

Answers stay as accurate as the graphs are; what was fastest there may not be the fastest here. A tactic that this
machine can't run falls back to FP32 on the same graph. No artifact of a library is touched. Called by `engine`, on
`check`'s word.
"""

import logging
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from penstock.engine import parts, runtimes
from penstock.engine.plan import Program
from penstock.engine.runtimes.base import Compiled
from penstock.engine.sealed import WEIGHTS, Sealed, graph_member
from penstock.errors import ModelLoadError, Unsupported

__all__ = ["compiled_anew", "graph_member", "unpack"]

_GRAPHS: Final = (".onnx", ".safetensors", parts.SUFFIX, parts.CONSTANTS)
_LOG = logging.getLogger(__name__)


def unpack(sealed: Sealed, folder: Path) -> None:
    """Write the graphs and their weights as files that any ONNX tool reads, and what lies beside cut graphs."""
    programs = {program.artifact for program in sealed.manifest.programs}
    for name in sealed.members:
        if name == WEIGHTS or (name.endswith(_GRAPHS) and name not in programs):
            (folder / Path(name).name).write_bytes(sealed.members[name])


def compiled_anew(
    sealed: Sealed, indices: Iterable[int], *, instances: int, threads: int | None
) -> dict[int, Compiled]:
    """A runtime for each of these programs. Raises ModelLoadError when a graph is not inside or can't be compiled."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as name:
        folder = Path(name)
        unpack(sealed, folder)
        programs = sealed.manifest.programs
        return {at: _compiled(sealed, programs[at], folder, instances, threads) for at in indices}


def _compiled(sealed: Sealed, program: Program, folder: Path, instances: int, threads: int | None) -> Compiled:
    tactic = program.tactic
    path = folder / Path(graph_member(tactic.form)).name
    if not path.is_file():
        raise ModelLoadError(f"{sealed.name}: graph {tactic.form!r} is not inside, so it can't be compiled here")
    try:
        return runtimes.compile(path, tactic, shapes=program.shapes or None, instances=instances, threads=threads)
    except (ModelLoadError, Unsupported) as error:
        wide = replace(tactic, precision="fp32", options=())
        if wide == tactic:
            raise
        _LOG.warning("%s: %s can't be compiled here (%s), FP32 instead", sealed.name, tactic.name, error)
        return runtimes.compile(path, wide, shapes=program.shapes or None, instances=instances, threads=threads)
