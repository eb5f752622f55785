"""What goes wrong in a pipeline fails one request, with a status and the name of the step, and leaves nothing."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock import errors
from tests.pipeline.test_ending import assert_nothing_is_left
from tests.pipeline.toy import Recogniser, picture
from tests.serve.calls import Array, Client, at_once, eventually, infer, serving
from tests.servers.cases import assert_clean_error

GOOD, MARKER = np.zeros(1, np.float32), np.full(1, 13, np.float32)


def raise_it(error: BaseException) -> Any:
    raise error


def read_secret() -> bytes:
    return Path("/etc/penstock-secret/weights.bin").read_bytes()


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@ps.model(name="picky", outputs={"y": ps.F32[1]})
def picky(x: ps.F32[1]) -> Array:
    if (x == MARKER).any():
        raise ValueError("a marker")
    return x


async def call_with_wrong_shape() -> None:
    await ps.use("picky")(np.zeros(2, np.float32))


async def call_with_wrong_type() -> None:
    await ps.use("picky")(np.zeros(1, np.float64))


async def gather_and_fail() -> None:
    await ps.gather(ps.use("picky")(np.full(1, value, np.float32)) for value in (1, 2, 13, 4))


async def exit_in_a_task() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    await ps.gather([leave()])


async def cancel_a_step_and_await_it() -> None:
    call = asyncio.ensure_future(ps.use("picky")(GOOD))
    call.cancel()
    await call


async def call_from_another_thread() -> None:
    """With the context of the body, as `asyncio.to_thread` has it."""
    await asyncio.to_thread(lambda: ps.use("picky")(GOOD))


CASES: list[tuple[str, Callable[[], Any], int, tuple[str, ...]]] = [
    ("the body raises", lambda: raise_it(ValueError("bad pixels")), 500, ("'body' failed", "ValueError", "bad pixels")),
    ("one of our errors keeps its status", lambda: raise_it(errors.InvalidArgument("no image")), 400, ("no image",)),
    ("unavailable", lambda: raise_it(errors.Unavailable("come back")), 503, ("come back",)),
    ("the body exits", lambda: raise_it(SystemExit(3)), 500, ("SystemExit",)),
    ("a task of the body exits", exit_in_a_task, 500, ("SystemExit",)),
    ("no text", lambda: raise_it(UnprintableError()), 500, ("UnprintableError",)),
    ("a cpu step raises", lambda: ps.cpu(raise_it, KeyError("k")), 500, ("step 'raise_it'", "KeyError")),
    ("a cpu step exits", lambda: ps.cpu(raise_it, SystemExit(3)), 500, ("step 'raise_it'", "SystemExit")),
    ("a cpu step stops an iteration", lambda: ps.cpu(next, iter(())), 500, ("step 'next'", "StopIteration")),
    ("a cpu step has one of our errors", lambda: ps.cpu(raise_it, errors.NotFound("no such font")), 404, ("font",)),
    ("a cpu step without text", lambda: ps.cpu(raise_it, UnprintableError()), 500, ("step 'raise_it'", "Unprintable")),
    ("a path of the host", lambda: ps.cpu(read_secret), 500, ("step 'read_secret'", "No such file")),
    ("a model fails", lambda: ps.use("picky")(MARKER), 500, ("call of 'picky'", "model 'picky' failed", "a marker")),
    ("a model is not there", lambda: ps.use("nobody")(GOOD), 404, ("call of 'nobody'", "'nobody' is not found")),
    ("a version is not there", lambda: ps.use("picky", version=7)(GOOD), 404, ("call of 'picky'", "version 7")),
    ("a shape does not fit", call_with_wrong_shape, 400, ("call of 'picky'", "expected FP32 of shape [-1, 1]")),
    ("a type does not fit", call_with_wrong_type, 400, ("call of 'picky'", "expected datatype FP32, got FP64")),
    ("no array", lambda: ps.use("picky")(object()), 500, ("input 'x'", "object")),
    ("no input", ps.use("picky"), 400, ("call of 'picky'", "input 'x'")),
    ("too many inputs", lambda: ps.use("picky")(GOOD, GOOD), 400, ("call of 'picky'", "takes 1 inputs")),
    ("an unknown input", lambda: ps.use("picky")(z=GOOD), 400, ("call of 'picky'", "'z'")),
    ("an input twice", lambda: ps.use("picky")(GOOD, x=GOOD), 400, ("call of 'picky'", "sent twice")),
    ("too many rows", lambda: ps.use("picky").batch(np.zeros((65, 1), np.float32)), 400, ("1 to 64 rows",)),
    ("one of several calls fails", gather_and_fail, 500, ("call of 'picky'", "a marker")),
    ("a call from another thread", call_from_another_thread, 500, ("step 'picky'", "another thread")),
    ("a cancelled step is awaited", cancel_a_step_and_await_it, 500, ("cancelled itself",)),
]


# Of the exceptions without a text.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("fail", "status", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_failure_is_told_with_its_status_and_step_and_hurts_nobody_else(
    fail: Callable[[], Any], status: int, words: tuple[str, ...]
) -> None:
    @ps.pipeline
    async def body(x: ps.F32[1]) -> ps.F32[1]:
        if x != GOOD:
            await fail()
        return await ps.use("picky")(x)

    def work(client: Client, number: int) -> None:
        if number:
            assert client.infer("body", x=GOOD).status == 200
            return
        answer = client.infer("body", x=MARKER)
        assert answer.status == status
        assert_clean_error(answer.reply, words)

    with serving(picky, body) as server:
        at_once(server, work, 4)
        assert infer(server, "body", x=GOOD).status == 200
        assert_nothing_is_left(server)
        request = server.pipeline_statistics("body").request
        assert (request.count, request.errors, request.cancelled) == (4, 1, 0)


@pytest.mark.parametrize(
    ("outputs", "returned", "words"),
    [
        ({"y": ps.F32[2]}, np.zeros(3, np.float32), ("output 'y'", "expected shape [2], got [3]")),
        ({"y": ps.F32[2]}, [1.0, 2.0], ("output 'y'", "expected FP32, got float64")),
        ({"y": ps.F32[-1]}, None, ("output 'y'",)),
        ({"y": ps.F32[-1, -1]}, [[1.0], [1.0, 2.0]], ("output 'y'", "makes no array")),
        ({"y": ps.F32[-1, 1]}, [np.zeros(1), np.zeros(2)], ("output 'y'", "makes no array")),
        ({"y": ps.Bytes[1]}, [7], ("output 'y'", "expected elements of bytes or str, got int")),
        ({"y": ps.F32[1]}, {"z": GOOD}, ("no y",)),
        ({"y": ps.F32[1], "z": ps.F32[1]}, GOOD, ("ndarray", "a dict with y, z")),
        ({"y": ps.F32[1], "z": ps.F32[1]}, {"y": GOOD}, ("no z", "a dict with y, z")),
    ],
)
def test_an_answer_that_the_signature_does_not_allow_is_an_error(
    outputs: dict[str, ps.TensorType], returned: Any, words: tuple[str, ...]
) -> None:
    @ps.pipeline(outputs=outputs)
    async def body(x: ps.F32[1]) -> Any:
        return returned

    with serving(body) as server:
        answer = infer(server, "body", x=GOOD)
        assert answer.status == 500
        assert_clean_error(answer.reply, ("'body' failed", *words))
        assert_nothing_is_left(server)


def test_an_error_that_the_body_handles_is_none() -> None:
    @ps.pipeline
    async def body(x: ps.F32[1]) -> ps.F32[1]:
        try:
            return await ps.use("picky")(x)
        except errors.ExecutionError:
            return -x

    with serving(picky, body) as server:
        np.testing.assert_array_equal(infer(server, "body", x=MARKER).arrays["output"], -MARKER)
        (step,) = server.pipeline_statistics("body").steps
        assert (step.name, step.kind, step.count, step.errors) == ("picky", "call", 0, 1)


def test_the_first_failure_cancels_what_is_gathered_with_it() -> None:
    """The crops wait behind a held instance; a failing step beside them takes them out of the queue."""
    recogniser = Recogniser(max_batch_size=1)

    @ps.pipeline
    async def body(image: ps.U8[-1, 4]) -> ps.Bytes[-1]:
        calls = [ps.use("recogniser")(row) for row in image]
        return await ps.gather([*calls, ps.cpu(raise_it, ValueError("bad"))])

    recogniser.hold()
    image = picture(*[(number, 0, 0, 0) for number in range(1, 6)])
    with serving(recogniser.model, body) as server:
        answer = infer(server, "body", image=image)
        assert answer.status == 500
        assert "step 'raise_it': ValueError: bad" in answer.error
        recogniser.release()
        infer(server, "recogniser", crop=picture((9, 0, 0, 0)))
        # One at most was with the instance already.
        assert len([row for row in recogniser.seen if row[0] != 9]) <= 1
        assert_nothing_is_left(server)


# ---- circles ----


def test_a_pipeline_that_calls_itself_by_name_is_refused_and_does_not_wait_for_itself() -> None:
    @ps.pipeline(max_concurrency=1)
    async def again(x: ps.F32[1]) -> ps.F32[1]:
        return await ps.use("again")(x)

    with serving(again) as server:
        answer = infer(server, "again", x=GOOD)
        assert answer.status == 400
        assert_clean_error(answer.reply, ("in a circle", "again -> again"))
        assert_nothing_is_left(server)


def test_pipelines_that_call_each_other_are_refused_where_the_circle_closes() -> None:
    async def step(x: Array, following: str) -> Array:
        answer: Array = await ps.use(following)(x)
        return answer

    def link(name: str, following: str) -> ps.Pipeline:
        async def body(x: ps.F32[1]) -> ps.F32[1]:  # type: ignore[valid-type]
            return await step(x, following)

        return ps.pipeline(name=name, max_concurrency=1)(body)

    links = [link("a", "b"), link("b", "c"), link("c", "a"), link("d", "picky")]
    with serving(*links, picky) as server:
        answer = infer(server, "a", x=GOOD)
        assert answer.status == 400
        assert_clean_error(answer.reply, ("in a circle", "c -> a -> b -> c"))
        assert infer(server, "d", x=GOOD).status == 200
        assert_nothing_is_left(server)


def test_a_model_that_is_full_refuses_the_call() -> None:
    recogniser = Recogniser(
        max_batch_size=1, dynamic_batching=ps.DynamicBatching(default_queue_policy=ps.QueuePolicy(max_queue_size=1))
    )

    @ps.pipeline
    async def body(image: ps.U8[-1, 4]) -> ps.Bytes[-1]:
        return await ps.gather(ps.use("recogniser")(row) for row in image)

    recogniser.hold()
    with serving(recogniser.model, body) as server:
        answer = infer(server, "body", image=picture(*[(1, 0, 0, 0)] * 8))
        assert answer.status == 503
        assert "call of 'recogniser': Exceeds maximum queue size" in answer.error
        recogniser.release()
        eventually("it takes pictures again", lambda: infer(server, "body", image=picture((1, 0, 0, 0))).status == 200)
        assert_nothing_is_left(server)
