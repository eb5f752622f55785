"""The model `read_page`: an encoded picture of a page in, its lines out, by a pipeline over three networks.

Promises: each network is a model of its own with its own queue, so that crops of pages that are read at the same time
share its batches and instances; everything between them runs in a pool, so that a large page holds up no other; a
picture that can't be used fails its own request only. Called by `compare_service` and the tests.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import numpy.typing as npt

import penstock as ps
from examples.ocr.model import NETWORKS, alphabet_of, network, recogniser_path
from examples.ocr.page.boxes import boxes
from examples.ocr.page.crops import FEW_WIDTHS, Batch, Crop, batches, crops, directions, upright
from examples.ocr.page.frame import Frame, prepare
from examples.ocr.page.words import Line, Word, words
from examples.ocr.reader import Floats, UnreadableImageError

OUTPUTS = {
    "text": ps.Bytes[-1],
    "score": ps.F32[-1],
    "corners": ps.F32[-1, 4, 2],
    "word_text": ps.Bytes[-1],
    "word_score": ps.F32[-1],
    "word_corners": ps.F32[-1, 4, 2],
    "word_line": ps.I32[-1],
}
ROWS = 8  # of a call of the classifier: what an engine of it takes unless it is asked to take more

Answer = dict[str, npt.NDArray[Any]]
Picture = Annotated[npt.NDArray[np.object_], ps.Bytes[1]]


@dataclass(frozen=True, slots=True)
class Setting:
    """How the networks are served."""

    runtime: str  # of those without an engine
    instances: int
    threads: int | None  # of an instance; None: all cores
    batching: str = "auto"


# What a first version does: each call alone, with all cores.
PLAIN = Setting("onnxruntime", instances=1, threads=None, batching="triton")
# On two cores two instances of one thread each answer more than one of two.
BATCHED = Setting("onnxruntime", instances=2, threads=1)
ENGINES = Setting("openvino", instances=2, threads=1)
SETTINGS = {"plain": PLAIN, "batched": BATCHED, "engines": ENGINES}


def page_server(engines: Mapping[str, Path] | None = None, setting: Setting = ENGINES, **options: Any) -> ps.Server:
    """A server of `read_page` and its networks, not started.

    engines  engine files to serve in place of networks, by the names in `NETWORKS`.
    options  those of `ps.Server`.
    """
    engines = engines or {}
    server = ps.Server(batching=setting.batching, **options)
    for name, file in NETWORKS.items():
        runtime = network(
            file, engines.get(name), runtime=setting.runtime, threads=setting.threads, instances=setting.instances
        )
        server.add(runtime, name=name, instances=setting.instances)
    server.add(page_reader())
    return server


def page_reader() -> Any:
    """The pipeline; its networks are looked up by name when they are called."""
    detect, classify, recognise = (ps.use(name) for name in NETWORKS)
    alphabet = alphabet_of(recogniser_path())

    @ps.pipeline(name="read_page", outputs=OUTPUTS)
    async def read_page(image: Picture) -> Answer:
        """BYTES [1], a PNG or JPEG, to its n lines in reading order and their m words, as `answer` says."""
        frame, page = await ps.cpu(opened, image[0])
        lines = await ps.cpu(cut, frame, await detect.batch(page))
        if not lines:
            return answer(())
        looks = await ps.cpu(directions, lines)
        chances = await ps.gather(classify.batch(looks[at : at + ROWS]) for at in range(0, len(looks), ROWS))
        lines, grouped = await ps.cpu(turned, lines, np.concatenate(chances))
        answers = await ps.gather(recognise.batch(each.pictures) for each in grouped)
        return answer(await ps.cpu(words, frame, lines, grouped, [named(each) for each in answers], alphabet))

    return read_page


def opened(image: bytes) -> tuple[Frame, Floats]:
    """Decoded, and as the detector takes it. Raises UnreadableImageError."""
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) if image else None
    if pixels is None:
        raise UnreadableImageError(f"image: {len(image)} bytes are no PNG or JPEG")
    return prepare(np.asarray(pixels))


def cut(frame: Frame, probabilities: npt.NDArray[Any]) -> list[Crop]:
    """The lines of a page, from the detector's map."""
    return crops(frame, boxes(probabilities, frame.size))


def turned(lines: Sequence[Crop], chances: npt.NDArray[Any]) -> tuple[list[Crop], list[Batch]]:
    """The lines as they read, and as the recogniser takes them."""
    found = upright(lines, chances)
    return found, batches(found, FEW_WIDTHS)


def named(outputs: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
    """A call answers with an array where a model has one output."""
    return outputs if isinstance(outputs, Mapping) else {"probabilities": outputs}


def answer(lines: Sequence[Line]) -> Answer:
    """Lines and words, each with its text in UTF-8, its score from 0 to 1, and its corners (x, y) in the picture,
    clockwise from where the text begins. `word_line`: which line a word is of."""
    words = [word for line in lines for word in line.words]
    numbers = [number for number, line in enumerate(lines) for _ in line.words]
    return {**_placed("", lines), **_placed("word_", words), "word_line": np.array(numbers, np.int32)}


def _placed(prefix: str, found: Sequence[Line | Word]) -> Answer:
    text = np.empty(len(found), object)
    text[:] = [each.text.encode() for each in found]
    corners = [each.corners for each in found]
    return {
        f"{prefix}text": text,
        f"{prefix}score": np.array([each.score for each in found], np.float32),
        f"{prefix}corners": np.array(corners, np.float32).reshape(-1, 4, 2),
    }


def main() -> None:
    """Listens on free ports of 127.0.0.1, prints them as one JSON line, and ends when its standard input does."""
    arguments = argparse.ArgumentParser(prog="python -m examples.ocr.page.service")
    arguments.add_argument("--setting", choices=SETTINGS, default="engines")
    for name in NETWORKS:
        arguments.add_argument(f"--{name}", type=Path, help="an engine to serve in place of the network")
    chosen = vars(arguments.parse_args())
    engines = {name: chosen[name] for name in NETWORKS if chosen[name] is not None}
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a bad picture's answer says what is wrong
    with page_server(engines, SETTINGS[chosen["setting"]], http_port=0, grpc_port=0, metrics_port=None) as server:
        print(json.dumps({"http_port": server.http_port, "grpc_port": server.grpc_port}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
