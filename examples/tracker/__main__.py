"""Follows objects of known paths with torch and with engines, and says how alike and how fast the two are.

    python -m examples.tracker

builds both branches, compares them with torch on real search regions, follows eight objects, times a step in turns at
batch 1 and 8, and draws what was followed. Needs `penstock[torch]`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from examples.tracker import draw, tracking
from examples.tracker.likeness import Likeness, likeness
from examples.tracker.scene import OBJECTS, Scene, scene
from examples.tracker.tracking import Network, Tracking
from examples.tracker.turns import speed_up, take_turns

if TYPE_CHECKING:
    import penstock as ps

_KERNELS: Final = "scores_kernel", "boxes_kernel"
_ANSWERS: Final = "scores", "boxes"
_FOLLOWED: Final = 0.5  # overlap of the last frame's boxes, as benches of trackers count it


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.tracker", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--precision", default="auto", help="the narrowest that the engines may use")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--budget", type=float, default=60.0, metavar="SECONDS", help="of each build")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--objects", type=int, default=OBJECTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn")
    parser.add_argument("--folder", type=Path, default=Path("build") / "tracker", help="of engines and the picture")
    return parser.parse_args(given)


def main() -> int:
    options = arguments()
    try:
        import torch
    except ImportError:
        print("examples.tracker: torch is not installed; pip install 'penstock[torch]'", file=sys.stderr)
        return 2
    from examples.tracker import engines

    asked = engines.Asked(options.precision, options.device, options.budget)
    begun, made = time.perf_counter(), engines.tracker()
    print("building or finding the engines of both branches ...", file=sys.stderr, flush=True)
    template, search = engines.built(made, asked, options.folder)
    print(f"ready after {time.perf_counter() - begun:.0f} s\n", file=sys.stderr, flush=True)
    on_gpu = search.manifest.fingerprint.device.startswith("cuda")
    torch_way = engines.eager(made, "cuda" if on_gpu else "cpu")
    engine_way = engines.engines(template, search)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; engine: {_tactics(search)}\n")

    shown = scene(options.objects, options.frames)
    print_likeness(torch_way, engine_way, shown)
    found = print_followed(torch_way, engine_way, shown)
    print_times(torch_way, engine_way, engines.BATCHES, options.rounds, options.seconds)
    picture = options.folder / "tracker.png"
    draw.draw(shown, found, picture)
    print(f"{picture}: white where the objects were, blue where the engine followed them")
    return 0


def _tactics(engine: "ps.Engine") -> str:
    manifest = engine.manifest
    chosen = (manifest.programs[bucket.program].tactic.name for bucket in manifest.buckets)
    return ", ".join(dict.fromkeys(chosen))


def print_likeness(torch_way: Network, engine_way: Network, shown: Scene) -> None:
    """Every output of both branches, for templates and regions that nothing was built or calibrated with."""
    following = Tracking(torch_way, shown.frames[0], shown.boxes[0])
    regions, ways = following.regions(shown.frames[-1]), (engine_way, torch_way)
    rows: dict[str, Likeness] = {}
    rows |= likeness(*(_named(_KERNELS, each.template(following.template)) for each in ways))
    rows |= likeness(*(_named(_ANSWERS, each.search(regions, following.kernels)) for each in ways))
    print("| output | cosine with torch, the least of all objects | largest error | of values up to |")
    print("|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row.cosine:.6f} | {row.error:.2g} | {row.largest:.3g} |")
    print(flush=True)


def _named(names: Sequence[str], arrays: Sequence[tracking.Floats]) -> dict[str, tracking.Floats]:
    return dict(zip(names, arrays, strict=True))


def followed(network: Network, shown: Scene) -> npt.NDArray[np.float64]:
    """Boxes [frames, objects, 4], those of the first frame given."""
    following = Tracking(network, shown.frames[0], shown.boxes[0])
    return np.stack([following.boxes, *(following.follow(frame) for frame in shown.frames[1:])])


def print_followed(torch_way: Network, engine_way: Network, shown: Scene) -> npt.NDArray[np.float64]:
    objects, frames = shown.boxes.shape[1], len(shown.frames)
    print(f"| {objects} objects over {frames} frames | to the end | of those: mean pixels away | most | mean overlap |")
    print("|---|---|---|---|---|")
    found = {name: followed(way, shown) for name, way in (("torch", torch_way), ("the engine", engine_way))}
    for name, boxes in found.items():
        shared = tracking.overlap(boxes, shown.boxes)
        kept = shared[-1] > _FOLLOWED
        away = np.linalg.norm(boxes[..., :2] - shown.boxes[..., :2], axis=-1)[1:, kept]
        told = f"{away.mean():.1f} | {away.max():.1f} | {shared[1:, kept].mean():.2f}" if kept.any() else "– | – | –"
        print(f"| {name} | {kept.sum()} of {objects} | {told} |")
    apart = np.abs(found["torch"][..., :2] - found["the engine"][..., :2]).max()
    print(f"\nBoth are at most {apart:.2g} pixels apart.\n", flush=True)
    return found["the engine"]


def print_times(torch_way: Network, engine_way: Network, batches: Sequence[int], rounds: int, seconds: float) -> None:
    print("| batch | torch eager, ms | engine, ms | faster, within rounds |")
    print("|---|---|---|---|")
    for batch in batches:
        shown = scene(batch, 2)
        following = Tracking(torch_way, shown.frames[0], shown.boxes[0])
        regions, kernels = following.regions(shown.frames[1]), following.kernels
        ways = {"torch": torch_way, "engine": engine_way}
        calls = {name: partial(way.search, regions, kernels) for name, way in ways.items()}
        turns = take_turns(calls, rounds, seconds)
        middle = {name: float(np.median(each)) for name, each in turns.items()}
        ratio = speed_up(turns["engine"], turns["torch"])
        print(f"| {batch} | {middle['torch']:.2f} | {middle['engine']:.2f} | {ratio:.2f} x |", flush=True)
    print()


if __name__ == "__main__":
    sys.exit(main())
