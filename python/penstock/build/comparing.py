"""Two models on the same inputs: the work behind `penstock compare`, and inputs for it and for `penstock time`.

A is the reference, B the candidate, and each may be an engine or a model file. Called by the command line.
"""

from collections.abc import Sequence
from pathlib import Path

from penstock import quantize
from penstock.build.gate import Gate, Verdict
from penstock.build.metrics import Arrays, OutputError, compare_outputs, worst
from penstock.build.samples import Samples
from penstock.build.shapes import Asked, profiles
from penstock.engine import Engine, Runtime
from penstock.engine.plan import Profile, Shapes
from penstock.errors import InvalidArgument, NotFound


def compare(reference: Runtime, candidate: Runtime, samples: Sequence[Arrays]) -> tuple[OutputError, ...]:
    """Each output's worst over the samples; NaN, or another kind of output, is a fault in its row."""
    return worst(compare_outputs(reference(**each), candidate(**each), reference.outputs) for each in samples)


def judge(gate: Gate, reference: Runtime, candidate: Runtime, samples: Sequence[Arrays]) -> Verdict:
    """What a gate says of the candidate."""
    judged = gate.against(lambda inputs: reference(**inputs), samples, reference.outputs)
    return judged(lambda inputs: candidate(**inputs))


def same_inputs(reference: Runtime, candidate: Runtime) -> None:
    """Raises InvalidArgument unless both take the same names and types; shapes show when they run."""
    first, second = ({spec.name: spec.datatype for spec in each.inputs} for each in (reference, candidate))
    if first != second:
        left, right = (", ".join(map(str, each.inputs)) for each in (reference, candidate))
        raise InvalidArgument(f"A takes {left}; B takes {right}; expected the same inputs")


def shapes_of(runtimes: Sequence[Runtime], asked: Sequence[Asked]) -> Shapes:
    """Shapes to run at: what was asked for; else an engine's first profile; else what the signature gives.

    Of min, opt and max the optimum counts. Raises InvalidArgument where dimensions are left open, and for more than one
    profile.
    """
    if asked:
        found = profiles(runtimes[0].inputs, asked)
        if len(found) > 1:
            raise InvalidArgument(f"expected the shapes of one run, got {len(found)} profiles: an input comes twice")
        return found[0].optimum
    built: list[Profile] = [each.manifest.profiles[0] for each in runtimes if isinstance(each, Engine)]
    return (built or profiles(runtimes[0].inputs))[0].optimum


def samples_of(runtime: Runtime, shapes: Shapes, data: Path | None, count: int) -> list[Arrays]:
    """At most `count` inputs of a file or folder (as `--calibration` takes it); else seeded noise of these shapes.

    Raises NotFound and InvalidArgument for data that does not fit the model.
    """
    if data is None:
        samples = Samples(runtime.inputs, None)
        samples.settle(lambda given: runtime(**given), [shapes])
        return list(samples.held_out([shapes], count))
    if not data.exists():
        raise NotFound(f"inputs {data.name!r} do not exist; expected a .npz file or a folder of arrays")
    return list(quantize.load(data, runtime.inputs, limit=count, allow_random=True))
