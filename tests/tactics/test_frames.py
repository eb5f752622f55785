"""Frames: what is encoded comes back, in pieces of any size, and what is no frame is refused."""

import json
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.tactics.frames import Decoder, Frame, FrameError, encode


def _bytes(frame: Frame) -> bytes:
    return b"".join(bytes(part) for part in encode(frame))


def _head(**changes: Any) -> bytes:
    head = {"kind": "ok", "fields": {}, "tensors": []} | changes
    text = json.dumps(head).encode()
    return struct.pack("<I", len(text)) + text


def _tensor(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "x", "datatype": "FP32", "shape": [2], "bytes": 8} | changes]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.float64(3.5) * np.ones(()),
        np.array([[True], [False]]),
        np.arange(24, dtype=np.int64).reshape(2, 3, 4).transpose(2, 0, 1),
        np.empty((0, 5), np.uint8),
        np.array([np.nan, np.inf, -0.0], np.float16),
        np.array([b"", b"\x00\xff", b"word"], object).reshape(3, 1),
        np.empty((0,), object),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_arrays_come_back_as_they_were(array: np.ndarray[Any, Any]) -> None:
    decoder = Decoder()
    for byte in _bytes(Frame("ok", {"number": 1}, {"x": array, "again": array})):
        assert decoder.next() is None
        decoder.feed(bytes([byte]))
    frame = decoder.next()
    assert frame is not None
    assert (frame.kind, frame.fields) == ("ok", {"number": 1})
    for name in ("x", "again"):
        assert frame.tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(frame.tensors[name], array)
    assert decoder.next() is None


def test_bfloat16_travels_as_words() -> None:
    decoder = Decoder()
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    decoder.feed(_bytes(Frame("ok", {}, {"x": array})))
    frame = decoder.next()
    assert frame is not None
    np.testing.assert_array_equal(frame.tensors["x"], array.view(np.uint16))


def test_frames_one_after_the_other_are_kept_apart() -> None:
    decoder = Decoder()
    decoder.feed(_bytes(Frame("one", {}, {"x": np.ones(3)})) + _bytes(Frame("two")) + b"\x01")
    first, second = decoder.next(), decoder.next()
    assert first is not None
    assert second is not None
    assert (first.kind, second.kind, decoder.next()) == ("one", "two", None)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"this is what a library prints", id="text"),
        pytest.param(struct.pack("<I", 4) + b"nope", id="no-json"),
        pytest.param(struct.pack("<I", 2) + b"[]", id="a-list"),
        pytest.param(struct.pack("<I", 40_000) + b"[" * 40_000, id="deep"),
        pytest.param(_head(tensors=_tensor(bytes=-1)), id="negative"),
        pytest.param(_head(tensors=_tensor(shape=[-2])), id="negative-shape"),
        pytest.param(_head(tensors=_tensor(bytes=2**60)), id="huge"),
        pytest.param(_head(tensors=_tensor(shape=[3])) + b"12345678", id="wrong-size"),
        pytest.param(_head(tensors=_tensor(datatype="COMPLEX")) + b"12345678", id="unknown-type"),
        pytest.param(_head(tensors=_tensor(datatype="BYTES")) + b"\xff\xff\xff\xff1234", id="cut-element"),
        pytest.param(_head(tensors=_tensor(datatype="BYTES", bytes=6)) + b"\0\0\0\0\0\0", id="cut-length"),
        pytest.param(_head(tensors=_tensor(datatype="BYTES")) + b"\4\0\0\0word", id="too-few-elements"),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    decoder = Decoder()
    decoder.feed(data)
    with pytest.raises(FrameError):
        decoder.next()


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(head: bytes, rest: bytes) -> None:
    decoder = Decoder()
    decoder.feed(struct.pack("<I", len(head)) + head + rest)
    try:
        while decoder.next() is not None:
            pass
    except FrameError:
        return
