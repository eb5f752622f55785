"""What crosses the bridge between the data plane and a model: whatever a model does with its arrays, answers are right.

Inputs lie in memory that is used again, and large outputs may be sent from where they are; so every way of keeping,
changing or sharing an array is tried, small (copied) and large (passed on). Failures are in `test_failures.py`.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import penstock as ps
from tests.serve.calls import Array, Client, at_once, batch_sizes, infer, serving

CLIENTS = 32
# FP32 elements of a row: far below and far above the 32 and 64 KiB from where on arrays are passed on, not copied.
SMALL, LARGE = 16, 1 << 18
SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
# More than all socket buffers between server and client hold: the rest of such an answer is sent only when it is read.
UNREAD = 4 << 20


class Marked(np.ndarray):
    """A subclass, as matrices and memory maps are."""


class OnlyDLPack:
    """An array of another library: no buffer, no `__array__`."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


def row_model(function: Callable[[Array], Any], name: str = "m", **settings: Any) -> ps.ModelFunction:
    """FP32 rows of any size in, the same out."""
    return ps.model(name=name, inputs={"x": ps.F32[-1]}, outputs={"y": ps.F32[-1]}, **settings)(function)


def random_rows(rng: np.random.Generator, size: int, rows: int = 1) -> Array:
    return rng.standard_normal((rows, size), np.float32)


def add_in_place(x: Array) -> Array:
    x += 1
    return x


def read_only(x: Array) -> Array:
    y = x + 1
    y.flags.writeable = False
    return y


def by_dlpack(x: Array) -> OnlyDLPack:
    return OnlyDLPack(x)


def overlapping_views(x: Array) -> Array:
    x[:, 1:] = x[:, :-1].copy()
    return x[:, ::-1][:, ::-1]


# What a model may return for x, and the same computed apart.
RETURNED: dict[str, tuple[Callable[[Array], Any], Callable[[Array], Array]]] = {
    "its input": (lambda x: x, lambda x: x),
    "a view of its input": (lambda x: x[:], lambda x: x),
    "a part of its input": (lambda x: x[:, 1:], lambda x: x[:, 1:]),
    "its input backwards": (lambda x: x[:, ::-1], lambda x: x[:, ::-1]),
    "its input reshaped": (lambda x: x.reshape(x.shape[0], 4, -1).reshape(x.shape), lambda x: x),
    "its input changed in place": (add_in_place, lambda x: x + 1),
    "its input shifted in place": (overlapping_views, lambda x: np.concatenate([x[:, :1], x[:, :-1]], axis=1)),
    "a new array": (lambda x: x + 1, lambda x: x + 1),
    "a part of a new array": (lambda x: (x + 1)[:, 1:-1], lambda x: (x + 1)[:, 1:-1]),
    "every second element": (lambda x: (x + 1)[:, ::2], lambda x: (x + 1)[:, ::2]),
    "Fortran order": (lambda x: np.asfortranarray(x + 1), lambda x: x + 1),
    "a transposed array": (lambda x: np.ascontiguousarray((x + 1).T).T, lambda x: x + 1),
    "a broadcast": (lambda x: np.broadcast_to(x[:, :1], x.shape), lambda x: np.broadcast_to(x[:, :1], x.shape)),
    "a read-only array": (read_only, lambda x: x + 1),
    "a subclass": (lambda x: (x + 1).view(Marked), lambda x: x + 1),
    "a buffer that is no array": (lambda x: (x + 1).data, lambda x: x + 1),
    "an array over bytes": (lambda x: np.frombuffer((x + 1).tobytes(), np.float32).reshape(x.shape), lambda x: x + 1),
    "what speaks only DLPack": (lambda x: OnlyDLPack(x + 1), lambda x: x + 1),
    "its input by DLPack": (by_dlpack, lambda x: x),
}


@SIZES
@pytest.mark.parametrize("what", RETURNED)
def test_whatever_is_returned_is_answered_exactly(rng: np.random.Generator, what: str, size: int) -> None:
    function, reference = RETURNED[what]
    with serving(row_model(function)) as server, Client(server) as client:
        for rows in (1, 3, 1):
            x = random_rows(rng, size, rows)
            np.testing.assert_array_equal(client.infer("m", x=x).arrays["y"], reference(x))


@SIZES
@pytest.mark.parametrize("what", RETURNED)
def test_whatever_is_returned_is_split_exactly(rng: np.random.Generator, what: str, size: int) -> None:
    """As above for requests that are executed together: eight clients, and batches of eight only."""
    function, reference = RETURNED[what]
    batching = ps.DynamicBatching(max_queue_delay_us=10_000_000, preferred_batch_sizes=(8,))
    inputs = [random_rows(rng, size) for _ in range(8)]

    def ask(client: Client, number: int) -> None:
        np.testing.assert_array_equal(client.infer("m", x=inputs[number]).arrays["y"], reference(inputs[number]))

    with serving(row_model(function, max_batch_size=8, dynamic_batching=batching)) as server:
        at_once(server, ask, 8)
        with Client(server) as client:
            assert batch_sizes(client.statistics("m")) == {8: 1}


def test_a_memory_map_is_answered_exactly(rng: np.random.Generator, tmp_path: Path) -> None:
    x = random_rows(rng, LARGE)
    mapped = np.memmap(tmp_path / "y", np.float32, "w+", shape=x.shape)

    def function(x: Array) -> Array:
        mapped[:] = x
        return mapped

    with serving(row_model(function)) as server:
        np.testing.assert_array_equal(infer(server, "m", x=x).arrays["y"], x)


class Keeping:
    """Ways of handing out the same memory from every call; each fills `memory` with the latest request's number."""

    def __init__(self, size: int) -> None:
        self.bytes = bytearray(4 * size)
        self.memory = np.frombuffer(self.bytes, np.float32).reshape(1, size)
        self.owned = np.zeros((1, size), np.float32)
        self.answer: dict[str, Array] = {}

    def preallocated(self) -> Any:
        return self.owned

    def view_of_preallocated(self) -> Any:
        return self.owned[:, :]

    def same_dictionary(self) -> Any:
        self.answer["y"] = self.owned
        return self.answer

    def preallocated_in_a_new_dictionary(self) -> Any:
        return {"y": self.owned}

    def over_a_bytearray(self) -> Any:
        return np.frombuffer(self.bytes, np.float32).reshape(self.owned.shape)

    def over_a_fresh_memoryview(self) -> Any:
        return np.ndarray(self.owned.shape, np.float32, buffer=memoryview(self.bytes))

    def memoryview_of_preallocated(self) -> Any:
        return self.owned.data

    def dlpack_of_preallocated(self) -> Any:
        return OnlyDLPack(self.owned)

    def subclass_of_preallocated(self) -> Any:
        return self.owned.view(Marked)


WAYS_OF_KEEPING = [name for name in vars(Keeping) if not name.startswith("_")]


@pytest.mark.parametrize("way", WAYS_OF_KEEPING)
def test_an_answer_on_its_way_is_not_changed_by_the_next_call(way: str) -> None:
    """The first client reads its answer only after the model has written to the same memory again."""
    kept = Keeping(UNREAD)
    hand_out = getattr(kept, way)

    def function(x: Array) -> Any:
        kept.owned[:] = kept.memory[:] = x[0, 0]
        return hand_out()

    with serving(row_model(function)) as server, Client(server) as slow, Client(server) as other:
        slow.send("m", {"x": np.full((1, 1), 1, np.float32)})
        response = slow.connection.getresponse()  # the head is here, so the model has returned
        assert response.status == 200
        (second,) = np.unique(other.infer("m", x=np.full((1, 1), 2, np.float32)).arrays["y"])
        body = response.read()
        first = np.frombuffer(body[-4 * UNREAD :], np.float32)
    assert second == 2
    assert first.min() == first.max() == 1, f"{np.count_nonzero(first != 1)} of {UNREAD} elements of another answer"


@SIZES
@pytest.mark.parametrize("way", WAYS_OF_KEEPING)
def test_one_array_returned_from_every_call_never_mixes_answers(rng: np.random.Generator, way: str, size: int) -> None:
    kept = Keeping(size)
    hand_out = getattr(kept, way)

    def function(x: Array) -> Any:
        kept.owned[:] = kept.memory[:] = x
        return hand_out()

    inputs = random_rows(rng, size, CLIENTS)

    def ask(client: Client, number: int) -> None:
        for turn in range(3):
            x = inputs[number : number + 1] + np.float32(turn)
            np.testing.assert_array_equal(client.infer("m", x=x).arrays["y"], x)

    with serving(row_model(function, max_batch_size=1)) as server:
        at_once(server, ask, CLIENTS)


@SIZES
def test_inputs_that_a_model_keeps_are_its_own(rng: np.random.Generator, size: int) -> None:
    """Later requests don't change them, and changing them changes no answer."""
    kept: list[tuple[Array, Array]] = []

    def function(x: Array) -> Array:
        assert all(np.array_equal(array, copy) for array, copy in kept), "a kept input has changed"
        y = x + 1
        for pair in kept[-2:]:
            for array in pair:
                np.add(array, 1, out=array)
        kept.append((x, x.copy()))
        return y

    def ask(client: Client, _: int) -> None:
        for x in inputs:
            np.testing.assert_array_equal(client.infer("m", x=x).arrays["y"], x + 1)

    inputs = [random_rows(rng, size, rows) for rows in (1, 2, 1)]
    with serving(row_model(function)) as server:
        at_once(server, ask, 4)
    assert all(np.array_equal(array, copy) for array, copy in kept)
    assert sum(array.shape[0] for array, _ in kept) == 4 * 4


@SIZES
def test_inputs_that_were_returned_and_kept_can_be_changed_later(rng: np.random.Generator, size: int) -> None:
    kept: list[Array] = []

    def function(x: Array) -> Array:
        for array in kept:
            array.fill(-1)
        kept.append(x)
        return x

    def ask(client: Client, number: int) -> None:
        for x in inputs[number : number + 3]:
            np.testing.assert_array_equal(client.infer("m", x=x).arrays["y"], x)

    inputs = [random_rows(rng, size) for _ in range(12)]
    with serving(row_model(function)) as server:
        at_once(server, ask, 8)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("size", [1, 7, 8191, LARGE])
@pytest.mark.parametrize("type_", [ps.F32, ps.U8], ids=str)
def test_inputs_are_aligned_writable_and_contiguous(
    rng: np.random.Generator, type_: ps.TensorType, size: int, rows: int
) -> None:
    """For one request, and for requests that are executed together."""
    seen: list[tuple[bool, ...]] = []

    @ps.model(name="m", inputs={"a": type_[-1], "b": type_[-1]}, outputs={"y": type_[-1]})
    def function(a: Array, b: Array) -> Array:
        for x in (a, b):
            seen.append((x.ctypes.data % 64 == 0, x.flags.writeable, x.flags.c_contiguous, type(x) is np.ndarray))
        a += b
        return a

    def ask(client: Client, _: int) -> None:
        np.testing.assert_array_equal(client.infer("m", a=a, b=b).arrays["y"], a + b)

    a, b = (rng.integers(0, 100, (rows, size)).astype(type_.dtype) for _ in range(2))
    with serving(function) as server:
        at_once(server, ask, 3)
    assert len(seen) >= 2
    assert set(seen) == {(True, True, True, True)}


def test_half_precision_and_bfloat16_pass_bit_by_bit(rng: np.random.Generator) -> None:
    """Every pattern of bits, those of NaN included; BF16 arrives as uint16 and leaves as either."""
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(1, -1)

    @ps.model(name="half", inputs={"x": ps.F16[-1]}, outputs={"y": ps.F16[-1]})
    def half(x: Array) -> Array:
        assert x.dtype == np.float16
        return x

    @ps.model(name="brain", inputs={"x": ps.BF16[-1]}, outputs={"words": ps.BF16[-1], "y": ps.BF16[-1]})
    def brain(x: Array) -> dict[str, Array]:
        assert x.dtype == np.uint16
        return {"words": x, "y": (x.view(ml_dtypes.bfloat16) * ml_dtypes.bfloat16(2))}

    with serving(half, brain) as server, Client(server) as client:
        assert client.infer("half", x=bits.view(np.float16)).arrays["y"].tobytes() == bits.tobytes()
        numbers = rng.standard_normal((1, 100)).astype(ml_dtypes.bfloat16)
        answer = client.infer("brain", x=numbers).arrays
        assert answer["words"].tobytes() == numbers.tobytes()
        assert answer["y"].tobytes() == (numbers * ml_dtypes.bfloat16(2)).tobytes()


# BYTES: rows of two elements.
ELEMENTS: dict[str, tuple[bytes, bytes]] = {
    "text": (b"one", b"two"),
    "empty": (b"", b""),
    "one empty": (b"", b"x"),
    "no UTF-8": (b"\xff\xfe", b"\x80"),
    "NUL": (b"\0", b"a\0"),
    "a megabyte": (b"\xab" * (1 << 20), b"\xcd" * ((1 << 20) + 1)),
    "what looks like a length": (b"\x05\0\0\0", b"\xff\xff\xff\xff"),
}


def objects(rows: list[tuple[bytes, bytes]]) -> Array:
    array = np.empty((len(rows), 2), np.object_)
    for index, row in enumerate(rows):
        array[index, :] = row
    return array


def test_elements_of_bytes_pass_whatever_they_hold() -> None:
    """Alone, in one request of several rows, and in one batch of several requests."""

    @ps.model(
        name="m",
        max_batch_size=7,
        inputs={"x": ps.Bytes[2]},
        outputs={"y": ps.Bytes[2], "length": ps.I64[2]},
        dynamic_batching=ps.DynamicBatching(max_queue_delay_us=2_000_000, preferred_batch_sizes=(7,)),
    )
    def function(x: Array) -> dict[str, Array]:
        assert x.dtype == np.object_
        assert all(type(element) is bytes for element in x.ravel())
        return {"y": x[:, ::-1], "length": np.vectorize(len, otypes=[np.int64])(x)}

    everything = list(ELEMENTS.values())

    def check(client: Client, rows: list[tuple[bytes, bytes]]) -> None:
        answer = client.infer("m", x=objects(rows)).arrays
        assert answer["y"].tolist() == [[b, a] for a, b in rows]
        assert answer["length"].tolist() == [[len(a), len(b)] for a, b in rows]

    with serving(function) as server, Client(server) as client:
        check(client, everything)
        at_once(server, lambda client, number: check(client, everything[number : number + 1]), len(everything))
        assert batch_sizes(client.statistics("m")) == {7: 2}


@pytest.mark.parametrize("dtype", ["S3", "U3", "O"])
def test_text_and_fixed_width_bytes_are_elements_too(dtype: str) -> None:
    with serving(
        ps.model(name="m", inputs={"x": ps.F32[1]}, outputs={"y": ps.Bytes[2]})(
            lambda x: np.array([["abc", "ö"] if dtype != "S3" else [b"abc", b"d"]] * len(x), dtype)
        )
    ) as server:
        answer = infer(server, "m", x=np.zeros((2, 1), np.float32)).arrays["y"]
    assert answer.tolist() == [[b"abc", b"d" if dtype == "S3" else "ö".encode()]] * 2


@SIZES
def test_optional_inputs_come_and_go_in_a_concurrent_mix(rng: np.random.Generator, size: int) -> None:
    """Requests with and without it never share a batch: the model would have to invent rows."""
    optional = ps.model(
        name="m", max_batch_size=16, inputs={"x": ps.F32[-1], "bias": ps.F32[-1]}, outputs={"y": ps.F32[-1]}
    )

    @optional
    def function(x: Array, bias: Array | None = None) -> Array:
        if bias is None:
            return x * 2
        assert bias.shape == x.shape
        return x + bias

    inputs = random_rows(rng, size, CLIENTS)

    def ask(client: Client, number: int) -> None:
        x = inputs[number : number + 1]
        for turn in range(4):
            if (number + turn) % 2:
                np.testing.assert_array_equal(client.infer("m", x=x).arrays["y"], x * 2)
            else:
                np.testing.assert_array_equal(client.infer("m", x=x, bias=-x).arrays["y"], x - x)

    with serving(function) as server:
        at_once(server, ask, CLIENTS)


@SIZES
def test_two_instances_never_share_memory(rng: np.random.Generator, size: int) -> None:
    """Both hold their inputs at the same time, change them, and meet before they answer."""
    meeting = threading.Barrier(2, timeout=20)

    def function(x: Array) -> Array:
        before = x.copy()
        meeting.wait()
        assert np.array_equal(x, before), "the other instance wrote into this one's input"
        x += 1
        meeting.wait()
        return x

    inputs = random_rows(rng, size, 2)

    def ask(client: Client, number: int) -> None:
        x = inputs[number : number + 1]
        for _ in range(3):
            np.testing.assert_array_equal(client.infer("m", x=x).arrays["y"], x + 1)

    with serving(row_model(function, max_batch_size=1, instances=2)) as server:
        at_once(server, ask, 2)


@pytest.mark.parametrize("shape", [(1, 0), (3, 0)])
def test_rows_without_elements_are_rows(shape: tuple[int, int]) -> None:
    with serving(row_model(lambda x: x)) as server:
        assert infer(server, "m", x=np.zeros(shape, np.float32)).arrays["y"].shape == shape


def test_scalars_pass_where_there_is_no_batch() -> None:
    model = ps.model(name="m", max_batch_size=0, inputs={"x": ps.F32}, outputs={"y": ps.F32})
    with serving(model(lambda x: np.asarray(x * 2, np.float32))) as server:
        answer = infer(server, "m", x=np.array(21, np.float32)).arrays["y"]
    assert (answer.shape, answer.item()) == ((), 42)
