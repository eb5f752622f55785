"""May this engine run on this machine? `run`, `retune` or `refuse`, and why: the preflight of `penstock check`.

An engine is for one kind of processor and one version of each library: programs are what a library compiled, and
timings chose among them. On another machine its graphs are compiled anew with the same tactics (`retune`), which is
correct and perhaps not the fastest. What is damaged, newer, or needs what this machine lacks is refused. Called by
`load` and the command line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from penstock.engine import custom, fingerprint, sealed
from penstock.engine.plan import CUDA, TUNED_STEPS, Fingerprint, Manifest
from penstock.engine.runtimes import LIBRARIES, PACKAGES, settings
from penstock.engine.sealed import Sealed, graph_member
from penstock.errors import ModelLoadError

_TIMED_WITH: Final = ("torch", "cuda-driver")

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

    anew: frozenset[str] = frozenset()
    """For `retune`, the runtimes whose programs are compiled anew; the others run as they are."""


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
        stale = _stale(found.manifest, here)
        programs = (each for each in found.manifest.programs if each.tactic.runtime in stale)
        wanted = {graph_member(program.tactic.form) for program in programs}
        lost = sorted(wanted - set(found.members))
        if lost:
            why = f"{', '.join(lost)} is not inside to compile; build it again"
            return Verdict("refuse", (*reasons, why), found, here)
    anew = frozenset(_stale(found.manifest, here)) if action == "retune" else frozenset()
    return Verdict(action, tuple(reasons), found, here, anew)


def judge(manifest: Manifest, here: Fingerprint) -> tuple[Action, Sequence[str]]:
    """The verdict on a manifest that is sound in itself."""
    built = manifest.fingerprint
    if fingerprint.kind(built) != fingerprint.kind(here):
        return "refuse", [f"it was built for {built.device}, this is {here.device}; build it again here"]
    needed = _needed(manifest)
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
    stale = _stale(manifest, here)
    if reasons := [reason for each in stale.values() for reason in each]:
        return "retune", list(dict.fromkeys(reasons))
    return "run", _remarks(manifest, here)


def _needed(manifest: Manifest) -> list[str]:
    """Packages, by name. Tuned programs for a GPU are bound to their kernels with triton, which comes with torch."""
    found = {PACKAGES.get(runtime := program.tactic.runtime, runtime) for program in manifest.programs}
    tuned = any(program.tactic.options == TUNED_STEPS for program in manifest.programs)
    return sorted({*found, *(["triton"] if tuned else [])})


def _stale(manifest: Manifest, here: Fingerprint) -> dict[str, list[str]]:
    """Runtimes whose programs have to be compiled anew, with the reasons: not those of the other device's."""
    built = manifest.fingerprint
    runtimes = sorted({program.tactic.runtime for program in manifest.programs})
    found = {each: _of_gpu(built, here) if each == CUDA else _of_cpu(built, here, each) for each in runtimes}
    if any(settings.on_gpu(program.tactic) for program in manifest.programs):
        found["onnxruntime"] += _of_gpu(built, here)
    return {runtime: reasons for runtime, reasons in found.items() if reasons}


def _of_cpu(built: Fingerprint, here: Fingerprint, runtime: str) -> list[str]:
    """What a library compiled is for one kind of processor and its own version."""
    reasons: list[str] = []
    before, now = (set(each.features) - fingerprint.of_gpu(each) for each in (built, here))
    if before - now:
        reasons.append(
            f"it was built for {built.model} with {', '.join(sorted(before - now))}, which {here.model} has not"
        )
    elif now - before:
        reasons.append(
            f"{here.model} has {', '.join(sorted(now - before))}, which {built.model} had not and kernels may use"
        )
    elif built.model != here.model:
        reasons.append(f"it was built for {built.model}, this is {here.model}")
    name = PACKAGES.get(runtime, runtime)
    if built.libraries.get(name) != here.libraries[name]:
        reasons.append(f"it was built with {name} {built.libraries.get(name)}, here is {here.libraries[name]}")
    return reasons


def _of_gpu(built: Fingerprint, here: Fingerprint) -> list[str]:
    """Kernels are machine code for one architecture, cut for one number of multiprocessors."""
    before, now = (fingerprint.of_gpu(each) for each in (built, here))
    if before == now:
        return []
    was, this = (f"{each.device} ({', '.join(sorted(fingerprint.of_gpu(each)))})" for each in (built, here))
    return [f"it was built for {was}, this is {this}"]


def _remarks(manifest: Manifest, here: Fingerprint) -> list[str]:
    """What is different and does not matter for the answers."""
    built = manifest.fingerprint
    if fingerprint.kind(built) != CUDA:
        if built.cores == here.cores:
            return []
        return [f"it was timed on {built.cores} cores, here are {here.cores}: another engine may be faster"]
    known = built.libraries.keys() & here.libraries.keys()
    return [
        f"it was timed with {name} {built.libraries[name]}, here is {here.libraries[name]}: another may be faster"
        for name in sorted(known & set(_TIMED_WITH))
        if built.libraries[name] != here.libraries[name]
    ]
