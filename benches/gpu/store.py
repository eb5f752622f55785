"""Results on disk, so that a run that was stopped goes on where it was: one JSON file a model, or a whole document.

Promises: a point counts as measured only with the very settings it is asked for with, and when every way had its time.
Called by `engine_gpu`.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benches.gpu.results import Point, from_data, to_data
from penstock.engine.cuda.tuning import digest_of_sources

Key = tuple[str, int]


class Store:
    """Points by model and batch, in a folder."""

    def __init__(self, folder: Path, documents: Iterable[Path] = ()) -> None:
        """`documents`: those of earlier runs, wherever they lie; the folder's own files are read after them."""
        self.folder = folder
        self.points: dict[Key, Point] = {}
        own = [path for path in sorted(folder.glob("*.json")) if path.stem != "engine_gpu"]
        for path in (*documents, *own):
            for data in json.loads(path.read_text())["points"]:
                point = from_data(data)
                self.points[point.model, point.batch] = point

    def measured(self, model: str, batch: int, stamp: Mapping[str, Any]) -> Point | None:
        """None where it has to be measured."""
        point = self.points.get((model, batch))
        return point if point is not None and point.complete and point.stamp == stamp else None

    def keep(self, point: Point) -> None:
        self.points[point.model, point.batch] = point
        same = [to_data(each) for (model, _), each in self.points.items() if model == point.model]
        self.folder.mkdir(parents=True, exist_ok=True)
        # Renamed into place: a run that is ended while it writes loses one point and not the model.
        partial = self.folder / f"{point.model}.partial"
        partial.write_text(json.dumps({"points": same}, indent=1, allow_nan=False) + "\n")
        partial.replace(self.folder / f"{point.model}.json")


def digest(*folders: Path) -> str:
    """Of the sources below, as the package tells them apart, in sixteen letters."""
    return digest_of_sources(*folders)[:16]
