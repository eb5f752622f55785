"""A lowered form bound to a GPU: its weights once, and the steps of each bucket with what executes them.

`Model` puts weights on the device, in every precision that is asked for, once; a `Bucket` is an executor of one set of
shapes with its choices, from which any number of contexts are made. Called by the runtime.
"""

import torch

from penstock.engine.cuda import costs
from penstock.engine.cuda.artifact import Artifact
from penstock.engine.cuda.choices import Choice, Choices
from penstock.engine.cuda.contexts import Context, GraphContext, HostContext, InputMemory
from penstock.engine.cuda.executor import PRECISIONS, Executor, placed
from penstock.engine.cuda.form import Form, Prepared
from penstock.engine.cuda.implementations import OURS, add_triton
from penstock.engine.cuda.kernels.replay import Recorder
from penstock.engine.cuda.lanes import Lanes
from penstock.engine.cuda.sites import DTYPES, launches_early
from penstock.engine.cuda.turns import Turns, fills
from penstock.engine.lowered import Step
from penstock.engine.narrowing import wide_weights
from penstock.engine.plan import Region
from penstock.errors import ExecutionError, ModelLoadError, Unsupported


def _taken(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


class Model:
    """A form with its weights on one device, in every precision that was asked for."""

    def __init__(self, form: Form, device: torch.device) -> None:
        self.form, self.device = form, device
        self._placed: dict[tuple[str, torch.dtype], torch.Tensor] = {}
        self._turns: dict[int, Turns] = {}
        self.computing: set[int] = set()
        """Its contexts that compute now, as `GraphContext` has it."""

    def turns(self, priority: int) -> Turns:
        """Of its graphs on streams of this priority: nobody waits for somebody who is less urgent."""
        return self._turns.setdefault(priority, Turns())

    def weights(self, prepared: Prepared, precision: str) -> dict[str, torch.Tensor]:
        dtype = DTYPES[PRECISIONS[precision]]
        wide = wide_weights(prepared.graph)
        return {
            name: self._weight(prepared.stored.get(name, name), torch.float32 if name in wide else dtype)
            for name in prepared.graph.weights
        }

    def _weight(self, stored: str, dtype: torch.dtype) -> torch.Tensor:
        key = stored, dtype
        if key not in self._placed:
            self._placed[key] = placed(self.form.weights[stored], self.device, dtype)
        return self._placed[key]


class Bucket:
    """The steps of one bucket, bound. Contexts of it replay side by side."""

    def __init__(
        self,
        model: Model,
        prepared: Prepared,
        precision: str,
        choices: Choices,
        *,
        early_launch: bool,
        lanes: Lanes | None = None,
    ) -> None:
        """`lanes`: None: as it pays."""
        if precision not in PRECISIONS:
            raise Unsupported(f"the runtime cuda has no {precision}, expected one of {', '.join(PRECISIONS)}")
        self.shapes = {name: tuple(shape) for name, shape in prepared.shapes.items()}
        self.rows = min((shape[0] for shape in self.shapes.values() if shape), default=0)
        answers = [each.shape for each in prepared.graph.outputs]
        self.has_rows = (
            self.rows > 0
            and all(shape and shape[0] == self.rows for shape in self.shapes.values())
            and all(shape and shape[0] and shape[0] % self.rows == 0 for shape in answers)
        )
        """Whether axis 0 of everything could be the batch."""
        self._model, self._choices = model, choices
        self._early_launch = early_launch and launches_early(model.device)
        if any(each.implementation.startswith(OURS) for each in choices.values()) and not add_triton():
            raise ModelLoadError(
                "kernels of this program are bound with triton, which is not installed; it comes with torch"
            )
        self.weights = model.weights(prepared, precision)
        before = _taken(model.device)
        self.executor = Executor(
            prepared.graph,
            self.weights,
            model.device,
            precision,
            choices=choices,
            early_launch=self._early_launch,
            lanes=lanes,
        )
        self.prepared_bytes = max(0, _taken(model.device) - before)
        """Of device memory: weights in the order that kernels want, kept besides."""
        self.context_bytes = costs.arena(self.executor.graph)
        """Of device memory; as contexts have it; before there is one, what its values take by liveness."""

    def context(self, memory: InputMemory, priority: int = 0) -> Context:
        """Whose inputs lie in this memory, on a stream of this priority; the CPU has none."""
        if self.executor.device.type != "cuda":
            return HostContext(self.executor, memory)
        made = GraphContext(self.executor, memory, priority, self.turns(priority), self._model.computing)
        self.context_bytes = made.device_bytes
        return made

    def turns(self, priority: int = 0) -> Turns | None:
        """What its graphs wait for before they compute, if they wait."""
        return self._model.turns(priority) if fills(self.executor.graph) else None

    def sealed(self) -> Artifact:
        """Its kernels are taken down in its first run, which may be this one."""
        recorder = self.executor.launcher
        if recorder is not None and not isinstance(recorder, Recorder):
            raise ExecutionError("a program that was reopened is exported by copying its artifact")
        self.executor.run(self.executor.blank_inputs())
        kernels = recorder.kernels if recorder is not None else ()
        side = tuple(sorted(self.executor.lanes.side))
        return Artifact(self.shapes, self.executor.precision, self._choices, self._early_launch, kernels, side)

    def regions(self, precision: str) -> tuple[Region, ...]:
        from penstock.engine.cuda.tuner import timed_steps

        times = timed_steps(self.executor)
        found = []
        for bound, step in zip(self.executor.program, self.executor.graph.steps, strict=True):
            activation = str(step.attributes.get("activation", "none"))
            parts = [step.kind, *(role for role in ("bias", "residual") if step.operand(role))]
            parts += [activation] if activation != "none" else []
            choice = self._choices.get(bound.name) or Choice(bound.implementation)
            graph = self.executor.graph
            spent, achieved = times.get(bound.name, 0.0), _achieved(step, precision)
            work = costs.flops(graph, step), costs.moved(graph, step)
            found.append(Region(bound.name, "+".join(parts), step.nodes, achieved, spent, str(choice), *work))
        return tuple(found)


def _achieved(step: Step, precision: str) -> str:
    """What a step computes in: of a program in eight bits many don't."""
    wide = precision in ("int8", "fp8") and step.operand("scale") is None
    return PRECISIONS[precision].lower() if wide else precision
