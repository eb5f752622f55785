"""The nouns of a built engine, as data: what was chosen, for which shapes, on which machine.

Everything here is a frozen dataclass that goes to JSON and back without loss (`to_json`, `from_json`); no library is
imported and nothing is computed. `tactics` writes them into its cache, `build` into the manifest, reports print them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from penstock.errors import InvalidArgument
from penstock.tensors import TensorSpec

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # input name -> shape, batch included

# Narrow to wide: a precision allows itself and everything after it.
PRECISIONS: Final[tuple[str, ...]] = ("int8", "fp8", "fp16", "bf16", "tf32", "fp32")
SOURCE: Final = "source"
OPTIMIZED: Final = "optimized"
CUDA: Final = "cuda"
"""The runtime, and what the device of a GPU's fingerprint begins with."""

# What executes the steps of a program for a GPU: libraries, each step's first implementation; or what was timed.
PLAIN_STEPS: Final = (("steps", "plain"),)
TUNED_STEPS: Final = (("steps", "tuned"),)
WIDE_KEY: Final = "penstock.precision"
"""In the metadata of an ONNX node: `fp32` where it stays so, whatever narrower type the tactic asks for."""
ROUNDED_KEY: Final = "penstock.rounded"
"""In the metadata of an ONNX node: the type that holds its weights exactly, to which calibration data rounded them."""

LOWERED: Final = "lowered"
"""What the names of forms begin with that are steps for a GPU (engine.lowered) and not ONNX."""


@dataclass(frozen=True, slots=True)
class Tactic:
    """One way to run a model (or a region of it) on one target."""

    runtime: str
    """`onnxruntime`, `openvino`, `cuda`."""

    precision: str
    """The one asked of the library, of PRECISIONS. What it used is in the regions."""

    form: str = SOURCE
    """The graph it runs: `source`, `optimized`, or one that quantize named (`int8-kl`)."""

    shapes: Literal["dynamic", "static"] = "dynamic"
    """`static`: compiled for the shapes of one bucket. `dynamic`: for every shape of a profile."""

    threads: int = 0
    """Threads of one call; 0: the cores there are, divided among the instances when it is loaded."""

    options: tuple[tuple[str, str], ...] = ()
    """Library settings beyond these, by the library's own names, sorted."""

    @property
    def name(self) -> str:
        """For people and for logs: `openvino bf16 optimized static`."""
        parts = [self.runtime, self.precision, self.form, self.shapes]
        parts += [f"{self.threads} threads"] if self.threads else []
        return " ".join([*parts, *(f"{key}={value}" for key, value in self.options)])


@dataclass(frozen=True, slots=True)
class Profile:
    """The shapes an engine takes: per input the smallest, the one to be fastest at, and the largest."""

    minimum: Mapping[str, Shape]
    optimum: Mapping[str, Shape]
    maximum: Mapping[str, Shape]

    def contains(self, shapes: Shapes) -> bool:
        """Whether every input's shape lies between minimum and maximum."""
        return shapes.keys() == self.minimum.keys() and all(
            len(shape) == len(self.minimum[name])
            and all(
                low <= size <= high
                for low, size, high in zip(self.minimum[name], shape, self.maximum[name], strict=True)
            )
            for name, shape in shapes.items()
        )

    @property
    def static(self) -> bool:
        return dict(self.minimum) == dict(self.maximum)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Shapes prepared ahead: what they cost, measured, and the program that runs them."""

    shapes: Mapping[str, Shape]
    program: int
    microseconds: float
    """Median time of a call at exactly these shapes."""


@dataclass(frozen=True, slots=True)
class Region:
    """A piece of the graph that one kernel or one library call executes."""

    name: str
    kind: str
    """`conv+bias+relu`, `gemm+gelu`, `attention`, ... or the library's own name for what it ran."""

    nodes: tuple[str, ...]
    """Names of the source model's nodes that went into it."""

    precision: str = ""
    """Achieved, as the library reports it; empty where it does not."""

    microseconds: float = 0.0
    tactic: str = ""
    """Kernel or implementation, as the library calls it."""

    flops: float = 0.0
    """Of products of matrices and convolutions, two for a multiplication and its addition; 0 where nobody counted."""

    bytes: float = 0.0
    """Read and written, each value once; 0 where nobody counted."""


@dataclass(frozen=True, slots=True)
class Program:
    """A tactic with what is needed to run it again without compiling from the source."""

    tactic: Tactic
    artifact: str
    """Member of the engine file: `artifacts/0.onnx`, `artifacts/0.blob`."""

    shapes: Mapping[str, Shape] = field(default_factory=dict)
    """For static tactics, the shapes it was compiled for; empty for dynamic ones."""

    bytes: int = 0
    """Memory that a process holds for it once loaded, measured in the child that compiled it."""

    outputs: tuple[str, ...] = ()
    """Names of what it answers, in its own order: compiled programs may lose them."""

    beside: bool = False
    """It answers what the engine's reductions still have to be applied to."""

    shared_bytes: int = 0
    """Of `bytes`: weights on a device, which programs of the same form and precision hold together once."""

    context_bytes: int = 0
    """Of `bytes`: what each context takes on a device, one of which is counted."""


def bytes_together(programs: Iterable[Program], contexts: int = 1) -> int:
    """What these programs hold, with so many contexts of each: shared weights once."""
    shared: dict[tuple[str, str], int] = {}
    own = 0
    for each in programs:
        own += each.bytes - each.shared_bytes + max(0, contexts - 1) * each.context_bytes
        key = each.tactic.form, each.tactic.precision
        shared[key] = max(shared.get(key, 0), each.shared_bytes)
    return own + sum(shared.values())


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The machine and libraries that timings are good for."""

    device: str
    """`cpu`, `cuda:NVIDIA H200`."""

    model: str
    """The processor's model name, as the system gives it."""

    features: tuple[str, ...]
    """What kernels depend on, sorted: `amx_bf16`, `avx512_vnni`, ... or `multiprocessors_132`, `sm_90`."""

    cores: int
    libraries: Mapping[str, str]
    """Library -> version, for those a program of the engine needs."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """`y:argmax@2`: instead of output `y`, the index of the largest along `axis` and that value."""

    output: str
    axis: int
    beside: bool = True
    """Computed after the library call by programs that are `beside`; False: always inside the graph."""


@dataclass(frozen=True, slots=True)
class CustomOperator:
    """An operator that a Python function stands in for: whoever loads the engine has it registered."""

    domain: str
    name: str
    module: str
    """What registered it when the engine was built. It is told to people, and never imported because a file says so."""

    def __str__(self) -> str:
        return f"{self.domain}::{self.name}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about an engine but its weights and its evidence."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    programs: tuple[Program, ...]
    buckets: tuple[Bucket, ...]
    regions: tuple[Region, ...]
    fingerprint: Fingerprint
    precision: str
    """The narrowest that was achieved in any region of a chosen program."""

    source_hash: str
    reductions: tuple[Reduction, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the build was asked for, so that it can be built again."""

    custom_ops: tuple[CustomOperator, ...] = ()
    """Python functions that stand in the graph."""


def tactic_to_json(tactic: Tactic) -> dict[str, Any]:
    return {
        "runtime": tactic.runtime,
        "precision": tactic.precision,
        "form": tactic.form,
        "shapes": tactic.shapes,
        "threads": tactic.threads,
        "options": dict(tactic.options),
    }


def tactic_from_json(data: Mapping[str, Any]) -> Tactic:
    """Raises InvalidArgument for anything `tactic_to_json` can't have written."""
    try:
        options = tuple(sorted((str(key), str(value)) for key, value in data["options"].items()))
        shapes: Literal["dynamic", "static"] = "static" if data["shapes"] == "static" else "dynamic"
        return Tactic(
            str(data["runtime"]), str(data["precision"]), str(data["form"]), shapes, int(data["threads"]), options
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidArgument(f"a tactic can't be read: {error!r}") from None
