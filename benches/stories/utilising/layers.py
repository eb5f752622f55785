"""How many layers models have, and how many regions they are executed in: what `penstock inspect MODEL.onnx` counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock import graph
from penstock.graph.regions import listing


@dataclass(frozen=True)
class Counted:
    model: str
    nodes: int
    """Of the file, constants and arithmetic on shapes included."""

    layers: int
    """Of those the ones that compute."""

    regions: int
    """Pieces that one kernel executes, or one call of a library."""

    @property
    def fewer(self) -> float:
        return self.layers / self.regions


def counted(paths: Sequence[Path]) -> list[Counted]:
    return [_counted(path) for path in paths]


def _counted(path: Path) -> Counted:
    model = graph.load(path)
    nodes = len(model.graph)
    found = listing(model, graph.optimize(model).model)
    return Counted(path.stem, nodes, found.layers_before, len(found.regions))
