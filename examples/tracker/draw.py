"""The last frame of a moving picture with the paths that its objects took and the ones that were found, as a PNG.

Called by `__main__`.
"""

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from examples.tracker.scene import Scene

_TRUE: Final = (255, 255, 255)
_FOUND: Final = (0, 230, 255)
_EVERY: Final = 20  # frames between boxes that are shown


def draw(scene: Scene, found: npt.NDArray[np.float64], path: Path) -> None:
    """White: where the objects were; blue: `found` [frames, objects, 4], with a box now and then."""
    picture = Image.fromarray(scene.frames[-1])
    ink = ImageDraw.Draw(picture)
    for number in range(found.shape[1]):
        for boxes, colour, width in ((scene.boxes, _TRUE, 4), (found, _FOUND, 2)):
            ink.line([(float(x), float(y)) for x, y in boxes[:, number, :2]], fill=colour, width=width)
        for at in range(len(found) - 1, -1, -_EVERY):
            for boxes, colour, width in ((scene.boxes, _TRUE, 1), (found, _FOUND, 2)):
                x, y, across, down = (float(each) for each in boxes[at, number])
                ink.rectangle((x - across / 2, y - down / 2, x + across / 2, y + down / 2), outline=colour, width=width)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
