"""`penstock inspect`: what is in a file. An engine's regions, times, evidence; what a model's layers would become; what
the requests of a trace took."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from penstock.cli.output import accuracy_text, console, plain, print_json, shapes_text, size_text, specs_json, table
from penstock.cli.roofline import ROOFLINE, ceilings_json, region_json, roofline_cells
from penstock.cli.traces import show_trace
from penstock.errors import InvalidArgument, ModelLoadError, NotFound

if TYPE_CHECKING:
    from penstock.build.evidence import Evidence
    from penstock.engine.plan import Profile
    from penstock.engine.sealed import Sealed

_KINDS: Final = "an engine (.engine), a model (.onnx) or a trace (.jsonl)"


def inspect(
    file: Annotated[Path, typer.Argument(help="An engine, an ONNX file, or a trace (.jsonl).", show_default=False)],
    all_regions: Annotated[
        bool, typer.Option("--all", help="Every region, or request; default: the slowest 20, or 5.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what is in an engine (regions, precision, tactics, times, memory, evidence), in a model, or in a trace."""
    from penstock.engine import ENGINE_SUFFIX

    if file.is_dir():
        raise InvalidArgument(f"{file.name} is a directory, expected {_KINDS}")
    if not file.exists():
        raise NotFound(f"{file.name!r} does not exist; expected {_KINDS}")
    if file.suffix == ENGINE_SUFFIX:
        _engine(file, as_json=as_json, most=None if all_regions else 20)
    elif file.suffix == ".onnx":
        _onnx(file, as_json=as_json, most=None if all_regions else 20)
    elif file.suffix == ".jsonl":
        show_trace(file, as_json=as_json, most=None if all_regions else 5)
    else:
        raise InvalidArgument(f"{file.name}: expected {_KINDS}")


# ---- models ----


def _onnx(file: Path, *, as_json: bool, most: int | None) -> None:
    from penstock import graph
    from penstock.graph.regions import listing

    model = graph.load(file)
    inputs, outputs = graph.signature(model)
    done = graph.optimize(model)
    found = listing(model, done.model)
    passes = [each for each in done.records if each.changed]
    if as_json:
        print_json(
            {
                "kind": "onnx",
                "file": file.name,
                "inputs": specs_json(inputs),
                "outputs": specs_json(outputs),
                "nodes": len(model.graph),
                "nodes_optimized": len(done.model.graph),
                "layers": found.layers_before,
                "passes": [
                    {
                        "name": each.name,
                        "nodes_before": each.nodes_before,
                        "nodes_after": each.nodes_after,
                        "time_s": each.seconds,
                    }
                    for each in passes
                ],
                "regions": [
                    {"name": each.name, "kind": each.kind, "nodes": list(each.nodes)} for each in found.regions
                ],
            }
        )
        return
    out = console()
    for line in (
        f"{file.name}: {len(model.graph)} nodes, {found.layers_before} layers -> {len(found.regions)} regions",
        f"inputs: {', '.join(map(str, inputs))}",
        f"outputs: {', '.join(map(str, outputs))}",
    ):
        out.print(line, markup=False, soft_wrap=True)
    kinds = table("regions of a kind", ">count")
    for kind, count in Counter(each.kind for each in found.regions).most_common(most):
        kinds.add_row(kind, str(count))
    out.print(kinds)
    steps = table("pass", ">nodes before", ">after", ">ms")
    for each in passes:
        steps.add_row(each.name, str(each.nodes_before), str(each.nodes_after), f"{1000 * each.seconds:.1f}")
    out.print(steps)


# ---- engines ----


def _engine(file: Path, *, as_json: bool, most: int | None) -> None:
    from penstock.build import evidence
    from penstock.engine import sealed

    found = sealed.read(file)
    try:
        seen = evidence.from_json(found.evidence)
    except InvalidArgument as error:
        raise ModelLoadError(f"{file.name}: {error.message}") from None
    if as_json:
        print_json(_document(file, found, seen))
    else:
        _print(file, found, seen, most)


def _profile(profile: "Profile") -> dict[str, Any]:
    return plain({"min": profile.minimum, "opt": profile.optimum, "max": profile.maximum})  # type: ignore[no-any-return]


def _document(file: Path, found: "Sealed", seen: "Evidence") -> dict[str, Any]:
    from penstock.engine.plan import bytes_together

    manifest = found.manifest
    return {
        "kind": "engine",
        "file": file.name,
        "name": manifest.name,
        "content_hash": found.content_hash,
        "source_hash": manifest.source_hash,
        "file_bytes": file.stat().st_size,
        "memory_bytes": bytes_together(manifest.programs),
        "precision": manifest.precision,
        "inputs": specs_json(manifest.inputs),
        "outputs": specs_json(manifest.outputs),
        "profiles": [_profile(each) for each in manifest.profiles],
        "programs": [
            {
                "tactic": each.tactic.name,
                "shapes": plain(each.shapes) or None,
                "memory_bytes": each.bytes,
                "shared_bytes": each.shared_bytes,
                "context_bytes": each.context_bytes,
            }
            for each in manifest.programs
        ],
        "buckets": [
            {"shapes": plain(each.shapes), "program": each.program, "time_us": each.microseconds}
            for each in manifest.buckets
        ],
        "regions": [region_json(each, seen.ceilings) for each in manifest.regions],
        "ceilings": ceilings_json(seen.ceilings) if seen.ceilings else None,
        "machine": plain(manifest.fingerprint),
        "options": plain(manifest.options),
        "evidence": seen.to_json(),
    }


def _print(file: Path, found: "Sealed", seen: "Evidence", most: int | None) -> None:
    from penstock.build import evidence
    from penstock.cli.build import race_table
    from penstock.engine.plan import bytes_together

    manifest, out = found.manifest, console()
    machine = manifest.fingerprint
    libraries = ", ".join(f"{name} {version}" for name, version in machine.libraries.items())
    memory = bytes_together(manifest.programs)
    lines = [
        f"{file.name}: {manifest.name}, {manifest.precision}, "
        f"{size_text(file.stat().st_size)} on disk, {size_text(memory)} in memory",
        f"built {seen.environment.built_at} in {seen.seconds:.0f} s for {machine.model}, {machine.cores} cores",
        f"libraries: {libraries}",
        f"inputs: {', '.join(map(str, manifest.inputs))}",
        f"outputs: {', '.join(map(str, manifest.outputs))}",
        *(
            f"profile: {shapes_text(each.minimum)} to {shapes_text(each.maximum)}, best at {shapes_text(each.optimum)}"
            for each in manifest.profiles
        ),
        accuracy_text(seen),
        _calibration(seen),
        *([f"{seen.mixed.form}: {evidence.kept_wide(seen.mixed)}"] if seen.mixed and seen.mixed.form else []),
    ]
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
    on_device = any(each.context_bytes for each in manifest.programs)
    buckets = table("bucket", ">time ms", "program", *([">a context"] if on_device else []))
    for place in evidence.by_size([each.shapes for each in manifest.buckets]):
        each = manifest.buckets[place]
        program = manifest.programs[each.program]
        held = [size_text(program.context_bytes)] if on_device else []
        buckets.add_row(
            evidence.label(each.shapes), evidence.milliseconds(each.microseconds), program.tactic.name, *held
        )
    out.print(buckets)
    if on_device:
        shared = size_text(max(each.shared_bytes for each in manifest.programs))
        out.print(f"on the device: weights {shared} once, and the above for each context of a bucket", markup=False)
    out.print(race_table(seen))
    total = sum(each.microseconds for each in manifest.regions) or 1.0
    out.print(f"{len(manifest.regions)} regions from {_sources(found)} layers")
    columns = ROOFLINE if seen.ceilings else ()
    regions = table("region", "kind", "precision", "tactic", ">time us", ">share", *columns)
    for region in sorted(manifest.regions, key=lambda each: -each.microseconds)[:most]:
        time, share = f"{region.microseconds:.1f}", f"{100 * region.microseconds / total:.1f} %"
        more = roofline_cells(region, seen.ceilings) if seen.ceilings else ()
        regions.add_row(region.name, region.kind, region.precision, region.tactic, time, share, *more)
    out.print(regions)
    if most is not None and len(manifest.regions) > most:
        out.print(f"{len(manifest.regions) - most} more with --all", markup=False)


def _sources(found: "Sealed") -> int:
    """Layers of the source model that the regions stand for."""
    return len({name for region in found.manifest.regions for name in region.nodes})


def _calibration(seen: "Evidence") -> str:
    if seen.calibration is None:
        return "calibration: none, so INT8 was not tried"
    used = f", ranges by {seen.calibration.method}" if seen.calibration.method else ""
    mixed = seen.sensitivity if seen.sensitivity and seen.sensitivity.form else None
    kept = f"; in {mixed.form} {len(mixed.kept)} layers are left in floating point" if mixed else ""
    return f"calibration: {seen.calibration.samples} samples, digest {seen.calibration.digest[:12]}{used}{kept}"
