"""A picture to what the tower takes, as open_clip prepares it: shorter side to 224 by bicubic, the centre, mean and
deviation taken out.

Promises: what torchvision's Resize, CenterCrop and Normalize make of the same picture (the tests compare); any PNG,
JPEG or WebP of 1 to MAX_PIXELS pixels gives a valid input, everything else `UnreadableImageError` with the reason
before its pixels take memory. Called by `service`, in a pool of threads: Pillow lets go of the GIL while it decodes
and resizes.
"""

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from penstock.errors import InvalidArgument

Floats = npt.NDArray[np.float32]

SIZE: Final = 224
FORMATS: Final = ("PNG", "JPEG", "WEBP")
MAX_PIXELS: Final = 50_000_000  # a camera's; decoded 150 MB
# A picture of 1 x 100,000 would become one of 224 x 22 million; the crop needs 224 of them.
MAX_RATIO: Final = 20

# The statistics that CLIP was trained with (Radford et al. 2021): mean and deviation of red, green and blue in 0..1.
MEAN: Final = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION: Final = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

# What each of 256 values becomes in each channel: looked up in half the time that computing takes, the same numbers.
_VALUES: Final = (np.arange(256, dtype=np.float32)[None] / np.float32(255) - MEAN[:, None]) / DEVIATION[:, None]


class UnreadableImageError(InvalidArgument):
    """The bytes are no picture that can be used. 400, INVALID_ARGUMENT."""


def prepared(encoded: bytes) -> Floats:
    """FP32 [3, 224, 224] of an encoded picture. Raises UnreadableImageError."""
    return normalised(centre(opened(encoded)))


def opened(encoded: bytes) -> Image.Image:
    """Decoded, as RGB. Raises UnreadableImageError."""
    try:
        picture = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UnreadableImageError(f"image: {len(encoded)} bytes are no PNG, JPEG or WebP") from None
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"image: {width}x{height} is over {MAX_PIXELS} pixels; scale it down first")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise UnreadableImageError(f"image: {width}x{height} is over {MAX_RATIO} times as long as wide; cut it first")
    try:
        return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableImageError(f"image: {width}x{height}, but its data is damaged ({error})") from None


def centre(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """uint8 [224, 224, 3]: the shorter side scaled to 224, rounded as torchvision rounds, and the middle cut out."""
    width, height = picture.size
    short = min(width, height)
    wide, high = SIZE * width // short, SIZE * height // short
    resized = picture.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = round((wide - SIZE) / 2), round((high - SIZE) / 2)
    return np.asarray(resized.crop((left, top, left + SIZE, top + SIZE)), np.uint8)


def normalised(pixels: npt.NDArray[np.uint8]) -> Floats:
    """[224, 224, 3] to FP32 [3, 224, 224]."""
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    found = np.empty(planes.shape, np.float32)
    for values, plane, out in zip(_VALUES, planes, found, strict=True):
        np.take(values, plane, out=out, mode="clip")  # nothing is out of range: other modes copy `out` first
    return found
