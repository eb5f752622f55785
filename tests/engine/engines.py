"""Engines for tests, sealed from small models without a build: programs and buckets are as the test says."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penstock.engine import fingerprint, runtimes, sealed
from penstock.engine.plan import Bucket, Fingerprint, Manifest, Profile, Program, Reduction, Shapes, Tactic
from penstock.tensors import TensorSpec

ORT = Tactic("onnxruntime", "fp32")
OPENVINO = Tactic("openvino", "fp32")
STATIC = Tactic("openvino", "fp32", shapes="static")


@dataclass(frozen=True)
class Plan:
    """What to seal."""

    model: Path
    profile: Profile
    programs: Sequence[tuple[Tactic, Shapes]] = ((ORT, {}),)
    buckets: Sequence[tuple[Shapes, int, float]] = ()
    reductions: tuple[Reduction, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    """Where reductions change them."""

    bytes: int = 0
    machine: Fingerprint | None = None
    graphs: bool = True
    """Whether the source is inside."""

    forms: Mapping[str, Path] = field(default_factory=dict)


def profile(name: str, minimum: Sequence[int], optimum: Sequence[int], maximum: Sequence[int]) -> Profile:
    return Profile({name: tuple(minimum)}, {name: tuple(optimum)}, {name: tuple(maximum)})


def members(plan: Plan) -> tuple[Manifest, dict[str, bytes | Path]]:
    """What `sealed.write` takes."""
    held: dict[str, bytes | Path] = {sealed.WEIGHTS: b"\x02\0\0\0\0\0\0\0{}"}
    programs: list[Program] = []
    plain: tuple[TensorSpec, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    for at, (tactic, shapes) in enumerate(plan.programs):
        form = plan.forms.get(tactic.form, plan.model)
        runtime = runtimes.compile(form, tactic, shapes=shapes or None, threads=1)
        if not inputs or not shapes:
            inputs, plain = runtime.inputs, runtime.outputs
        member = f"artifacts/{at}.{'onnx' if tactic.runtime == 'onnxruntime' else 'blob'}"
        held[member] = runtime.export()
        names = tuple(spec.name for spec in runtime.outputs)
        programs.append(Program(tactic, member, dict(shapes), plan.bytes, names, beside=bool(plan.reductions)))
        runtime.close()
    if plan.graphs:
        held[sealed.graph_member("source")] = plan.model
        held |= {sealed.graph_member(name): path for name, path in plan.forms.items()}
    manifest = Manifest(
        name="test",
        inputs=inputs,
        outputs=plan.outputs or plain,
        profiles=(plan.profile,),
        programs=tuple(programs),
        buckets=tuple(Bucket(dict(shapes), program, time) for shapes, program, time in plan.buckets),
        regions=(),
        fingerprint=plan.machine or fingerprint.here(),
        precision="fp32",
        source_hash=hashlib.sha256(plan.model.read_bytes()).hexdigest(),
        reductions=plan.reductions,
    )
    return manifest, held


def seal(plan: Plan, path: Path, evidence: Mapping[str, Any] | None = None) -> Path:
    """Compile, export and write; the path itself."""
    manifest, held = members(plan)
    sealed.write(path, manifest, held, evidence or {"note": "by a test"})
    return path
