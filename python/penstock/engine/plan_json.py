"""Manifests as JSON and back: what an engine file's `manifest.json` holds.

Reading trusts nothing: a field that is missing, of another type or out of bounds is a ModelLoadError that names it.
Called by `sealed`, and by whoever prints a manifest.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from penstock.engine.plan import (
    PRECISIONS,
    Bucket,
    CustomOperator,
    Fingerprint,
    Manifest,
    Profile,
    Program,
    Reduction,
    Region,
    Shape,
    tactic_from_json,
    tactic_to_json,
)
from penstock.errors import InvalidArgument, ModelLoadError
from penstock.tensors import DATATYPES, TensorSpec

T = TypeVar("T")

# More of anything than these is no engine that a build made; reading stops before memory does.
_MOST_ITEMS: Final = 100_000
_LARGEST_SIZE: Final = 1 << 40


def manifest_to_json(manifest: Manifest) -> dict[str, Any]:
    """The whole manifest, in the order in which a person wants to read it."""
    return {
        "name": manifest.name,
        "precision": manifest.precision,
        "inputs": [spec_to_json(each) for each in manifest.inputs],
        "outputs": [spec_to_json(each) for each in manifest.outputs],
        "profiles": [
            {side: _shapes_to_json(getattr(each, side)) for side in ("minimum", "optimum", "maximum")}
            for each in manifest.profiles
        ],
        "programs": [
            {
                "tactic": tactic_to_json(each.tactic),
                "artifact": each.artifact,
                "shapes": _shapes_to_json(each.shapes),
                "bytes": each.bytes,
                "outputs": list(each.outputs),
                "beside": each.beside,
                "shared_bytes": each.shared_bytes,
                "context_bytes": each.context_bytes,
            }
            for each in manifest.programs
        ],
        "buckets": [
            {"shapes": _shapes_to_json(each.shapes), "program": each.program, "microseconds": each.microseconds}
            for each in manifest.buckets
        ],
        "reductions": [
            {"output": each.output, "axis": each.axis, "beside": each.beside} for each in manifest.reductions
        ],
        "fingerprint": fingerprint_to_json(manifest.fingerprint),
        "source_hash": manifest.source_hash,
        "options": dict(manifest.options),
        "custom_ops": [
            {"domain": each.domain, "name": each.name, "module": each.module} for each in manifest.custom_ops
        ],
        "regions": [
            {
                "name": each.name,
                "kind": each.kind,
                "nodes": list(each.nodes),
                "precision": each.precision,
                "microseconds": each.microseconds,
                "tactic": each.tactic,
                "flops": each.flops,
                "bytes": each.bytes,
            }
            for each in manifest.regions
        ],
    }


def manifest_from_json(data: Any) -> Manifest:
    """Raises ModelLoadError for anything `manifest_to_json` can't have written."""
    top = Reader(data, "manifest")
    programs = top.items("programs", _program)
    buckets = top.items("buckets", _bucket)
    found = Manifest(
        name=top.text("name"),
        inputs=top.items("inputs", spec_from_json),
        outputs=top.items("outputs", spec_from_json),
        profiles=top.items("profiles", _profile),
        programs=programs,
        buckets=buckets,
        regions=top.items("regions", _region),
        fingerprint=fingerprint_from_json(top.value("fingerprint")),
        precision=top.text("precision"),
        source_hash=top.text("source_hash"),
        reductions=top.items("reductions", _reduction),
        options=top.mapping("options"),
        custom_ops=top.items("custom_ops", _custom_op) if "custom_ops" in top else (),  # later than the format
    )
    _check_together(found)
    return found


def _check_together(manifest: Manifest) -> None:
    """What no field says alone: whoever runs the engine relies on it without looking again."""
    if not manifest.inputs or not manifest.outputs or not manifest.profiles or not manifest.programs:
        raise ModelLoadError("manifest: expected inputs, outputs, a profile and a program at least")
    for specs in (manifest.inputs, manifest.outputs):
        if len({spec.name for spec in specs}) != len(specs):
            raise ModelLoadError("manifest: a tensor is named twice")
    for at, profile in enumerate(manifest.profiles):
        _check_shapes(manifest, profile.minimum, f"profiles[{at}]")
        _check_shapes(manifest, profile.maximum, f"profiles[{at}]")
    for at, program in enumerate(manifest.programs):
        if (program.tactic.shapes == "static") != bool(program.shapes):
            raise ModelLoadError(f"manifest: programs[{at}] is {program.tactic.shapes} and has shapes {program.shapes}")
        if program.shapes:
            _check_shapes(manifest, program.shapes, f"programs[{at}]")
        if program.beside and not all(each.output in program.outputs for each in manifest.reductions):
            raise ModelLoadError(f"manifest: programs[{at}] lacks an output that is reduced")
    for at, bucket in enumerate(manifest.buckets):
        if bucket.program >= len(manifest.programs):
            raise ModelLoadError(f"manifest: buckets[{at}] names program {bucket.program} of {len(manifest.programs)}")
        _check_shapes(manifest, bucket.shapes, f"buckets[{at}]")
        bound = manifest.programs[bucket.program].shapes
        if bound and dict(bound) != dict(bucket.shapes):
            raise ModelLoadError(f"manifest: buckets[{at}] has other shapes than its program")


def _check_shapes(manifest: Manifest, shapes: Mapping[str, Shape], where: str) -> None:
    fits = shapes.keys() == {spec.name for spec in manifest.inputs}
    if not fits or not all(spec.accepts(shapes[spec.name]) and 0 not in shapes[spec.name] for spec in manifest.inputs):
        raise ModelLoadError(f"manifest: {where} does not fit the inputs {', '.join(map(str, manifest.inputs))}")


def fingerprint_to_json(fingerprint: Fingerprint) -> dict[str, Any]:
    return {
        "device": fingerprint.device,
        "model": fingerprint.model,
        "features": list(fingerprint.features),
        "cores": fingerprint.cores,
        "libraries": dict(fingerprint.libraries),
    }


def fingerprint_from_json(data: Any) -> Fingerprint:
    """Raises ModelLoadError."""
    found = Reader(data, "fingerprint")
    libraries = found.mapping("libraries")
    return Fingerprint(
        device=found.text("device"),
        model=found.text("model"),
        features=tuple(_checked(each, str, "fingerprint.features") for each in found.sequence("features")),
        cores=found.count("cores"),
        libraries={
            name: _checked(version, str, f"fingerprint.libraries.{name}") for name, version in libraries.items()
        },
    )


class Reader:
    """Fields of one JSON object, each with the type that is expected."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise ModelLoadError(f"{where}: expected an object, got {type(data).__name__}")
        self._data: Mapping[str, Any] = data
        self._where = where

    def __contains__(self, key: str) -> bool:
        return key in self._data

    def value(self, key: str) -> Any:
        if key not in self._data:
            raise ModelLoadError(f"{self._where}: {key!r} is missing")
        return self._data[key]

    def text(self, key: str) -> str:
        return _checked(self.value(key), str, f"{self._where}.{key}")

    def flag(self, key: str) -> bool:
        return _checked(self.value(key), bool, f"{self._where}.{key}")

    def integer(self, key: str) -> int:
        return _whole(self.value(key), f"{self._where}.{key}")

    def count(self, key: str) -> int:
        number = self.integer(key)
        if not 0 <= number <= _LARGEST_SIZE:
            raise ModelLoadError(f"{self._where}.{key}: {number} is out of bounds")
        return number

    def number(self, key: str) -> float:
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ModelLoadError(f"{self._where}.{key}: expected a number from 0, got {value!r:.40}")
        return float(value)

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.value(key)
        if not isinstance(value, dict) or len(value) > _MOST_ITEMS:
            raise ModelLoadError(f"{self._where}.{key}: expected an object, got {type(value).__name__}")
        return value

    def sequence(self, key: str) -> Sequence[Any]:
        value = self.value(key)
        if not isinstance(value, list) or len(value) > _MOST_ITEMS:
            raise ModelLoadError(f"{self._where}.{key}: expected a list of at most {_MOST_ITEMS}")
        return value

    def items(self, key: str, make: Callable[["Reader"], T]) -> tuple[T, ...]:
        return tuple(make(Reader(each, f"{key}[{at}]")) for at, each in enumerate(self.sequence(key)))

    def shapes(self, key: str) -> dict[str, Shape]:
        found = self.mapping(key)
        return {name: _shape(sizes, f"{self._where}.{key}.{name}", least=0) for name, sizes in found.items()}


def _checked(value: Any, kind: type[T], where: str) -> T:
    if not isinstance(value, kind):
        raise ModelLoadError(f"{where}: expected {kind.__name__}, got {value!r:.40}")
    return value


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelLoadError(f"{where}: expected a whole number, got {value!r:.40}")
    return value


def _shape(sizes: Any, where: str, *, least: int) -> Shape:
    if not isinstance(sizes, list) or len(sizes) > 64:
        raise ModelLoadError(f"{where}: expected a shape, got {sizes!r:.40}")
    shape = tuple(_whole(size, where) for size in sizes)
    if any(not least <= size <= _LARGEST_SIZE for size in shape):
        raise ModelLoadError(f"{where}: {list(shape)} is no shape")
    return shape


def _shapes_to_json(shapes: Mapping[str, Shape]) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in shapes.items()}


def spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": spec.datatype,
        "shape": list(spec.shape),
        "optional": spec.optional,
        "axes": list(spec.axes),
    }


def spec_from_json(data: Reader) -> TensorSpec:
    datatype = data.text("datatype")
    if datatype not in DATATYPES:
        raise ModelLoadError(f"manifest: datatype {datatype!r:.40} is not known")
    shape = _shape(data.value("shape"), "shape", least=-1)
    axes = tuple(None if each is None else _checked(each, str, "axes") for each in data.sequence("axes"))
    return TensorSpec(data.text("name"), datatype, shape, data.flag("optional"), axes)


def _profile(data: Reader) -> Profile:
    found = Profile(data.shapes("minimum"), data.shapes("optimum"), data.shapes("maximum"))
    alike = found.minimum.keys() == found.optimum.keys() == found.maximum.keys()
    alike = alike and all(len(found.minimum[name]) == len(found.maximum[name]) for name in found.minimum)
    if not alike or not (
        found.contains(found.minimum) and found.contains(found.optimum) and found.contains(found.maximum)
    ):
        raise ModelLoadError("manifest: a profile's shapes contradict each other")
    return found


def _program(data: Reader) -> Program:
    try:
        tactic = tactic_from_json(data.mapping("tactic"))
    except InvalidArgument as error:
        raise ModelLoadError(f"manifest: {error}") from None
    if tactic.precision not in PRECISIONS:
        raise ModelLoadError(f"manifest: precision {tactic.precision!r:.40} is not known")
    outputs = tuple(_checked(each, str, "programs.outputs") for each in data.sequence("outputs"))
    shared, context = (data.count(key) if key in data else 0 for key in ("shared_bytes", "context_bytes"))  # are later
    size = data.count("bytes")
    if shared + context > size:
        raise ModelLoadError(f"manifest: a program of {size} bytes can't share {shared} and have contexts of {context}")
    return Program(
        tactic, data.text("artifact"), data.shapes("shapes"), size, outputs, data.flag("beside"), shared, context
    )


def _bucket(data: Reader) -> Bucket:
    return Bucket(data.shapes("shapes"), data.count("program"), data.number("microseconds"))


def _region(data: Reader) -> Region:
    nodes = tuple(_checked(each, str, "nodes") for each in data.sequence("nodes"))
    return Region(
        data.text("name"),
        data.text("kind"),
        nodes,
        data.text("precision"),
        data.number("microseconds"),
        data.text("tactic"),
        *(data.number(key) if key in data else 0.0 for key in ("flops", "bytes")),  # later than the format
    )


def _reduction(data: Reader) -> Reduction:
    return Reduction(data.text("output"), data.integer("axis"), data.flag("beside"))


def _custom_op(data: Reader) -> CustomOperator:
    return CustomOperator(data.text("domain"), data.text("name"), data.text("module"))
