"""Full use of the machine: fused layers, eight bits, many shapes in one engine, and the right batch.

    .venv/bin/python -m benches.stories.utilisation [-o FOLDER] [--parts layers bits shapes batches] [--seconds S]

Four parts, each measured here and now: how many layers fusion leaves; what narrow numbers win in speed and memory and
lose in accuracy, with trained weights; one engine for frames from 720p to 4K; throughput and memory by batch beside the
rule "0.8 x memory / memory of a sample". Engines are built once into FOLDER/utilisation and found again.

On a machine with an NVIDIA GPU, torch, ONNX and no network, after `prepare` on one with everything; `draw` tells what
was measured there, where plotly is:

    python -m benches.stories.utilisation prepare --prepared FOLDER
    python -m benches.stories.utilisation --gpu --prepared FOLDER     two and a half minutes; one part at a time, with
                                                                      --budget-scale 2 or 3, tunes more
    python -m benches.stories.utilisation draw --measured utilisation_gpu.measured.json
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PARTS = ("layers", "bits", "shapes", "batches")
SIZES = ("720p", "1080p", "1440p", "4K")
MEASURED = "utilisation_gpu.measured.json"


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", nargs="?", default="measure", choices=["measure", "prepare", "draw"])
    parser.add_argument("-o", "--out", type=Path, default=Path(".stories"), metavar="FOLDER")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each timing")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender, on a CPU")
    parser.add_argument("--budget-scale", type=float, default=1.0, help="of the builds: 5 minutes, on a GPU 2")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES, help="on a CPU")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64], help="on a CPU")
    lab = Path(os.environ.get("PENSTOCK_LAB", REPOSITORY / ".peers")) / "models"
    parser.add_argument("--lab", type=Path, default=lab, metavar="DIR", help="of exported and made ONNX files")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--prepared", type=Path, default=Path(".gpu") / "utilisation", metavar="DIR")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="of `draw`; default: in FOLDER")
    parser.add_argument("--device", default="cuda:0", help="of --gpu; cpu tries the script without one")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    if options.do == "prepare":
        from benches.stories.utilising import on_gpu

        print("\n".join(on_gpu.prepare(options.prepared)))
        return 0
    if options.do == "draw":
        _draw(options.measured or options.out / MEASURED, options.out)
        return 0
    if options.gpu:
        return _on_gpu(options)
    from benches.stories.report import publish
    from benches.stories.utilising import on_cpu

    publish(on_cpu.story(options), options.out)
    return 0


def _on_gpu(options: argparse.Namespace) -> int:
    from benches.stories.utilising import on_gpu
    from benches.stories.utilising.gpu_findings import findings

    found = on_gpu.measured(
        options.prepared, options.out / "utilisation", options.seconds, options.budget_scale, options.device,
        options.parts,
    )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / MEASURED
    file.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    if find_spec("plotly") is not None:
        _draw(file, options.out)
    else:
        print(*(f"* {each}" for each in findings(found)), sep="\n")
        print(f"plotly is not here: `draw --measured {file.name}` where it is", file=sys.stderr)
    return 0


def _draw(file: Path, out: Path) -> None:
    from benches.stories.report import publish
    from benches.stories.utilising.gpu_drawing import story

    publish(story(json.loads(file.read_text())), out)


if __name__ == "__main__":
    sys.exit(main())
