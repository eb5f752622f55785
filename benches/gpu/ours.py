"""Penstock's executor as a way: the tuner's choice for each step, one CUDA graph, with early launches and without.

Needs torch; the package's `engine` folder is all of Penstock that is used.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from benches.gpu.ready import Ready, judge
from benches.gpu.results import OURS
from benches.gpu.weights import Tensors, in_16_bits, tensors_like
from penstock.engine.cuda.calibrating import Calibrator
from penstock.engine.cuda.choices import Choices, to_json
from penstock.engine.cuda.early import chosen_early
from penstock.engine.cuda.eight_bits import rounded
from penstock.engine.cuda.executor import PRECISIONS, Executor
from penstock.engine.cuda.mixing import without
from penstock.engine.cuda.sites import DTYPES
from penstock.engine.eight_bits import in_eight_bits
from penstock.engine.lowered import LoweredGraph

if TYPE_CHECKING:
    from penstock.engine.cuda.precompile import Compilers
    from penstock.engine.cuda.tuning import Ahead

_COMPILE_SECONDS: Final = 60.0
_EARLY_SECONDS: Final = 3.0


class Model:
    """A lowered graph with its weights on a device, and what it answers in FP32."""

    def __init__(
        self,
        graph: LoweredGraph,
        weights: Tensors,
        given: Tensors,
        device: str,
        eight: str = "",
        seen: Sequence[Tensors] = (),
    ) -> None:
        """`eight`: the type that layers multiply, with scales from the inputs in `seen`."""
        self.graph, self.weights, self.given, self.device = graph, weights, given, device
        reference = Executor(graph, weights, device, "fp32")
        answers = reference.run(tensors_like(given, torch.float32, device))
        self.expected = [(each.double() if each.is_floating_point() else each).cpu() for each in answers.values()]
        del reference
        self.precision = "fp16"
        if self._overflows():
            self.precision = "bf16"
        self.label = eight.lower() or self.precision
        """Of the rows."""
        if eight:
            self._narrow(eight, seen)

    def _narrow(self, eight: str, seen: Sequence[Tensors]) -> None:
        calibrator = Calibrator(self.executor(), eight)
        for each in seen:
            calibrator.see(self.inputs(each))
        self._floats, self._grids, self._eight = (self.graph, self.weights), calibrator.grids(self.weights), eight
        self.graph, self.weights = in_eight_bits(self.graph, self.weights, self._grids, eight, rounded)

    def mixed(self, kept: Collection[str]) -> "Model":
        """One in eight bits, but for these layers."""
        graph, weights = self._floats
        made = copy(self)
        made.label = f"{self.label} and {self.precision}"
        made.graph, made.weights = in_eight_bits(
            graph, weights, without(self._grids, graph, kept), self._eight, rounded
        )
        return made

    def off_exact(self, executor: Executor) -> float:
        """How far our kernels are from the same numbers in eight bits, multiplied exactly."""
        exact = Executor(self._in_16_bits(), self.weights, self.device, self.precision)
        right, found = exact.run(self.inputs()).values(), executor.run(self.inputs()).values()
        return judge(list(found), [each.double().cpu() for each in right])[0]

    def executor(self, choices: Choices | None = None, *, early_launch: bool = False) -> Executor:
        graph = self._in_16_bits()
        return Executor(graph, self.weights, self.device, self.precision, (), choices, early_launch=early_launch)

    def inputs(self, given: Mapping[str, torch.Tensor] | None = None) -> Tensors:
        dtype = DTYPES[PRECISIONS[self.precision]]
        return {name: each.contiguous() for name, each in tensors_like(given or self.given, dtype, self.device).items()}

    def _in_16_bits(self) -> LoweredGraph:
        return in_16_bits(self.graph, PRECISIONS[self.precision])

    def _overflows(self) -> bool:
        """Whether FP16 can't hold what is between the steps for these inputs; masks are wide and don't count."""
        found: list[torch.Tensor] = []

        def watch(number: int, operands: object) -> None:
            del number
            assert isinstance(operands, list | tuple)
            found.extend(~each.isfinite().all() for each in operands if each.dtype == torch.float16)

        answers = self.executor().run(self.inputs(), watch)
        found.extend(~each.isfinite().all() for each in answers.values() if each.is_floating_point())
        return bool(torch.stack(found).any()) if found else False


def compiling_ahead(model: Model, compilers: "Compilers | None", until: float) -> "Ahead | None":
    """What tuning will ask for, compiled from now on, as a builder has it; None where nothing is compiled."""
    if compilers is None:
        return None
    from penstock.engine.cuda.tuner import promising
    from penstock.engine.cuda.tuning import Ahead

    ahead = Ahead(compilers, promising([model.executor()]), until)
    ahead.go_on()
    return ahead


def tuned(model: Model, seconds: float, others: Tensors, compilers: "Compilers | None") -> tuple[Choices, str]:
    """Choices, and how they were found. `others`: inputs to tune on, not those that are judged."""
    from penstock.engine.cuda.tuner import tune

    result = tune(model.executor(), model.inputs(others), seconds=seconds, compilers=compilers)
    lost = sum(len(row.failed) for row in result.rows)
    total = sum(row.microseconds * len(row.steps) for row in result.rows) / 1e3
    return result.choices, (
        f"tuned in {result.seconds:.0f} s, {lost} lost, {result.untimed} untimed, steps' sum {total:.4f} ms"
    )


def ways(model: Model, choices: Choices, note: str, compilers: "Compilers | None") -> Iterator[Ready]:
    cuda = model.device.startswith("cuda")
    if cuda:
        yield _mixed(model, choices, compilers)
    for early in (True, False) if cuda else (False,):
        executor = model.executor(choices, early_launch=early)
        if early and compilers is not None:
            _compile_early(executor, compilers)
        name = f"{OURS}, early launch" if early else OURS
        more = (
            f"{sum(site.early and site.behind for site in executor.sites)} of {len(executor.sites)} steps early"
            if early
            else note
        )
        if early and model.label != model.precision:
            more += f", {model.off_exact(executor):.1e} from the same numbers multiplied exactly"
        yield captured(name, executor, model, more) if cuda else _eager(name, executor, model, more)


def _mixed(model: Model, choices: Choices, compilers: "Compilers | None") -> Ready:
    """Launched early where that saves time, as an engine of the builder's."""
    executor = model.executor(choices, early_launch=True)
    if compilers is not None:
        _compile_early(executor, compilers)
    mixed, found = chosen_early(executor, choices, model.inputs(), _EARLY_SECONDS)
    said = "nothing to choose"
    if found is not None:
        said = (
            f"{sum(found.mask)} of {len(found.mask)} kernels early by {found.graphs} graphs: "
            f"{found.milliseconds:.4f} ms for {found.all_early:.4f} all, {found.none_early:.4f} none"
        )
    return captured(f"{OURS}, chosen early", model.executor(mixed, early_launch=True), model, said)


def captured(name: str, executor: Executor, model: Model, note: str) -> Ready:
    """As a context of an engine: its own stream, static inputs and outputs, one graph."""
    context = executor.capture()
    given = model.inputs()
    context.stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(context.stream):
        for key, tensor in given.items():
            context.inputs[key].copy_(tensor)
    context.stream.synchronize()
    outputs = list(context.outputs.values())
    return Ready(
        name, context.replay, list(context.inputs.values()), lambda: outputs, model.expected, model.label,
        context.stream, static=True, note=note,
    )  # fmt: skip


def _eager(name: str, executor: Executor, model: Model, note: str) -> Ready:
    given = model.inputs()
    last: list[torch.Tensor] = []

    def replay() -> None:
        last[:] = executor.run(given).values()

    return Ready(name, replay, list(given.values()), lambda: last, model.expected, model.label, note=note)


def _compile_early(executor: Executor, compilers: "Compilers") -> None:
    from penstock.engine.cuda.triton_steps import launches

    names = [bound.implementation for bound in executor.program]
    compilers.build(launches(executor.sites, names), _COMPILE_SECONDS)


def row_alone(model: Model, choices: Choices, one: LoweredGraph, weights: Tensors, at_one: Choices) -> str:
    """Row 0 of this batch against the same input at batch 1, each with its own choices."""
    first = {name: each[:1] for name, each in model.given.items()}
    executor = Executor(
        in_16_bits(one, PRECISIONS[model.precision]), weights, model.device, model.precision, (), at_one
    )
    alone = list(executor.run(model.inputs(first)).values())
    here = [each[:1] for each in model.executor(choices).run(model.inputs()).values()]
    if all(torch.equal(left, right) for left, right in zip(alone, here, strict=True)):
        return "same bits"
    pairs = [(left.double(), right.double()) for left, right in zip(alone, here, strict=True)]
    off = max(float((left - right).norm() / right.norm().clamp(min=1e-30)) for left, right in pairs)
    return f"differs by {off:.0e}"


@contextmanager
def compilers(device: str, processes: int) -> "Iterator[Compilers | None]":
    """Processes that compile, where there is a GPU and Triton; else None."""
    if not device.startswith("cuda") or find_spec("triton") is None:
        yield None
        return
    # torch.compile moves the cache unless it is said where it is, and then the processes fill another one.
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path.home() / ".triton" / "cache"))
    from penstock.engine.cuda.precompile import Compilers

    major, minor = torch.cuda.get_device_capability()
    with Compilers(processes, 10 * major + minor) as found:
        found.start()
        yield found


def text_of(choices: Choices) -> str:
    return to_json(choices)
