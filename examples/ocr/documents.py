"""Whole pages to read, whose truth is known: scans, turned and photographed pages, text over photographs, worn copies.

Promises: `rendered_documents` gives the same pixels each time on the same library versions (one seeded generator per
page, so page 7 does not change when page 6 does); a line's corners lie around its ink after every bend; no photograph
behind or beside the text holds text of its own. Called by `compare_pages` and the tests.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from examples.ocr.layout import FlatPage, flat_page
from examples.ocr.lines import grey_photograph, photograph_path

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Kind = Literal["scan", "turned", "photographed", "printed over", "worn"]

SEED = 3026
KINDS: tuple[Kind, ...] = get_args(Kind)
# Colour photographs without a letter in them: not the astronaut with her name tag, not the rocket.
DESKS = ("brick.png", "grass.png", "gravel.png", "coffee.png", "chelsea.png")
BACKDROPS = ("chelsea.png", "coffee.png", "grass.png", "moon.png", "hubble_deep_field.jpg", "retina.jpg")


@dataclass(frozen=True, slots=True)
class TrueLine:
    text: str
    corners: Floats  # [4, 2]: (x, y), clockwise from where the text begins


@dataclass(frozen=True, slots=True)
class Document:
    name: str  # "turned-006": what reports call it
    kind: Kind
    pixels: Pixels  # blue-green-red [height, width, 3]
    lines: tuple[TrueLine, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """Ranges that one page's appearance is drawn from."""

    turn: float  # at most so many degrees either way
    bend: float  # each corner pushed inwards by at most this part of the page
    desk: bool  # whether the page lies on a photograph
    backdrop: tuple[float, float]  # how much of a photograph shows through the paper, 0 to 1
    contrast: tuple[int, int]  # grey levels between ink and paper
    shade: float  # the darkest corner is darker by at most this part
    blur: tuple[float, float]  # sigma, pixels
    noise: tuple[float, float]  # sigma of 255
    jpeg_quality: tuple[int, int]


LOOKS: dict[Kind, Look] = {
    "scan": Look(1.0, 0.0, False, (0.0, 0.0), (180, 235), 0.03, (0.0, 0.6), (0.0, 5.0), (85, 98)),
    "turned": Look(15.0, 0.0, True, (0.0, 0.1), (150, 220), 0.10, (0.2, 0.7), (2.0, 8.0), (75, 95)),
    "photographed": Look(6.0, 0.05, True, (0.0, 0.1), (140, 210), 0.25, (0.3, 0.9), (3.0, 10.0), (70, 92)),
    "printed over": Look(3.0, 0.0, False, (0.15, 0.4), (140, 200), 0.05, (0.2, 0.7), (1.0, 6.0), (75, 95)),
    "worn": Look(3.0, 0.0, False, (0.05, 0.15), (90, 150), 0.15, (0.6, 1.1), (8.0, 16.0), (40, 70)),
}


def rendered_documents(count: int = 40, seed: int = SEED, *, first: int = 0) -> Iterator[Document]:
    """`count` pages from `first` on, the kinds in turn."""
    for index in range(first, first + count):
        kind = KINDS[index % len(KINDS)]
        yield _document(f"{kind.replace(' ', '-')}-{index:03d}", kind, np.random.default_rng((seed, index)))


def _document(name: str, kind: Kind, random: np.random.Generator) -> Document:
    look = LOOKS[kind]
    page = flat_page(random)
    printed = _printed(page, look, random)
    bend, width, height = _bend(page.ink.shape[1], page.ink.shape[0], look, random)
    picture = cv2.warpPerspective(
        printed, bend, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    if look.desk:
        sheet = np.full(page.ink.shape, 255, np.uint8)
        covered = cv2.warpPerspective(sheet, bend, (width, height), flags=cv2.INTER_LINEAR)[:, :, None] / 255
        desk = _photograph(DESKS[int(random.integers(len(DESKS)))], height, width, random)
        picture = picture * covered + (0.35 * desk + 20) * (1 - covered)
    pixels = _taken(np.asarray(picture, np.float32), look, random)
    lines = tuple(TrueLine(line.text, _bent(line.box, bend)) for line in page.lines)
    return Document(name, kind, pixels, lines)


def _printed(page: FlatPage, look: Look, random: np.random.Generator) -> Floats:
    """The flat page in colour."""
    height, width = page.ink.shape
    contrast = int(random.integers(look.contrast[0], look.contrast[1] + 1))
    light = int(random.integers(max(contrast + 5, 200), 251))
    tints = random.uniform(-9, 9, size=(2, 3))
    paper, ink = np.full((height, width, 3), light + tints[0], np.float32), np.clip(light - contrast + tints[1], 0, 255)
    amount = float(random.uniform(*look.backdrop))
    if amount > 0:
        photograph = _photograph(BACKDROPS[int(random.integers(len(BACKDROPS)))], height, width, random)
        # The lightest of it is paper: a photograph printed lightly, as behind a menu or a certificate.
        paper -= amount * (np.percentile(photograph, 95) - photograph)
    covered = page.ink[:, :, None].astype(np.float32) / 255
    return np.asarray(np.clip(paper, 0, 255) * (1 - covered) + ink * covered, dtype=np.float32)


def _bend(width: int, height: int, look: Look, random: np.random.Generator) -> tuple[npt.NDArray[np.float64], int, int]:
    """What takes the flat page to the picture [3, 3], and the picture's width and height."""
    flat = np.array(((0, 0), (width, 0), (width, height), (0, height)), np.float64)
    pushed = random.uniform(0, look.bend, size=(4, 2)) * (width, height) * ((1, 1), (-1, 1), (-1, -1), (1, -1))
    angle = np.deg2rad(random.uniform(-look.turn, look.turn))
    turn = np.array(((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))))
    corners = (flat + pushed) @ turn
    margin = float(random.uniform(0.01, 0.05)) * width if look.desk else 0.0
    if look.desk:
        low, high = corners.min(axis=0) - margin, corners.max(axis=0) + margin
    else:  # the paper is larger than the picture
        middle = corners.mean(axis=0)
        half = np.array((width, height)) / 2
        low, high = middle - half, middle + half
    size = np.ceil(high - low).astype(int)
    bend = cv2.getPerspectiveTransform(flat.astype(np.float32), (corners - low).astype(np.float32))
    return np.asarray(bend, dtype=np.float64), int(size[0]), int(size[1])


def _bent(box: tuple[float, float, float, float], bend: npt.NDArray[np.float64]) -> Floats:
    left, top, right, bottom = box
    corners = np.array([[(left, top), (right, top), (right, bottom), (left, bottom)]], np.float32)
    return np.asarray(cv2.perspectiveTransform(corners, bend)[0], dtype=np.float32)


def _taken(picture: Floats, look: Look, random: np.random.Generator) -> Pixels:
    """Light, lens, sensor and file of the camera or scanner."""
    height, width = picture.shape[:2]
    across, down = (np.linspace(-1, 1, length, dtype=np.float32) for length in (width, height))
    slope = random.uniform(-1, 1, size=2)
    shade = (slope[0] * across[None, :] + slope[1] * down[:, None] + 2) / 4  # 0 to 1
    picture = picture * (1 - float(random.uniform(0, look.shade)) * shade[:, :, None])
    sigma = float(random.uniform(*look.blur))
    if sigma > 0.2:  # below this a Gaussian is one pixel wide
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), dtype=np.float32)
    grain = random.normal(0, float(random.uniform(*look.noise)), (height, width, 1))
    pixels = np.clip(np.rint(picture + grain), 0, 255).astype(np.uint8)
    quality = int(random.integers(look.jpeg_quality[0], look.jpeg_quality[1] + 1))
    _, encoded = cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, quality))
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), dtype=np.uint8)


def _photograph(name: str, height: int, width: int, random: np.random.Generator) -> Floats:
    """A random piece of it, scaled up where it is too small; [height, width, 3]."""
    photograph = _colours(name)
    scale = max(1.0, (height + 1) / photograph.shape[0], (width + 1) / photograph.shape[1])
    scaled = cv2.resize(photograph, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    top = int(random.integers(0, scaled.shape[0] - height + 1))
    left = int(random.integers(0, scaled.shape[1] - width + 1))
    return scaled[top : top + height, left : left + width].astype(np.float32)


@lru_cache(maxsize=len({*DESKS, *BACKDROPS}))
def _colours(name: str) -> Pixels:
    with Image.open(photograph_path(name)) as picture:
        return np.ascontiguousarray(np.asarray(picture.convert("RGB"), dtype=np.uint8)[:, :, ::-1])


def real_page() -> Pixels:
    """scikit-image's `page`, photographed, in three channels: RapidOCR takes grey pictures too, and makes the same of
    them."""
    return np.asarray(cv2.cvtColor(grey_photograph("page.png"), cv2.COLOR_GRAY2BGR), dtype=np.uint8)
