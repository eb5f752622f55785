"""A picture of a page in, its lines and words out: the steps of this package around three networks.

Promises: knows the networks only as functions of arrays, so that engines, plain runtimes and a server's models fit;
calls none that has nothing to look at. Called by `compare_pages` and the tests; a server runs the same steps, each in
its pool, with the networks' own queues between them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from examples.ocr.page.boxes import boxes
from examples.ocr.page.crops import batches, crops, directions, upright
from examples.ocr.page.frame import prepare
from examples.ocr.page.words import Line, words
from examples.ocr.reader import ANY_WIDTH, Calls


class Network(Protocol):
    """What `penstock.load` answers, and anything called like it."""

    def __call__(self, *, x: npt.NDArray[np.float32]) -> Mapping[str, npt.NDArray[Any]]: ...


Watch = Callable[[str], AbstractContextManager[Any]]
"""Is entered around each step, with its name."""


def read_page(
    image: npt.NDArray[Any],
    detect: Network,
    classify: Network,
    recognise: Network,
    alphabet: Sequence[str],
    *,
    calls: Calls = ANY_WIDTH,
    watch: Watch = nullcontext,
) -> tuple[Line, ...]:
    """Lines in reading order; none where there is no text.

    image      uint8 blue-green-red [height, width, 3] or grey [height, width]; UnreadableImageError for anything else.
    detect     FP32 [1, 3, height, width] to probabilities [1, 1, height, width].
    classify   FP32 [n, 3, 48, 192] to the chances [n, 2] of a line being as it should be, and upside down.
    recognise  FP32 [n, 3, 48, width] to class probabilities [n, width / 8, classes], or their reduction.
    alphabet   class to character; `alphabet[0]` is the CTC blank.
    """
    with watch("prepare"):
        frame, page = prepare(image)
    with watch("detect"):
        probabilities = only(detect(x=page))
    with watch("boxes"):
        quadrilaterals = boxes(probabilities, frame.size)
    if len(quadrilaterals) == 0:
        return ()
    with watch("crops"):
        lines = crops(frame, quadrilaterals)
        looks = directions(lines)
    with watch("classify"):
        chances = only(classify(x=looks))
    with watch("batches"):
        lines = upright(lines, chances)
        grouped = batches(lines, calls)
    with watch("recognise"):
        answers = [recognise(x=batch.pictures) for batch in grouped]
    with watch("words"):
        return words(frame, lines, grouped, answers, alphabet)


def only(outputs: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The output of a network that has one, whatever it is called."""
    (output,) = outputs.values()
    return output
