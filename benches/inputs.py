"""Inputs with real statistics for every model of the benches: calibration samples, and others to judge by.

`penstock build --calibration benches.inputs:resnet50` from the root of the checkout takes the function of that name: no
arguments, one sample of batch 1 at a time. `held_out` gives what engines are compared on. The two share no pixel of a
photograph and no rendered line (`benches.models.pictures`). The same numbers on the same library versions.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from benches.models import pictures, text_recogniser
from benches.models.pictures import CLIP, IMAGENET, SIGNED, Side
from examples.ocr.reader import as_batch, scaled_line

Arrays = dict[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float32]
Make = Callable[[Side, int], Floats]
"""(side, count) -> [count, ...]: the first samples of a side are the same however many are asked for."""

DETECTOR_SIZE = 736  # PP-OCR scales a picture's shorter side to it
RECOGNISER_WIDTH = 320  # a line of about 20 letters at height 48
_CLASSIFIER_SHAPE = (48, 192)
# Where `benches.models.export_torch` put the tokens, unless told otherwise.
_LAB = Path(os.environ.get("PENSTOCK_LAB", Path(__file__).parents[1] / ".peers"))


@dataclass(frozen=True)
class Inputs:
    """What one model is fed."""

    make: Callable[[Side, int], Arrays]
    calibration: int
    """How many samples calibration takes: more for small inputs."""

    def samples(self) -> Iterator[Arrays]:
        arrays = self.make(Side.CALIBRATION, self.calibration)
        for row in range(self.calibration):
            yield {name: array[row : row + 1] for name, array in arrays.items()}


def held_out(name: str, count: int) -> Arrays:
    """`count` samples in one batch, none of which calibration sees. KeyError for a model that has no inputs here."""
    return ALL[name].make(Side.HELD_OUT, count)


def _x(make: Make) -> Callable[[Side, int], Arrays]:
    return lambda side, count: {"x": make(side, count)}


def _photographs(statistics: tuple[Floats, Floats]) -> Make:
    return lambda side, count: pictures.normalised(pictures.crops(side, count, (224, 224)), statistics)


def _detector_pictures(side: Side, count: int) -> Floats:
    stacked = np.stack(pictures.crops(side, count, (640, 640)))
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2).astype(np.float32) / 255)


def _windows(side: Side, count: int) -> Floats:
    return pictures.text_windows(side, count, text_recogniser.HEIGHT, text_recogniser.WIDTH)


def _pages(side: Side, count: int) -> Floats:
    pages = [_signed(pictures.page(side, index, DETECTOR_SIZE)) for index in range(count)]
    return np.stack(pages)


def _lines(side: Side, count: int) -> Floats:
    """Lines as the recogniser gets them, cut or padded to one width."""
    found = np.zeros((count, 3, 48, RECOGNISER_WIDTH), np.float32)
    for row, line in zip(found, pictures.text_lines(side, count), strict=True):
        prepared = as_batch([scaled_line(line.encoded)[:, :RECOGNISER_WIDTH]])[0]
        row[:, :, : prepared.shape[2]] = prepared[:, :, :RECOGNISER_WIDTH]
    return found


def _directions(side: Side, count: int) -> Floats:
    """Lines for the direction classifier, every second one upside down."""
    height, width = _CLASSIFIER_SHAPE
    found = np.zeros((count, 3, height, width), np.float32)
    for index, (row, line) in enumerate(zip(found, pictures.text_lines(side, count), strict=True)):
        pixels = scaled_line(line.encoded)[:, :width]
        turned = np.asarray(cv2.rotate(pixels, cv2.ROTATE_180), np.uint8) if index % 2 else pixels
        row[:, :, : turned.shape[1]] = _signed(turned)
    return found


def _tokens(side: Side, count: int) -> Arrays:
    """Token ids and mask of passages, INT64 [count, 128] each. FileNotFoundError where MiniLM was not exported."""
    names = ("input_ids", "attention_mask")
    with np.load(_LAB / "models" / "minilm.tokens.npz", allow_pickle=False) as archive:
        return {name: archive[f"{side.name}_{name}"][:count] for name in names}


def _signed(pixels: npt.NDArray[np.uint8]) -> Floats:
    return pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1


ALL: Mapping[str, Inputs] = {
    "ocr_det": Inputs(_x(_pages), 24),
    "ocr_rec": Inputs(_x(_lines), 96),
    "ocr_cls": Inputs(_x(_directions), 96),
    "efficientnet_lite0": Inputs(_x(_photographs(SIGNED)), 96),
    "minilm": Inputs(_tokens, 96),
    "resnet34": Inputs(_x(_photographs(IMAGENET)), 96),
    "resnet50": Inputs(_x(_photographs(IMAGENET)), 96),
    "mobilenetv2": Inputs(_x(_photographs(IMAGENET)), 96),
    "vit_b32": Inputs(_x(_photographs(CLIP)), 96),
    "crnn": Inputs(_x(_windows), 96),
    "crnn_bilstm": Inputs(_x(_windows), 96),
    "yolo": Inputs(_x(_detector_pictures), 32),
}

# What `--calibration benches.inputs:NAME` finds.
ocr_det = ALL["ocr_det"].samples
ocr_rec = ALL["ocr_rec"].samples
ocr_cls = ALL["ocr_cls"].samples
efficientnet_lite0 = ALL["efficientnet_lite0"].samples
minilm = ALL["minilm"].samples
resnet34 = ALL["resnet34"].samples
resnet50 = ALL["resnet50"].samples
mobilenetv2 = ALL["mobilenetv2"].samples
vit_b32 = ALL["vit_b32"].samples
crnn = ALL["crnn"].samples
crnn_bilstm = ALL["crnn_bilstm"].samples
yolo = ALL["yolo"].samples
