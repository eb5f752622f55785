"""May this engine run on this machine? `run`, `retune` or `refuse`, and why: the preflight of `penstock check`.

An engine is for one kind of processor and one version of each library: programs are what a library compiled, and
timings chose among them. On another machine its graphs are compiled anew with the same tactics (`retune`), which is
correct and perhaps not the fastest. What is damaged, newer, or needs what this machine lacks is refused. Called by
`load` and the command line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock.engine import custom, fingerprint, sealed
from penstock.engine.plan import Fingerprint, Manifest
from penstock.engine.runtimes import LIBRARIES, PACKAGES
from penstock.engine.sealed import Sealed, graph_member
from penstock.errors import ModelLoadError

Action = Literal["run", "retune", "refuse"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with an engine here."""

    action: Action
    reasons: tuple[str, ...] = ()
    """One sentence each; for `run` what is different and does not matter."""

    sealed: Sealed | None = None
    """The file, read and verified; None when it can't be."""

    here: Fingerprint | None = None
    """This machine, as it was compared; None when the file can't be read."""


def check(path: str | Path, machine: Fingerprint | None = None) -> Verdict:
    """Look at an engine file without running anything of it.

    machine  what to check for; None: this one.

    Raises NotFound; anything wrong with the file is `refuse`.
    """
    try:
        found = sealed.read(Path(path))
    except ModelLoadError as error:
        return Verdict("refuse", (error.message,))
    here = machine or fingerprint.like(found.manifest.fingerprint, LIBRARIES)
    action, reasons = judge(found.manifest, here)
    if action == "retune":
        wanted = {graph_member(program.tactic.form) for program in found.manifest.programs}
        lost = sorted(wanted - set(found.members))
        if lost:
            why = f"{', '.join(lost)} is not inside to compile; build it again"
            return Verdict("refuse", (*reasons, why), found, here)
    return Verdict(action, tuple(reasons), found, here)


def judge(manifest: Manifest, here: Fingerprint) -> tuple[Action, Sequence[str]]:
    """The verdict on a manifest that is sound in itself."""
    built = manifest.fingerprint
    if fingerprint.kind(built) != fingerprint.kind(here):
        return "refuse", [f"it was built for {built.device}, this is {here.device}; build it again here"]
    needed = sorted({PACKAGES.get(runtime := program.tactic.runtime, runtime) for program in manifest.programs})
    missing = [name for name in needed if name not in here.libraries]
    if missing:
        return "refuse", [f"{', '.join(missing)} is not installed here; pip install {' '.join(missing)}"]
    absent = custom.lacking(manifest.custom_ops)
    if absent:
        modules = " ".join(sorted({each.module for each in absent}))
        return "refuse", [
            f"it needs custom operators that are not registered here: {', '.join(map(str, absent))} (of {modules}); "
            "import the module that registers them, or give it with custom_ops= or --custom-ops"
        ]
    return (_of_gpu if fingerprint.kind(built) == fingerprint.CUDA else _of_cpu)(built, here, needed)


def _of_cpu(built: Fingerprint, here: Fingerprint, needed: Sequence[str]) -> tuple[Action, Sequence[str]]:
    reasons: list[str] = []
    lacking = sorted(set(built.features) - set(here.features))
    gained = sorted(set(here.features) - set(built.features))
    if lacking:
        reasons.append(f"it was built for {built.model} with {', '.join(lacking)}, which {here.model} has not")
    elif gained:
        reasons.append(f"{here.model} has {', '.join(gained)}, which {built.model} had not and kernels may use")
    elif built.model != here.model:
        reasons.append(f"it was built for {built.model}, this is {here.model}")
    for name in needed:
        if built.libraries.get(name) != here.libraries[name]:
            reasons.append(f"it was built with {name} {built.libraries.get(name)}, here is {here.libraries[name]}")
    if reasons:
        return "retune", reasons
    if built.cores != here.cores:
        return "run", [f"it was timed on {built.cores} cores, here are {here.cores}: another engine may be faster"]
    return "run", []


def _of_gpu(built: Fingerprint, here: Fingerprint, needed: Sequence[str]) -> tuple[Action, Sequence[str]]:
    """Kernels are machine code for one architecture, cut for one number of multiprocessors."""
    if built.features != here.features:
        what = f"{built.device} ({', '.join(built.features)})"
        return "retune", [f"it was built for {what}, this is {here.device} ({', '.join(here.features)})"]
    differing = sorted(
        name
        for name in {*needed, "cuda-driver"} & built.libraries.keys() & here.libraries.keys()
        if built.libraries[name] != here.libraries[name]
    )
    return "run", [
        f"it was timed with {name} {built.libraries[name]}, here is {here.libraries[name]}: another may be faster"
        for name in differing
    ]
