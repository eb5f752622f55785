"""From chosen tactics to an engine: compile each once more in a child process, keep its artifact, and write the file.

`Sealing.draft` compiles, `Draft.seal` writes and loads: the driver seals a draft, puts that engine through the gate,
and writes the file again with the verdict in its evidence; what was loaded stays. Called by the driver.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from penstock.build.evidence import Evidence, label
from penstock.build.forms import Forms, beside
from penstock.build.samples import Samples
from penstock.build.selection import Selection
from penstock.build.weights import shared
from penstock.engine import Engine, check, parts, sealed
from penstock.engine.check import Verdict
from penstock.engine.engine import from_sealed
from penstock.engine.kinds import MULTIPLY
from penstock.engine.plan import (
    CUDA,
    LOWERED,
    PRECISIONS,
    SOURCE,
    Bucket,
    CustomOperator,
    Fingerprint,
    Manifest,
    Profile,
    Program,
    Region,
    Shapes,
    Tactic,
    bytes_together,
)
from penstock.engine.retuning import graph_member
from penstock.engine.roofline import Ceilings
from penstock.engine.runtimes.base import DeviceMemory
from penstock.engine.sealed import Sealed
from penstock.errors import InvalidArgument, ModelLoadError
from penstock.tactics import Child, Limits, Stable, compiled

# Calls that a profile's times are taken over, the fewest where they take long, and for how long.
_PROFILE_CALLS: Final = (5, 10)
_PROFILE_SECONDS: Final = 2.0
# In the kind of a region that multiplies, as libraries and we name it.
_PRODUCTS: Final = re.compile(
    rf"conv(?!ert)|gemm|matmul|fullyconnected|product|einsum|attention|lstm|gru|rnn|^(?:{'|'.join(sorted(MULTIPLY))})\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Draft:
    """An engine but for its evidence."""

    path: Path
    manifest: Manifest
    members: Mapping[str, bytes | Path]
    ceilings: Ceilings | None = None
    """Of the device, where the first program lies on one."""

    def seal(self, found: Evidence) -> Engine:
        """Write the file and load it."""
        made, verdict = self._written(found)
        return from_sealed(made, verdict)

    def sealed_again(self, engine: Engine, found: Evidence) -> Engine:
        """The same engine with other evidence in its file; programs are not loaded again."""
        made, _ = self._written(found)
        return engine.with_evidence_of(made)

    def _written(self, found: Evidence) -> tuple[Sealed, Verdict]:
        # Whoever keeps it saves it elsewhere.
        sealed.write(self.path, self.manifest, self.members, found.to_json(), lasting=False)
        verdict = check(self.path, self.manifest.fingerprint)
        if verdict.sealed is None or verdict.action != "run":
            raise ModelLoadError(f"the engine that was just sealed can't run: {'; '.join(verdict.reasons)}")
        return verdict.sealed, verdict


@dataclass(frozen=True, slots=True)
class Sealing:
    """What all engines of one build have in common."""

    name: str
    forms: Forms
    profiles: tuple[Profile, ...]
    buckets: tuple[Shapes, ...]
    samples: Samples
    machine: Fingerprint
    options: Mapping[str, Any]
    limits: Limits
    custom_ops: tuple[CustomOperator, ...] = ()
    workspace_bytes: int | None = None
    processes: Stable | None = None
    """Of a build for a GPU: those that timed the programs export them."""

    def draft(self, selection: Selection, folder: Path, sizes: Callable[[Tactic], int]) -> Draft:
        """Compile every program; its files lie in `folder`. Raises CandidateLost when one can't be compiled again.

        sizes  memory that a tactic's program takes, as the race measured it.
        """
        artifacts: dict[str, bytes | Path] = {}
        programs: list[Program] = []
        regions: tuple[Region, ...] = ()
        ceilings: Ceilings | None = None
        index: dict[tuple[Tactic, int], int] = {}
        for tactic, bucket in self._wanted(selection):
            member = f"artifacts/{len(programs)}.{self._suffix(tactic)}"
            target = folder / Path(member).name
            shapes = self.buckets[bucket] if bucket >= 0 else {}
            with self._compiled(tactic, bucket) as (child, number):
                child.export(target, number)
                if not programs:
                    at = max(bucket, 0)
                    regions = self._regions(child, number, tactic, at, selection.microseconds[at])
                    ceilings = child.ceilings(number) if tactic.runtime == CUDA else None
                held = child.memory(number) if tactic.runtime == CUDA else DeviceMemory(0, sizes(tactic), 0)
            index[tactic, bucket] = len(programs)
            outputs, later = self._outputs(tactic), beside(tactic.form)
            programs.append(
                Program(tactic, member, dict(shapes), held.total, outputs, later, held.weights, held.context)
            )
            artifacts[member] = target
        self._check_workspace(programs)
        buckets = tuple(
            Bucket(dict(self.buckets[at]), index[tactic, at if tactic.shapes == "static" else -1], time)
            for at, (tactic, time) in enumerate(zip(selection.tactics, selection.microseconds, strict=True))
        )
        wanted = {SOURCE, *(program.tactic.form for program in programs)}
        (folder / "graphs").mkdir()
        artifacts |= {graph_member(name): self.forms.files[name].path for name in wanted if name.startswith(LOWERED)}
        files = {name: self.forms.files[name].path for name in sorted(wanted) if not name.startswith(LOWERED)}
        cut = {f"{name}.{part}": place for name, path in files.items() for part, place in parts.models(path).items()}
        graphs, weights = shared({**files, **cut}, folder / "graphs")
        artifacts |= {graph_member(name): path for name, path in graphs.items()}
        for name, path in files.items():
            artifacts |= {f"{sealed.ARTIFACTS}{name}{suffix}": place for suffix, place in parts.files(path).items()}
        artifacts[sealed.WEIGHTS] = weights
        manifest = Manifest(
            name=self.name,
            inputs=self.forms.inputs,
            outputs=self.forms.outputs,
            profiles=self.profiles,
            programs=tuple(programs),
            buckets=buckets,
            regions=regions,
            fingerprint=self.machine,
            precision=narrowest(programs, regions),
            source_hash=hashlib.sha256(self.forms.files[SOURCE].path.read_bytes()).hexdigest(),
            reductions=self.forms.reductions,
            options=self.options,
            custom_ops=self.custom_ops,
        )
        return Draft(folder / f"{self.name}.engine", manifest, artifacts, ceilings)

    def _check_workspace(self, programs: Sequence[Program]) -> None:
        """Of a GPU's programs, which are known to the byte now; the others were chosen to fit."""
        here = [each for each in programs if each.tactic.runtime == CUDA]
        held = bytes_together(here)
        if self.workspace_bytes is None or held <= self.workspace_bytes:
            return
        contexts = ", ".join(f"{label(each.shapes)} {_mib(each.bytes - each.shared_bytes)}" for each in here)
        weights = max(each.shared_bytes for each in here)
        raise InvalidArgument(
            f"the engine takes {_mib(held)} of the GPU's memory with one context of each bucket (weights "
            f"{_mib(weights)}, {contexts}), --workspace allows {_mib(self.workspace_bytes)}; allow more, or leave out "
            "the largest bucket"
        )

    @contextmanager
    def _compiled(self, tactic: Tactic, bucket: int) -> Iterator[tuple[Child, int]]:
        """A process with the program, and the program's number there."""
        if self.processes is not None and tactic.runtime == CUDA:
            seconds = self.limits.start_seconds + self.limits.compile_seconds
            yield self.processes.compiled(tactic, bucket, seconds), self.processes.number(tactic, bucket)
            return
        shapes = self.buckets[bucket] if bucket >= 0 else {}
        with compiled(tactic, self.forms.files[tactic.form], shapes or None, limits=self.limits) as child:
            yield child, 0

    def _suffix(self, tactic: Tactic) -> str:
        if parts.beside(self.forms.files[tactic.form].path) is not None:
            return "chain"
        if tactic.form.startswith(LOWERED):
            return "steps"
        return "onnx" if tactic.runtime == "onnxruntime" else "blob"

    def _wanted(self, selection: Selection) -> Iterable[tuple[Tactic, int]]:
        """Every program once: a static tactic for each of its buckets, a dynamic one with bucket -1."""
        found = [(tactic, at if tactic.shapes == "static" else -1) for at, tactic in enumerate(selection.tactics)]
        return dict.fromkeys([*found, *([(selection.rest, -1)] if selection.rest else [])])

    def _outputs(self, tactic: Tactic) -> tuple[str, ...]:
        """Names in the order of the form: with `beside` those that reductions are computed from."""
        specs = self.forms.plain_outputs if beside(tactic.form) else self.forms.outputs
        return tuple(spec.name for spec in specs)

    def _regions(
        self, child: Child, number: int, tactic: Tactic, bucket: int, microseconds: float
    ) -> tuple[Region, ...]:
        """What the library executes, with the source model's node names in place of the form's."""
        child.load(bucket, self.samples.at(self.buckets[bucket]), number)
        names = self.forms.sources[tactic.form]
        fewest, most = _PROFILE_CALLS
        calls = min(max(int(1e6 * _PROFILE_SECONDS / microseconds), fewest), most)
        return tuple(
            replace(region, nodes=tuple(dict.fromkeys(each for node in region.nodes for each in names.get(node, ()))))
            for region in child.regions(bucket, calls)
        )


def narrowest(programs: Sequence[Program], regions: Sequence[Region]) -> str:
    """The narrowest precision in a region, as far as libraries report it; else what was asked of them.

    Regions that multiply count, where there are any: what compares masks works on bytes in every model.
    """
    multiply = [region for region in regions if _PRODUCTS.search(region.kind)]
    reported = {region.precision for region in multiply or regions} & set(PRECISIONS)
    asked = {program.tactic.precision for program in programs}
    return min(reported or asked, key=PRECISIONS.index)


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
