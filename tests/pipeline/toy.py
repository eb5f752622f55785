"""A toy reader of pictures: `detector` says where the boxes are, `recogniser` reads one crop.

A picture is uint8[height, 4]. Every row is a box, a crop is one row, and its text is the sum of its pixels. The
recogniser can be held, which a test does to see what waits.
"""

import threading
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

import penstock as ps
from tests.serve.calls import SECONDS, Array

WIDTH: Final = 4
PATIENT_US: Final = 3_000_000
"""A delay that only a test which fails waits for."""


def picture(*rows: Sequence[int]) -> Array:
    return np.array(rows, np.uint8).reshape(len(rows), WIDTH)


def texts(image: Array) -> list[bytes]:
    """What reading it must give."""
    return [str(int(row.sum())).encode() for row in image]


@ps.model(name="detector", max_batch_size=8)
def detector(image: ps.U8[-1, WIDTH]) -> ps.I64[-1]:
    """The numbers of the rows that are boxes: all of them."""
    return np.tile(np.arange(image.shape[1], dtype=np.int64), (len(image), 1))


class Recogniser:
    """The model function `recogniser`; `seen` has every row that it was called with."""

    def __init__(self, **settings: Any) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.entered = threading.Semaphore(0)
        self._opened = threading.Event()
        self._opened.set()
        self.model = ps.model(name="recogniser", inputs={"crop": ps.U8[WIDTH]}, outputs={"text": ps.Bytes}, **settings)(
            self._read
        )

    def hold(self) -> None:
        self._opened.clear()

    def release(self) -> None:
        self._opened.set()

    def _read(self, crop: Array) -> Array:
        self.seen += [tuple(row) for row in crop.tolist()]
        self.entered.release()
        assert self._opened.wait(SECONDS)
        return np.array(texts(crop), dtype=object)


def crop_rows(image: Array, boxes: Array) -> list[Array]:
    return [image[box] for box in boxes]


def reader(name: str = "read", **settings: Any) -> ps.Pipeline:
    detect, recognise = ps.use(detector), ps.use("recogniser")

    @ps.pipeline(name=name, **settings)
    async def read(image: ps.U8[-1, WIDTH]) -> ps.Bytes[-1]:
        boxes = await detect(image)
        crops = await ps.cpu(crop_rows, image, boxes)
        return await ps.gather(recognise(crop) for crop in crops)

    return read
