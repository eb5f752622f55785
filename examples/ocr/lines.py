"""Text lines to read: rendered ones, whose truth is known, and those of a photographed page.

Promises: `rendered_lines` gives the same bytes each time on the same library versions (one seeded generator per line,
so line 7 does not change when line 6 does); half the lines are plain and half are hard; the truth is what was drawn.
Called by `demo`, `contact_sheet` and the tests.
"""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from examples.ocr import fonts, texts

Pixels = npt.NDArray[np.uint8]
Kind = Literal["plain", "hard", "page"]

SEED = 2026
PAGE_LINES = Path(__file__).with_name("page_lines.json")
TEXTURES = ("brick.png", "grass.png", "gravel.png", "coffee.png")


@dataclass(frozen=True, slots=True)
class Line:
    name: str  # "plain-007": what reports call it
    kind: Kind
    text: str  # what a perfect reader answers
    encoded: bytes  # PNG or JPEG, as a client would send it


@dataclass(frozen=True, slots=True)
class Look:
    """Ranges that one line's appearance is drawn from."""

    size: tuple[int, int]  # font size, pixels
    rotation: float  # at most so many degrees either way
    shear: float  # horizontal shift per pixel of height, either way
    blur: tuple[float, float]  # sigma, pixels
    noise: tuple[float, float]  # sigma of 255
    contrast: tuple[int, int]  # grey levels between ink and paper
    texture: tuple[float, float]  # how much of a photograph shows through the paper, 0 to 1
    jpeg_quality: tuple[int, int] | None  # None: PNG


# A flatbed scan or a screenshot: the recogniser should read these all but perfectly.
PLAIN = Look(
    size=(18, 40),
    rotation=1.5,
    shear=0.026,  # tan 1.5 degrees
    blur=(0.0, 1.1),
    noise=(0.0, 12.0),
    contrast=(120, 235),
    texture=(0.0, 0.0),
    jpeg_quality=None,
)
# A phone held badly in front of a sign at dusk: wrong readings are expected here, and should stay few.
HARD = Look(
    size=(14, 30),
    rotation=3.0,
    shear=0.2,
    blur=(0.4, 1.4),
    noise=(5.0, 18.0),
    contrast=(70, 150),
    texture=(0.0, 0.3),
    jpeg_quality=(25, 70),
)


def rendered_lines(count: int = 400, seed: int = SEED) -> list[Line]:
    """`count` lines, plain and hard in turn."""
    print_faces = fonts.paths_of(fonts.PRINT)
    all_faces = print_faces + fonts.paths_of(fonts.DISPLAY)
    lines = []
    for index in range(count):
        random = np.random.default_rng((seed, index))
        kind: Kind = "plain" if index % 2 == 0 else "hard"
        faces, look = (print_faces, PLAIN) if kind == "plain" else (all_faces, HARD)
        text = texts.line_of_text(random)
        face = faces[int(random.integers(len(faces)))]
        lines.append(Line(f"{kind}-{index:03d}", kind, text, _render(text, face, look, random)))
    return lines


def page_lines() -> list[Line]:
    """The lines of scikit-image's `page` picture, cut out by the boxes kept beside this file."""
    page = grey_photograph("page.png")
    lines = []
    for index, entry in enumerate(json.loads(PAGE_LINES.read_text(encoding="utf-8"))["lines"]):
        x0, y0, x1, y1 = entry["box"]
        lines.append(Line(f"page-{index:03d}", "page", entry["text"], _encode(page[y0:y1, x0:x1], ".png", ())))
    return lines


def _render(text: str, face: Path, look: Look, random: np.random.Generator) -> bytes:
    coverage = _tilt(_ink(text, face, int(random.integers(look.size[0], look.size[1] + 1))), look, random)
    height, width = coverage.shape
    paper, ink = _colours(look, random)
    background = np.broadcast_to(paper, (height, width, 3)).astype(np.float32)
    background = background + _lighting(height, width, random)[:, :, None]
    amount = float(random.uniform(*look.texture))
    if amount > 0:
        background = background + amount * _texture(height, width, random)[:, :, None]
    alpha = coverage[:, :, None].astype(np.float32) / 255
    picture = background * (1 - alpha) + ink * alpha
    sigma = float(random.uniform(*look.blur))
    if sigma > 0.2:  # below this a Gaussian is one pixel wide
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), dtype=np.float64)
    picture = picture + random.normal(0, float(random.uniform(*look.noise)), (height, width, 1))
    pixels = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    if look.jpeg_quality is None:
        return _encode(pixels, ".png", ())
    quality = int(random.integers(look.jpeg_quality[0], look.jpeg_quality[1] + 1))
    return _encode(pixels, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, quality))


def _ink(text: str, face: Path, size: int) -> Pixels:
    """How much of each pixel the letters cover, 0 to 255, with room around them for the tilt."""
    # BASIC: the other engine comes with some builds of Pillow only and would move letters.
    font = ImageFont.truetype(str(face), size, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    room = size
    canvas = Image.new("L", (right - left + 2 * room, bottom - top + 2 * room), 0)
    ImageDraw.Draw(canvas).text((room - left, room - top), text, fill=255, font=font)
    return np.asarray(canvas, dtype=np.uint8)


def _tilt(coverage: Pixels, look: Look, random: np.random.Generator) -> Pixels:
    """Rotates and shears about the middle, then cuts to the letters plus the small margin a detector leaves."""
    height, width = coverage.shape
    angle = np.deg2rad(random.uniform(-look.rotation, look.rotation))
    shear = float(random.uniform(-look.shear, look.shear))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.array([[1, shear], [0, 1]])
    corners = turn @ (np.array([[0, width, 0, width], [0, 0, height, height]]) - [[width / 2], [height / 2]])
    new_width, new_height = (int(np.ceil(2 * np.abs(axis).max())) for axis in corners)
    shift = np.array([[new_width / 2], [new_height / 2]]) - turn @ np.array([[width / 2], [height / 2]])
    tilted = cv2.warpAffine(coverage, np.hstack((turn, shift)), (new_width, new_height), flags=cv2.INTER_CUBIC)
    rows, columns = np.flatnonzero(tilted.max(axis=1) > 16), np.flatnonzero(tilted.max(axis=0) > 16)
    margins = random.integers(2, 7, size=4)
    top, bottom = max(0, rows[0] - margins[0]), rows[-1] + 1 + margins[1]
    left, right = max(0, columns[0] - margins[2]), columns[-1] + 1 + margins[3]
    return np.asarray(tilted[top:bottom, left:right], dtype=np.uint8)


def _colours(look: Look, random: np.random.Generator) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Paper and ink, blue-green-red: grey levels apart by the contrast, each with a little colour of its own."""
    contrast = int(random.integers(look.contrast[0], look.contrast[1] + 1))
    dark = int(random.integers(0, 256 - contrast))
    tints = random.uniform(-8, 8, size=(2, 3))
    levels = (dark + contrast, dark) if random.random() < 0.8 else (dark, dark + contrast)
    paper, ink = (np.clip(level + tint, 0, 255).astype(np.float32) for level, tint in zip(levels, tints, strict=True))
    return paper, ink


def _lighting(height: int, width: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """A slope of at most 10 grey levels across the line: no lamp is even."""
    slope = float(random.uniform(-10, 10))
    return np.broadcast_to(np.linspace(-slope, slope, width, dtype=np.float32), (height, width))


def _texture(height: int, width: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """A random piece of a photograph with mean 0, as tall and wide as asked."""
    photograph = grey_photograph(TEXTURES[int(random.integers(len(TEXTURES)))])
    # Scaled so that the piece covers the line and its grain stays about as fine as the strokes.
    scale = max(1.0, (height + 1) / photograph.shape[0], (width + 1) / photograph.shape[1])
    scaled = cv2.resize(photograph, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    top = int(random.integers(0, scaled.shape[0] - height + 1))
    left = int(random.integers(0, scaled.shape[1] - width + 1))
    piece = scaled[top : top + height, left : left + width].astype(np.float32)
    return np.asarray(piece - piece.mean(), dtype=np.float32)


@lru_cache(maxsize=len(TEXTURES) + 1)
def grey_photograph(name: str) -> Pixels:
    # Pillow and not OpenCV, which prints a warning about the colour profile inside page.png.
    with Image.open(photograph_path(name)) as picture:
        return np.asarray(picture.convert("L"), dtype=np.uint8)


def photograph_path(name: str) -> Path:
    """A picture that the scikit-image package carries, found without importing the package (a second and a half)."""
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("the pictures of scikit-image are not installed; fix: pip install scikit-image")
    return Path(found.submodule_search_locations[0]) / "data" / name


def _encode(pixels: Pixels, extension: str, parameters: Sequence[int]) -> bytes:
    good, encoded = cv2.imencode(extension, pixels, list(parameters))
    if not good:
        raise RuntimeError(f"OpenCV could not encode a {pixels.shape} picture as {extension}")
    return encoded.tobytes()
