"""Turns encoded pictures of text lines into text: decode, scale, group by width, recognise, read off.

Promises: a line reads the same whoever shares its batch, up to the width it is padded to; the class scores, 75 KB for
every 8 pixels of line, are never sent; an unusable picture raises `UnreadableImageError`, which says what is wrong.
Knows the recogniser only as a function from pictures to the best class of each column, so any runtime can be behind it.
Called by `model`.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from penstock.errors import InvalidArgument

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Classes = npt.NDArray[np.intp]
Recognise = Callable[[Floats], tuple[Classes, Floats]]
"""FP32 [n, 3, 48, width] to the most probable class of each column [n, width / 8] and its probability, as
`best_classes` gives them; safe to call from several threads."""

HEIGHT = 48  # the model's input height: `rec_img_shape` in the config.yaml of the package that carries it
STEP = 8  # columns of picture behind one column of scores: padding to more than this is only wasted work
MIN_WIDTH = 160  # narrower lines are padded: the model has seen few, and a call costs no less
MAX_WIDTH = 3200  # at height 48: about 200 letters. Wider is not a text line but an attempt to keep the server busy
MAX_PIXELS = 16_000_000  # of the picture as sent: a line of 48 x 3200 that a 100-megapixel camera took. Decoded: 48 MB


@dataclass(frozen=True, slots=True)
class Calls:
    """How lines are put together into calls of the recogniser, which is a question of what a runtime is fast at."""

    step: int = STEP
    """Lines are padded to a multiple of so many columns: a runtime that prepares every new width should meet few."""

    rows: int = 8
    """At most so many lines in one call."""

    # On two cores, one thread of ONNX Runtime, 12.2 ms for 160 columns and 23.2 ms for 320 give 0.069 ms a column and
    # 1.2 ms a call.
    overhead: int = 17
    """What a call costs besides its columns, in columns."""

    def width(self, width: int) -> int:
        """What a line is padded to."""
        return math.ceil(max(MIN_WIDTH, width) / self.step) * self.step


ANY_WIDTH = Calls()
# For a library that makes kernels for each shape that it meets: few widths, and a line a call, so one shape for each.
FEW_SHAPES = Calls(step=64, rows=1)


class UnreadableImageError(InvalidArgument):
    """One row's picture cannot be used. Fails the batch, which the server then retries row by row, so only it fails."""


@dataclass(frozen=True, slots=True)
class Reading:
    text: str
    score: float  # mean probability of the characters kept, 0 to 1; 0 when nothing was read


def read(
    images: Sequence[bytes], recognise: Recognise, alphabet: Sequence[str], calls: Calls = ANY_WIDTH
) -> list[Reading]:
    """One reading per encoded picture, in order. `alphabet[0]` is the CTC blank."""
    lines = [scaled_line(image) for image in images]
    readings: list[Reading | None] = [None] * len(lines)
    widths = [line.shape[1] for line in lines]
    for members in groups_of_near_width(widths, calls):
        width = calls.width(max(widths[member] for member in members))
        best, confidence = recognise(as_batch([lines[member] for member in members], width))
        for member, classes, chances in zip(members, best, confidence, strict=True):
            readings[member] = greedy_ctc(classes, chances, alphabet)
    return [reading for reading in readings if reading is not None]


def scaled_line(image: bytes) -> Pixels:
    """Decodes one PNG or JPEG to blue-green-red [48, width, 3], the channel order the model was trained on."""
    try:
        # Reads the header only: the size is known before a byte of it is allocated.
        with Image.open(io.BytesIO(image), formats=("PNG", "JPEG")) as header:
            width, height = header.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(
            f"image: expected a PNG or JPEG file, got {len(image)} bytes that are neither"
        ) from error
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"image: {width}x{height} is over {MAX_PIXELS} pixels; scale it down before sending")
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise UnreadableImageError(f"image: its header says {width}x{height} but its {len(image)} bytes do not decode")
    height, width = pixels.shape[:2]  # a camera's note of how it was held may have turned the picture
    scaled_width = math.ceil(HEIGHT * width / height)
    if scaled_width > MAX_WIDTH:
        raise UnreadableImageError(
            f"image: {width}x{height} would be {scaled_width} wide at height {HEIGHT}, the limit is {MAX_WIDTH}; "
            "cut the line into pieces"
        )
    return np.asarray(cv2.resize(pixels, (scaled_width, HEIGHT)), dtype=np.uint8)


def as_batch(lines: Sequence[Pixels], width: int | None = None) -> Floats:
    """FP32 [n, 3, 48, width] in -1..1; what is right of a shorter line is 0, mid grey, as in training.

    width: at least that of the widest line; None: as narrow as the model takes them.
    """
    if width is None:
        width = ANY_WIDTH.width(max(line.shape[1] for line in lines))
    batch = np.zeros((len(lines), 3, HEIGHT, width), np.float32)
    for row, line in zip(batch, lines, strict=True):
        np.multiply(line.transpose(2, 0, 1), np.float32(2 / 255), out=row[:, :, : line.shape[1]])
        row[:, :, : line.shape[1]] -= 1
    return batch


def groups_of_near_width(widths: Sequence[int], calls: Calls = ANY_WIDTH) -> list[list[int]]:
    """Splits a batch where padding would cost more than another call of the model.

    Sorted by width, every best grouping is a run of neighbours, so this is a shortest path over the places to cut:
    cost of a group = overhead of a call + its size x the width of its widest line.
    """
    order = sorted(range(len(widths)), key=widths.__getitem__)
    cheapest = [0.0] + [math.inf] * len(order)  # [end]: of all lines before it
    cut = [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        widest = calls.width(widths[order[end - 1]])
        for start in range(max(0, end - calls.rows), end):
            cost = cheapest[start] + calls.overhead + (end - start) * widest
            if cost < cheapest[end]:
                cheapest[end], cut[end] = cost, start
    groups, end = [], len(order)
    while end:
        groups.append(order[cut[end] : end])
        end = cut[end]
    return groups[::-1]


def best_classes(outputs: Mapping[str, npt.NDArray[Any]]) -> tuple[Classes, Floats]:
    """Most probable class per column [n, columns] and its probability, from probabilities or from their reduction."""
    if len(outputs) == 1:
        (scores,) = outputs.values()
        if scores.ndim == 3:
            best = scores.argmax(axis=2)
            return best, np.take_along_axis(scores, best[:, :, None], axis=2)[:, :, 0].astype(np.float32)
    indices = [array for name, array in outputs.items() if name.endswith("_index") and array.dtype.kind in "iu"]
    values = [array for name, array in outputs.items() if name.endswith("_value") and array.dtype.kind == "f"]
    if len(indices) != 1 or len(values) != 1 or indices[0].ndim != 2 or indices[0].shape != values[0].shape:
        got = ", ".join(f"{name} {array.dtype.name}{list(array.shape)}" for name, array in outputs.items())
        raise ValueError(
            f"expected probabilities [n, columns, classes], or Y_index and Y_value [n, columns]; got {got}"
        )
    return indices[0].astype(np.intp), values[0].astype(np.float32)


def greedy_ctc(classes: Classes, chances: Floats, alphabet: Sequence[str]) -> Reading:
    """Best class per column -> text: repeats merged, blanks (class 0) dropped (Graves et al. 2006, best path)."""
    kept = kept_columns(classes)
    if not kept.any():
        return Reading("", 0.0)
    return Reading("".join(alphabet[index] for index in classes[kept]), float(chances[kept].mean()))


def kept_columns(classes: Classes) -> npt.NDArray[np.bool_]:
    """Which columns stand for a character of the text, one each."""
    kept = classes != 0
    kept[1:] &= classes[1:] != classes[:-1]
    return kept
