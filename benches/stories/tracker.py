"""What a tracker's conversion brings at batch 1 and 8, and which part of it: precision, shapes, requests under way.

    python -m benches.stories.tracker [-o FOLDER]                    on the CPU; torch gives the eager rows
    python -m benches.stories.tracker prepare --graphs .gpu          lowers the model for the machine with the GPU
    python -m benches.stories.tracker --gpu --graphs .gpu -o FOLDER  there; torch and Triton are all that is needed
    python -m benches.stories.tracker --from FOLDER/tracker.json     tells it again, with figures, where plotly is

Engines are built once for a folder and found again while nothing changed.
"""

import argparse
import json
import sys
from pathlib import Path

from benches.stories.report import DEFAULT_FOLDER, publish
from benches.stories.tracker_page import story
from benches.stories.tracker_results import Measured, from_data


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", nargs="?", default="measure", choices=["measure", "prepare"])
    parser.add_argument("-o", "--out", type=Path, default=DEFAULT_FOLDER, metavar="FOLDER")
    parser.add_argument("--from", dest="earlier", type=Path, metavar="JSON", help="tell what was measured before")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, help="CPU: of a turn (0.5); GPU: for everything (145)")
    cpu = parser.add_argument_group("CPU")
    cpu.add_argument("--flight-seconds", type=float, default=4.0, help="of each way to have requests under way")
    cpu.add_argument("--budget", type=float, default=45.0, help="seconds of a build; in INT8 twice")
    cpu.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes a minute")
    gpu = parser.add_argument_group("GPU")
    gpu.add_argument("--gpu", action="store_true")
    gpu.add_argument("--graphs", type=Path, default=Path(".gpu"), metavar="DIR", help="lowered graphs")
    gpu.add_argument("--tune-seconds", type=float, default=7.0, help="of each precision and batch")
    gpu.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu tries the script without a GPU")
    return parser.parse_args(given)


def main() -> int:
    options = arguments()
    if options.do == "prepare":
        from benches.stories import tracker_gpu

        return tracker_gpu.prepare(options.graphs)
    if options.earlier is not None:
        told = json.loads(options.earlier.read_text())
        measured = from_data(told["data"])
    else:
        measured = _measured(options)
    publish(story(measured), options.out, measured.machine)
    return 0 if measured.ways else 1


def _measured(options: argparse.Namespace) -> Measured:
    if options.gpu:
        from benches.stories import tracker_gpu

        return tracker_gpu.measure(
            tracker_gpu.Options(
                options.graphs, options.device, options.rounds, options.seconds or 145.0, options.tune_seconds
            )
        )
    from benches.stories import tracker_cpu

    return tracker_cpu.measure(
        options.out / "tracker",
        tracker_cpu.Options(
            options.rounds, options.seconds or 0.5, options.flight_seconds, options.budget, not options.no_compile
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
