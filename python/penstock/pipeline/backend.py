"""A pipeline as a model version: its configuration, and how the server's event loop runs its requests."""

from collections.abc import Coroutine
from typing import Any, NoReturn

from penstock.errors import ConfigError
from penstock.pipeline.answers import Answers
from penstock.pipeline.function import Pipeline
from penstock.pipeline.run import Run
from penstock.pipeline.statistics import PipelineStatistics, Statistics
from penstock.repository import Model, from_signature
from penstock.serve.event_loop import EventLoop, Request


class PipelineBackend:
    """What metadata says of a pipeline."""

    name = "pipeline"
    platform = "penstock_pipeline"
    fresh_outputs = False  # a body may return what it keeps

    def __init__(self, pipeline: Pipeline) -> None:
        self.inputs = pipeline.inputs
        self.outputs = pipeline.outputs

    def instance(self, index: int, count: int, threads: int | None) -> NoReturn:
        """A pipeline has no workers: the server hosts `Model.concurrent` instead."""
        raise ConfigError("a pipeline runs on the event loop of a server, not in instances")

    def close(self) -> None:
        """A function holds nothing."""


class ConcurrentPipeline:
    """What the event loop calls with each request."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.max_concurrency = pipeline.max_concurrency
        self._name = pipeline.name
        self._body = pipeline.function
        self._answers = Answers(pipeline.outputs)
        self._statistics = Statistics()

    def begin(self, request: Request, loop: EventLoop) -> Coroutine[Any, Any, None]:
        """The coroutine that answers the request."""
        return Run(loop, self._name, request, self._statistics).answer(self._body, self._answers)

    def statistics(self) -> PipelineStatistics:
        return self._statistics.snapshot()


def model_of(pipeline: Pipeline) -> Model:
    """Version 1 of a pipeline."""
    model = from_signature(
        name=pipeline.name,
        backend=PipelineBackend(pipeline),
        parameters={"max_concurrency": str(pipeline.max_concurrency)},
    )
    model.concurrent = ConcurrentPipeline(pipeline)
    return model
