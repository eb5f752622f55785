"""What a build is asked for: settings as text or Python values, checked once, before anything takes time.

`BuildOptions.of` takes what `ps.build` and `penstock build` were given. Whatever can't be understood, or can't be true
of any model or machine, is an InvalidArgument with what was expected, what came and how to write it; what only this
model or this machine can't do is for the driver to find. Called by the driver; the command line calls the parsers.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from penstock import limits
from penstock.build import gate as gates
from penstock.build.gate import Cosine, Gate
from penstock.build.shapes import Asked
from penstock.build.shapes import buckets as buckets_of
from penstock.build.shapes import profiles as profiles_of
from penstock.engine import import_ops
from penstock.engine.plan import PRECISIONS, Profile, Shapes
from penstock.errors import InvalidArgument, UsageError
from penstock.tactics.cache import ours
from penstock.tensors import TensorSpec

Samples = Iterable[Mapping[str, NDArray[Any]]]

AUTO: Final = "auto"

# Enough for the libraries and forms of a mid-sized model on two cores; large models want more, and say so in evidence.
DEFAULT_BUDGET_SECONDS: Final = 300.0

MOST_CONTEXTS: Final = 16  # beyond that a kernel takes no less of a GPU

_UNIT_SECONDS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_UNIT_BYTES: Final = {
    **{unit: 1024**power for power, unit in enumerate(("b", "kib", "mib", "gib", "tib"))},
    **{unit: 1000**power for power, unit in enumerate(("kb", "mb", "gb", "tb"), 1)},
}


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Everything but the model and where the engine goes."""

    precision: str = AUTO
    device: str = AUTO
    """`auto`, `cpu` or `cuda:N`."""

    shapes: tuple[Asked, ...] = ()
    """One per profile; none: the model's own signature says."""

    batches: tuple[int, ...] = ()
    """`--buckets`, ascending; none: min, opt and max of each profile."""

    gate: Gate = field(default_factory=Cosine)
    calibration: str | Path | Samples | None = None
    """File, directory, `module:function`, or inputs themselves; read by penstock.quantize."""

    budget_seconds: float = DEFAULT_BUDGET_SECONDS
    timing_cache: Path | None = None
    workspace_bytes: int | None = None
    """What the engine's programs may hold together; None: no limit."""

    preprocess: tuple[str, ...] = ()
    reduce: tuple[str, ...] = ()
    """Read by penstock.graph, which knows the model they have to fit."""

    custom_ops: tuple[str, ...] = ()
    """Modules that register custom operators."""

    contexts: int = 1
    """That will compute at once, on a GPU: its kernels are chosen by what they take beside so many of each other."""

    @classmethod
    def of(
        cls,
        *,
        precision: str = AUTO,
        device: str = AUTO,
        shapes: Asked | Sequence[Asked] | None = None,
        buckets: str | Sequence[int] | None = None,
        calibration: str | Path | Samples | None = None,
        accuracy: str | Gate | None = None,
        budget_seconds: float | None = None,
        timing_cache: str | Path | None = None,
        workspace_bytes: int | None = None,
        preprocess: str | Sequence[str] = (),
        reduce: str | Sequence[str] = (),
        custom_ops: str | Sequence[str] = (),
        contexts: int = 1,
    ) -> "BuildOptions":
        """Check what was given; raises InvalidArgument. Modules of the metric and of custom operators are imported."""
        modules = (custom_ops,) if isinstance(custom_ops, str) else tuple(custom_ops)
        for each in modules:
            import_ops(each)
        if budget_seconds is not None and not 0 < budget_seconds <= limits.LONGEST_SECONDS:
            raise UsageError.of("budget_seconds", budget_seconds, "more than none and at most a year, as in 5m")
        if workspace_bytes is not None and workspace_bytes < 1:
            raise UsageError.of("workspace_bytes", workspace_bytes, "at least one byte, as in 1GiB")
        if not 1 <= contexts <= MOST_CONTEXTS:
            raise UsageError.of("contexts", contexts, f"from 1 to {MOST_CONTEXTS}")
        cache = Path(timing_cache) if timing_cache is not None else None
        if cache is not None:
            ours(cache)  # raises for a file that saving would replace
        where = parse_device(device)
        if contexts > 1 and where == "cpu":
            raise UsageError(
                f"contexts {contexts} on device cpu: only a GPU's kernels are chosen for several at once; on the CPU "
                "contexts share the cores when the engine is loaded"
            )
        return cls(
            precision=parse_precision(precision),
            device=where,
            shapes=_several(shapes),
            batches=parse_buckets(buckets) if buckets is not None else (),
            gate=gates.parse(accuracy) if isinstance(accuracy, str) else accuracy or Cosine(),
            calibration=calibration,
            budget_seconds=budget_seconds or DEFAULT_BUDGET_SECONDS,
            timing_cache=cache,
            workspace_bytes=workspace_bytes,
            preprocess=(preprocess,) if isinstance(preprocess, str) else tuple(preprocess),
            reduce=(reduce,) if isinstance(reduce, str) else tuple(reduce),
            custom_ops=modules,
            contexts=contexts,
        )

    def to_json(self) -> dict[str, Any]:
        """For the manifest and the evidence: what is needed to ask for the same again, where it is text."""
        return {
            "precision": self.precision,
            "device": self.device,
            "shapes": [_shapes_to_json(each) for each in self.shapes],
            "buckets": list(self.batches),
            "accuracy": self.gate.text,
            "calibration": str(self.calibration) if isinstance(self.calibration, (str, Path)) else None,
            "budget_seconds": self.budget_seconds,
            "workspace_bytes": self.workspace_bytes,
            "preprocess": list(self.preprocess),
            "reduce": list(self.reduce),
            "custom_ops": list(self.custom_ops),
            "contexts": self.contexts,
        }


def _several(shapes: Asked | Sequence[Asked] | None) -> tuple[Asked, ...]:
    if shapes is None:
        return ()
    return (shapes,) if isinstance(shapes, (str, Profile, Mapping)) else tuple(shapes)


def _shapes_to_json(asked: Asked) -> Any:
    if isinstance(asked, str):
        return asked
    if isinstance(asked, Profile):
        sides = (asked.minimum, asked.optimum, asked.maximum)
        return {name: [list(side[name]) for side in sides] for name in asked.minimum}
    return {
        name: [list(each) if isinstance(each, Iterable) else each for each in shape] for name, shape in asked.items()
    }


def profiles(options: BuildOptions, inputs: Sequence[TensorSpec]) -> tuple[Profile, ...]:
    """The profiles of a model with these inputs; raises InvalidArgument when they don't fit it."""
    return profiles_of(inputs, options.shapes, options.batches)


def buckets(options: BuildOptions, inputs: Sequence[TensorSpec], profile: Profile) -> tuple[Shapes, ...]:
    """The shapes of a profile that are timed; raises InvalidArgument when no asked batch lies in it."""
    found = buckets_of(inputs, profile, options.batches)
    if not found:
        asked = ",".join(map(str, options.batches))
        low, high = (
            ", ".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in side.items())
            for side in (profile.minimum, profile.maximum)
        )
        raise InvalidArgument(
            f"buckets {asked}: none lies between {low} and {high}; widen --shapes or change --buckets"
        )
    return found


def allowed(precision: str) -> tuple[str, ...]:
    """The precisions a build may use: `precision` and everything wider, narrow to wide; all of them for `auto`."""
    precision = parse_precision(precision)
    return PRECISIONS if precision == AUTO else PRECISIONS[PRECISIONS.index(precision) :]


def parse_precision(text: str) -> str:
    found = text.strip().lower()
    if found not in (AUTO, *PRECISIONS):
        raise InvalidArgument(f"precision {text!r}: expected one of auto, {', '.join(reversed(PRECISIONS))}")
    return found


def parse_device(text: str) -> str:
    """`auto`, `cpu`, `cuda:N`; `cuda` is `cuda:0`."""
    found = text.strip().lower()
    if found == "cuda":
        return "cuda:0"
    if found not in (AUTO, "cpu") and re.fullmatch(r"cuda:[0-9]{1,4}", found) is None:
        raise InvalidArgument(f"device {text!r}: expected auto, cpu or cuda:N, as in cuda:0")
    return found


def parse_buckets(given: str | Sequence[int]) -> tuple[int, ...]:
    """`1,8,64`: batch sizes, ascending and each once."""
    parts = given.split(",") if isinstance(given, str) else list(given)
    found: set[int] = set()
    for part in parts:
        text = str(part).strip()
        if not (text.isascii() and text.isdigit() and 1 <= len(text) <= 9 and int(text) > 0):
            raise InvalidArgument(f"buckets {given!r}: {text!r} is no batch size, expected numbers from 1 as in 1,8,64")
        found.add(int(text))
    if not found:
        raise InvalidArgument("buckets: expected at least one batch size, as in 1,8,64")
    return tuple(sorted(found))


def parse_seconds(text: str) -> float:
    """`90s`, `5m`, `2h`, `1h30m`, `500ms`, in seconds. A bare number is refused: it could be minutes as well."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|h|m|s)", text.strip().lower())
    if not parts or "".join(map("".join, parts)) != re.sub(r"\s", "", text.lower()):
        raise InvalidArgument(f"duration {text!r}: expected a number with its unit (ms, s, m, h), as in 5m or 90s")
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)


def parse_bytes(text: str) -> int:
    """`1GiB`, `512MiB`, `1.5GB`, `4096B`, in bytes. A bare number is refused, as above."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)", text.strip().lower())
    if found is None or found[2] not in _UNIT_BYTES:
        raise InvalidArgument(f"size {text!r}: expected a number with its unit (B, KiB, MiB, GiB, GB), as in 1GiB")
    return int(float(found[1]) * _UNIT_BYTES[found[2]])
