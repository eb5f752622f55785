"""Which tactics are worth timing, in the order worth trying: a table for CPUs, one for GPUs, and no measurement.

The first is the safe one: ONNX Runtime, FP32, on the source. Once it is timed an engine could be sealed. What follows
is ordered by what won most often among measured models, so that a short budget finds the most: narrow types in the
library that fuses most come first, odd combinations last. No precision wins everywhere (INT8 lost to FP16 on text
recognisers, and INT8 with FP16 around it took 400 times as long), so everything allowed is in the list; the race
drops what does not win. Called by `race`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from penstock.engine.plan import CUDA, LOWERED, OPTIMIZED, PLAIN_STEPS, SOURCE, TUNED_STEPS, Shapes, Tactic
from penstock.engine.runtimes.settings import CUDA_PROVIDER, PROVIDER, TENSORRT

ONNXRUNTIME: Final = "onnxruntime"
OPENVINO: Final = "openvino"


GPU_PRECISIONS: Final = ("fp16", "bf16", "tf32", "fp32")
"""In the order worth trying: equally fast, and then more bits for the number; the next only where one is too coarse."""
GPU_TUNED: Final = frozenset({"fp16", "bf16"})  # our own kernels compute in sixteen bits

HINT: Final = "INFERENCE_PRECISION_HINT"
"""OpenVINO's name for the type of what is not quantized in an INT8 form; without it FP32."""

# What arithmetic in a type needs, by the names Linux gives: any of these. Without them libraries convert to FP32 and
# back, at best.
NEEDS: Final[Mapping[str, frozenset[str]]] = {
    "bf16": frozenset({"amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16"}),
    "fp16": frozenset({"amx_fp16", "avx512_fp16", "asimdhp", "fphp"}),
}
_HINTS: Final[Mapping[str, str]] = {"bf16": "bf16", "fp16": "f16"}


@dataclass(frozen=True, slots=True)
class Form:
    """A graph of the model that libraries can be given."""

    path: Path
    precision: str
    """`fp32`, or `int8` or `fp8`: the narrowest type in the graph. `bf16` or `fp16`: what libraries may narrow it to,
    and nothing else is worth timing; its marks say which layers stay in FP32 (`plan.WIDE_KEY`)."""

    quantized: bool
    """Holds Q/DQ operators, from `quantize` or from the user, or steps in eight bits: its precision is in the graph."""

    learned: bool = False
    """Calibration data went into its weights, so that it may answer the samples it has seen better than others."""


def candidates(
    forms: Mapping[str, Form], allowed: Collection[str], features: Collection[str], buckets: Sequence[Shapes]
) -> list[Tactic]:
    """Tactics for these forms, best guess first after the safe one.

    forms     by name, as tactics call them; `source` is FP32 as the user gave it.
    allowed   precisions that may be used, of plan.PRECISIONS.
    features  of the processor, as its Fingerprint lists them.
    buckets   the shapes that will be timed. With one, static programs come before dynamic ones: one is compiled either
              way. With more a dynamic program serves all of them and goes first.
    """
    order: list[Literal["dynamic", "static"]] = ["static", "dynamic"] if len(buckets) == 1 else ["dynamic", "static"]
    plain = [name for name, form in forms.items() if form.precision == "fp32" and not form.quantized]
    quantized = [name for name, form in forms.items() if form.precision == "int8" or form.quantized]
    # What passes made is the better guess where there is something of the kind.
    plain.sort(key=lambda name: (not name.startswith(OPTIMIZED), name != OPTIMIZED, name))
    found: list[Tactic] = []
    if SOURCE in plain and "fp32" in allowed:
        found.append(Tactic(ONNXRUNTIME, "fp32", SOURCE))
    elif SOURCE in quantized and "int8" in allowed:  # the user's own Q/DQ: as safe as it gets
        found.append(Tactic(ONNXRUNTIME, "int8", SOURCE))
    narrow = [name for name in _HINTS if name in allowed and not NEEDS[name].isdisjoint(features)]
    first = [name for name in plain if name.startswith(OPTIMIZED)] or plain[:1]
    others = [name for name in plain if name not in first]
    for shapes in order:
        mixed = [name for name, form in forms.items() if form.precision in narrow]
        found += [Tactic(OPENVINO, forms[name].precision, name, shapes) for name in mixed]
        found += _openvino(first, narrow, allowed, shapes)
        found += _openvino_int8(quantized, narrow, allowed, shapes)
    if "fp32" in allowed:
        found += [Tactic(ONNXRUNTIME, "fp32", name) for name in plain]
    if "int8" in allowed:
        found += [Tactic(ONNXRUNTIME, "int8", name) for name in quantized]
    for shapes in order:
        found += _openvino(others, narrow, allowed, shapes)
    return list(dict.fromkeys(found))


def for_gpu(
    forms: Mapping[str, Form],
    allowed: Collection[str],
    precision: str,
    *,
    free_shapes: bool = False,
    providers: Collection[str] = (),
) -> list[Tactic]:
    """Tactics on an NVIDIA GPU in one precision, and the safe one, which stays on the CPU and takes any shapes.

    Plain steps are there within seconds, so they are first, and what is slow after them costs little; tuned ones win
    nearly always. Where calls come with `free_shapes`, which no program for a GPU takes, the safe one has to be there.
    Forms in eight bits have their own precision, and in it nothing but tuned steps is worth its time.
    """
    safe = [Tactic(ONNXRUNTIME, "fp32", SOURCE)] if SOURCE in forms and "fp32" in allowed else []
    lowered = [form for form in forms if form.startswith(LOWERED)]
    narrow = [Tactic(CUDA, forms[form].precision, form, "static", options=TUNED_STEPS) for form in lowered
              if forms[form].quantized]  # fmt: skip
    plain, tuned = (
        [Tactic(CUDA, precision, form, "static", options=steps) for form in lowered if not forms[form].quantized]
        for steps in (PLAIN_STEPS, TUNED_STEPS)
    )
    rivals = [*_of_providers(forms, precision, providers)] if precision != "bf16" else []
    found = [*plain, *rivals, *(tuned if precision in GPU_TUNED else []), *narrow]
    return [*safe, *found] if free_shapes else [*found, *safe]


def _of_providers(forms: Mapping[str, Form], precision: str, providers: Collection[str]) -> Iterator[Tactic]:
    """ONNX Runtime's on the GPU: neither layout is the faster one of every model."""
    form = OPTIMIZED if OPTIMIZED in forms else SOURCE
    if form not in forms or forms[form].quantized:
        return
    if CUDA_PROVIDER in providers:
        for layout in ("1", "0"):
            options = (("prefer_nhwc", layout), (PROVIDER, CUDA_PROVIDER))
            yield Tactic(ONNXRUNTIME, precision, form, "static", options=options)
    if TENSORRT in providers:
        yield Tactic(ONNXRUNTIME, precision, form, "static", options=((PROVIDER, TENSORRT),))


def _openvino(
    forms: Sequence[str], narrow: Sequence[str], allowed: Collection[str], shapes: Literal["dynamic", "static"]
) -> Iterator[Tactic]:
    for form in forms:
        for precision in (*reversed(narrow), "fp32"):
            if precision in allowed:
                yield Tactic(OPENVINO, precision, form, shapes)


def _openvino_int8(
    forms: Sequence[str], narrow: Sequence[str], allowed: Collection[str], shapes: Literal["dynamic", "static"]
) -> Iterator[Tactic]:
    if "int8" not in allowed:
        return
    for form in forms:
        yield Tactic(OPENVINO, "int8", form, shapes)
        for precision in narrow:
            yield Tactic(OPENVINO, "int8", form, shapes, options=((HINT, _HINTS[precision]),))


def one_thread(tactic: Tactic) -> Tactic:
    """The same on one thread: wins where a call is shorter than handing work to threads takes."""
    return replace(tactic, threads=1)


def siblings(one: Tactic, other: Tactic) -> bool:
    """Whether two tactics differ in static or dynamic shapes only, so that one's time tells much of the other's."""
    return one != other and replace(one, shapes="dynamic") == replace(other, shapes="dynamic")
