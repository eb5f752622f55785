"""A graph that is cut around custom operators, run as one runtime: parts by a library, the nodes between by Python.

One tactic is for all parts. What a part gives is handed to the next without a copy where the library allows it; what a
function gives is checked (how many, type, rank, and shape where the registration says it), so that a mistake in it
names the operator and not a layer far behind it. Functions see read-only arrays. Called by `penstock.engine.runtimes`
in place of the library.
"""

import json
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from penstock.engine import custom, parts
from penstock.engine.custom import CustomOp
from penstock.engine.parts import Call, Chain, Part
from penstock.engine.plan import Region, Shapes, Tactic
from penstock.engine.runtimes.base import Array, Arrays, Compiled, CompiledInstance, checked
from penstock.errors import ExecutionError, ModelLoadError, Unavailable
from penstock.tensors import TensorSpec, datatype_of

CompilePart = Callable[[Path, Shapes | None], Compiled]
ReopenPart = Callable[[memoryview, tuple[str, ...], str], Compiled]

MAGIC: Final = b"penstock-chain-1"
_SIZE: Final = struct.Struct("<Q")
_TACTIC: Final = "python"


def compile(path: Path, tactic: Tactic, shapes: Shapes | None, part: CompilePart) -> "ChainedRuntime":  # noqa: A001
    """Compile every part of a form that is cut.

    shapes  for static tactics: they hold for parts that read inputs of the model; what functions give has any shape.
    part    compiles one part with the tactic's library.

    Raises what `part` raises, ModelLoadError for damaged descriptions, InvalidArgument for operators that nobody has
    registered here.
    """
    chain = parts.read(path)
    found: dict[str, Compiled] = {}
    for step in _parts(chain):
        own = {name: shape for name, shape in (shapes or {}).items() if name in step.inputs}
        found[step.name] = part(parts.part_path(path, step.name), own or None)
    constants = parts.constants_path(path)
    packed = constants.read_bytes() if chain.constants else b""
    return ChainedRuntime(chain, tactic, found, packed, shapes, path.name)


def is_chain(artifact: memoryview) -> bool:
    """Whether `ChainedRuntime.export` wrote it: no library's artifact begins like this."""
    return bytes(artifact[: len(MAGIC)]) == MAGIC


def reopen(artifact: memoryview, tactic: Tactic, name: str, part: ReopenPart) -> "ChainedRuntime":
    """What `export` gave. Raises as `compile` does."""
    members = list(_split(artifact, name))
    if len(members) < 2:
        raise ModelLoadError(f"{name}: a chain of parts is cut; build it again")
    chain = parts.from_bytes(bytes(members[0]), name)
    wanted = list(_parts(chain))
    if len(members) != 3 + len(wanted):
        raise ModelLoadError(f"{name}: {len(members) - 3} parts of {len(wanted)} are there; build it again")
    found = {
        step.name: part(data, step.outputs, f"{name} {step.name}")
        for step, data in zip(wanted, members[3:], strict=True)
    }
    return ChainedRuntime(chain, tactic, found, bytes(members[2]), _shapes(bytes(members[1]), name), name)


class ChainedRuntime:
    """Parts that are compiled, and the functions between them."""

    def __init__(
        self,
        chain: Chain,
        tactic: Tactic,
        compiled: Mapping[str, Compiled],
        constants: bytes,
        shapes: Shapes | None,
        name: str,
    ) -> None:
        """Each operator's function is looked up here: raises InvalidArgument where there is none."""
        self.name = tactic.runtime
        self.chain = chain
        self.inputs = _bound(chain.inputs, shapes)
        self.outputs = chain.outputs
        self.functions = {name: custom.get(name) for name in chain.operators}
        self.constants = parts.unpack_constants(constants, chain, name) if chain.constants else {}
        self._compiled = dict(compiled)
        self._packed = constants
        self._shapes = shapes
        self._file = name
        self._idle: deque[ChainedInstance] = deque()

    def instance(self, *, priority: int = 0) -> "ChainedInstance":
        if not self._compiled and any(_parts(self.chain)):
            raise Unavailable(f"{self._file} is closed; load it again")
        return ChainedInstance(self, {name: each.instance(priority=priority) for name, each in self._compiled.items()})

    def __call__(self, **arrays: Any) -> dict[str, Array]:
        inputs = checked(self.inputs, arrays)
        try:
            instance = self._idle.pop()
        except IndexError:
            instance = self.instance()
        try:
            return instance.execute(inputs)
        finally:
            self._idle.append(instance)

    def export(self) -> bytes:
        """The description, the shapes it is bound to, constants, and every part as its library exports it."""
        bound = {name: list(shape) for name, shape in (self._shapes or {}).items()}
        members = [parts.to_bytes(self.chain), json.dumps(bound).encode(), self._packed]
        members += [self._compiled[step.name].export() for step in _parts(self.chain)]
        return MAGIC + b"".join(_SIZE.pack(len(each)) + each for each in members)

    def regions(self, inputs: Arrays, repeats: int = 20) -> tuple[Region, ...]:
        """What libraries execute in each part, and each function with the median time of its calls."""
        instance = self.instance()
        given = instance.trace(inputs)
        instance.close()
        found: list[Region] = []
        for step in self.chain.steps:
            if isinstance(step, Part):
                own = {name: given[name] for name in step.inputs}
                measured = self._compiled[step.name].regions(own, repeats)
                found += [_named(each, step.name) for each in measured]
            else:
                found.append(self._timed(step, given, repeats))
        return tuple(found)

    def _timed(self, step: Call, given: Mapping[str, Array], repeats: int) -> Region:
        samples: list[float] = []
        for _ in range(max(1, repeats)):
            start = time.perf_counter()
            perform(self.functions[step.operator], step, given)
            samples.append(1e6 * (time.perf_counter() - start))
        return Region(step.node, str(step.operator), (step.node,), "", median(samples), _TACTIC)

    def close(self) -> None:
        self._idle.clear()
        for each in self._compiled.values():
            each.close()
        self._compiled.clear()


class ChainedInstance:
    """One call at a time: an instance of each part."""

    def __init__(self, runtime: ChainedRuntime, instances: Mapping[str, CompiledInstance]) -> None:
        self._runtime = runtime
        self._instances = dict(instances)
        self._answered = frozenset(spec.name for spec in runtime.outputs)
        # A library's own memory is good until its next call. Every part runs once in a call, so it lasts to the end.
        made = {name: step for step in _parts(runtime.chain) for name in step.outputs}
        self._fresh = frozenset(step.name for name, step in made.items() if name in self._answered)
        self._owned = frozenset(name for name, step in made.items() if step.name in self._fresh)

    def execute(self, inputs: Arrays) -> dict[str, Array]:
        found = self._run(inputs, self._fresh)
        # What a function gave may be an array of its own that it gives again, or one that came in.
        return {name: array if name in self._owned else array.copy() for name, array in self._answers(found)}

    def views(self, inputs: Arrays) -> dict[str, Array]:
        """As `execute`, without a copy."""
        return dict(self._answers(self._run(inputs, frozenset())))

    def trace(self, inputs: Arrays) -> dict[str, Array]:
        """Every tensor between the parts, by name."""
        return self._run(inputs, frozenset(self._instances))

    def close(self) -> None:
        for each in self._instances.values():
            each.close()
        self._instances.clear()

    def _answers(self, found: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        return ((spec.name, found[spec.name]) for spec in self._runtime.outputs)

    def _run(self, inputs: Arrays, fresh: frozenset[str]) -> dict[str, Array]:
        values: dict[str, Array] = {**self._runtime.constants, **inputs}
        for step in self._runtime.chain.steps:
            if isinstance(step, Call):
                values |= perform(self._runtime.functions[step.operator], step, values)
                continue
            instance = self._instances[step.name]
            own = {name: values[name] for name in step.inputs}
            try:
                values |= instance.execute(own) if step.name in fresh else instance.views(own)
            except ExecutionError as error:
                raise ExecutionError(f"{error.message}{self._after(own)}") from error
        return values

    def _after(self, given: Arrays) -> str:
        """What functions gave a part that fails: a wrong size in it is the likeliest reason."""
        made = [
            f"{name} {list(given[name].shape)} of {custom.place(step.operator, step.node)}"
            for step in self._runtime.chain.steps if isinstance(step, Call)
            for name in (spec.name for spec in step.outputs if spec) if name in given
        ]  # fmt: skip
        return f"; it was given {', '.join(made)}" if made else ""


def perform(op: CustomOp, step: Call, values: Mapping[str, Array]) -> dict[str, Array]:
    """One call of a function, its results checked and as they travel. Raises ExecutionError, which names the node."""
    given = [None if spec is None else parts.computable(values[spec.name], spec.datatype) for spec in step.inputs]
    attributes = dict(step.attributes)
    results = custom.call(op, step.node, given, attributes)
    where = custom.place(op.name, step.node)
    if len(results) < len(step.outputs):
        raise ExecutionError(f"{where} returned {len(results)} arrays, expected {len(step.outputs)}")
    expected = custom.described(
        op, [_seen(spec, array) for spec, array in zip(step.inputs, given, strict=True)], attributes
    )
    found: dict[str, Array] = {}
    for at, spec in enumerate(step.outputs):
        if spec is not None:
            exact = expected[at] if expected is not None and at < len(expected) else None
            found[spec.name] = _result(where, spec, exact, results[at])
    return found


def _result(where: str, spec: TensorSpec, exact: TensorSpec | None, array: Array) -> Array:
    try:
        datatype = datatype_of(array.dtype)
    except ValueError as error:
        raise ExecutionError(f"{where} returned for {spec.name!r}: {error}") from None
    if datatype != spec.datatype:
        raise ExecutionError(
            f"{where} returned {datatype} for {spec.name!r}, expected {spec.datatype}; convert it with .astype"
        )
    for each in (spec, exact):
        if each is not None and not each.accepts(array.shape):
            raise ExecutionError(
                f"{where} returned shape {list(array.shape)} for {spec.name!r}, expected {list(each.shape)}"
            )
    ready = parts.travels(array)
    # `ascontiguousarray` would make a vector of a scalar.
    return ready if ready.flags.c_contiguous else ready.copy(order="C")


def _seen(spec: TensorSpec | None, array: Array | None) -> TensorSpec | None:
    return None if spec is None or array is None else replace(spec, shape=array.shape)


def _parts(chain: Chain) -> Iterator[Part]:
    return (step for step in chain.steps if isinstance(step, Part))


def _bound(specs: Sequence[TensorSpec], shapes: Shapes | None) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, shape=tuple((shapes or {}).get(spec.name, spec.shape))) for spec in specs)


def _named(region: Region, part: str) -> Region:
    """Two parts may have a layer of the same name."""
    return replace(region, name=f"{part}/{region.name}")


def _split(artifact: memoryview, name: str) -> Iterator[memoryview]:
    at = len(MAGIC)
    while at < len(artifact):
        if at + _SIZE.size > len(artifact):
            raise ModelLoadError(f"{name}: a chain of parts is cut; build it again")
        (size,) = _SIZE.unpack(artifact[at : at + _SIZE.size])
        at += _SIZE.size
        if size > len(artifact) - at:
            raise ModelLoadError(f"{name}: a chain of parts is cut; build it again")
        yield artifact[at : at + size]
        at += size


def _shapes(data: bytes, name: str) -> Shapes | None:
    try:
        found = {str(key): tuple(int(size) for size in shape) for key, shape in json.loads(data).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelLoadError(f"{name}: shapes of a chain of parts can't be read ({error}); build it again") from None
    return found or None
