"""What is wrong with a pipeline is said where it is declared, what makes no sense outside of one where it is called."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import penstock as ps
from penstock.errors import ConfigError, InvalidArgument
from tests.pipeline.toy import Recogniser, reader


async def untyped(x):  # type: ignore[no-untyped-def]
    return x


async def no_answer(x: ps.F32[1]):  # type: ignore[no-untyped-def]
    return x


async def fine(x: ps.F32[1]) -> ps.F32[1]:
    return x


def ordinary(x: ps.F32[1]) -> ps.F32[1]:
    return x


@pytest.mark.parametrize(
    ("declare", "error", "words"),
    [
        (lambda: ps.pipeline(ordinary), TypeError, "ordinary is not async"),
        (lambda: ps.pipeline(untyped), TypeError, "argument 'x' needs a tensor type"),
        (lambda: ps.pipeline(no_answer), TypeError, "no_answer: declare what it returns"),
        (lambda: ps.pipeline(max_concurrency=0)(fine), TypeError, "max_concurrency=0"),
        (lambda: ps.pipeline(name="a/b")(fine), InvalidArgument, "'a/b'"),
        (lambda: ps.pipeline(outputs={})(fine), TypeError, "at least one output"),
        (lambda: ps.model(fine), TypeError, "fine is async.*@ps.pipeline"),
        (lambda: ps.use("a/b"), InvalidArgument, "'a/b'"),
    ],
)
def test_what_is_wrong_is_said_at_once(declare: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        declare()


def test_a_pipeline_keeps_its_own_name_and_a_name_is_taken_once() -> None:
    server = ps.Server(http_port=0, grpc_port=None, metrics_port=None)
    server.add(reader())
    with pytest.raises(ConfigError, match="'read' has its own name"):
        server.add(reader(), name="other")
    with pytest.raises(ConfigError, match="'read' was added already"):
        server.add(reader())


@pytest.mark.parametrize("used", ["recogniser", Recogniser().model], ids=["name", "function"])
def test_a_used_model_is_known_by_its_name(used: Any) -> None:
    assert ps.use(used).name == "recogniser"
    assert repr(ps.use(used, version=2)) == "penstock.use('recogniser', version=2)"


@pytest.mark.parametrize(
    "step",
    [lambda: ps.use("m")(1), lambda: ps.use("m").batch(1), lambda: ps.cpu(len, "")],
    ids=["call", "batch", "cpu"],
)
def test_steps_outside_of_a_served_pipeline_say_what_they_lack(step: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match="outside of a pipeline that a server runs"):
        step()


def test_a_body_without_steps_can_be_awaited_anywhere() -> None:
    pipeline = ps.pipeline(fine)
    assert (pipeline.name, pipeline.__name__) == ("fine", "fine")
    assert asyncio.run(pipeline(3)) == 3


def test_gather_keeps_the_order_and_needs_no_server() -> None:
    async def after(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    async def body() -> tuple[list[int], list[int]]:
        return await ps.gather(after(turns) for turns in (3, 1, 2)), await ps.gather([])

    assert asyncio.run(body()) == ([3, 1, 2], [])


def test_declaring_a_pipeline_needs_neither_asyncio_nor_numpy() -> None:
    code = (
        "import sys, penstock as ps\n"
        "@ps.pipeline(inputs={'x': ps.F32[1]}, outputs={'y': ps.F32[1]})\n"
        "async def body(x): return await ps.use('m')(x)\n"
        "print([name for name in ('asyncio', 'numpy', 'penstock.serve', 'penstock._core') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_name_of_the_decorator_is_not_hidden_by_its_package() -> None:
    code = "import penstock.pipeline.waterfall, penstock as ps; print(callable(ps.pipeline))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
