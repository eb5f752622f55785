"""Serves a detector and a classifier as one model, and asks it what is in pictures.

    python -m examples.detect_classify [picture ...]

Each picture is asked for over HTTP and over gRPC, whose answers must be the same; a table is printed and a sheet of the
pictures with their boxes written. Without pictures, some of scikit-image's.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tritonclient.utils import InferenceServerException

from examples.detect_classify.asking import Client, Thing
from examples.detect_classify.draw import draw
from examples.detect_classify.networks import MADE
from examples.detect_classify.service import NAME, add_arguments, chosen_server
from penstock.errors import PenstockError

SHOWN = ("coffee.png", "chelsea.png", "motorcycle_left.png", "astronaut.png", "rocket.jpg")


def main(arguments: Sequence[str] | None = None) -> int:
    described = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m examples.detect_classify", description=described)
    parser.add_argument("pictures", nargs="*", type=Path, help="PNG, JPEG, ...; else some of scikit-image's")
    parser.add_argument("-o", "--out", type=Path, default=MADE / "things.png", help="the sheet that is written")
    add_arguments(parser)
    asked = parser.parse_args(arguments)
    try:
        pictures = [(path, path.read_bytes()) for path in asked.pictures or of_scikit_image()]
        with chosen_server(asked, http_port=0, grpc_port=0, metrics_port=None) as server:
            http = Client("http", f"127.0.0.1:{server.http_port}", NAME)
            grpc = Client("grpc", f"127.0.0.1:{server.grpc_port}", NAME)
            return shown(pictures, http, grpc, asked.out)
    except (PenstockError, OSError) as error:
        print(f"detect_classify: {error}", file=sys.stderr)
        return 1


def shown(pictures: Sequence[tuple[Path, bytes]], http: Client, grpc: Client, out: Path) -> int:
    """The exit status: 1 where an answer failed or the protocols differ."""
    print("| picture | box | score | what | score | HTTP ms | gRPC ms |\n|---|---|---|---|---|---|---|")
    failed, sheet = 0, []
    for path, image in pictures:
        try:
            found, first = timed(http, image)
            again, second = timed(grpc, image)
        except InferenceServerException as error:
            print(f"detect_classify: {path.name}: {error.message()}", file=sys.stderr)
            failed = 1
            continue
        if not alike(found, again):
            print(f"detect_classify: {path.name}: HTTP and gRPC answer differently", file=sys.stderr)
            failed = 1
        for row in rows(found) or ["– | – | nothing | –"]:
            print(f"| {path.name} | {row} | {first:.0f} | {second:.0f} |")
        sheet.append((path, found))
    if sheet:
        draw(sheet, out)
        print(f"{out}: pictures with their boxes", file=sys.stderr)
    return failed


def timed(client: Client, image: bytes) -> tuple[list[Thing], float]:
    """What is in it, and milliseconds."""
    begun = time.perf_counter()
    found = client.things(image)
    return found, 1e3 * (time.perf_counter() - begun)


def rows(found: Sequence[Thing]) -> list[str]:
    found_rows = []
    for thing in found:
        box = ", ".join(f"{each:.0f}" for each in thing.corners)
        found_rows.append(f"{box} | {thing.score:.2f} | {thing.label} | {thing.class_score:.2f}")
    return found_rows


def alike(some: Sequence[Thing], others: Sequence[Thing]) -> bool:
    """To a thousandth: batches of other sizes are summed in another order."""
    return len(some) == len(others) and all(
        one.class_id == other.class_id
        and abs(one.score - other.score) < 1e-3
        and abs(one.class_score - other.class_score) < 1e-3
        for one, other in zip(some, others, strict=True)
    )


def of_scikit_image() -> list[Path]:
    found = importlib.util.find_spec("skimage")  # its folder only: importing the package takes a second and a half
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("no pictures given, and scikit-image's are not installed")
    return [Path(found.submodule_search_locations[0]) / "data" / name for name in SHOWN]


if __name__ == "__main__":
    sys.exit(main())
