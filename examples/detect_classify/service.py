"""The model `detect_classify`: an encoded picture in, what is in it out, by a pipeline over two networks.

Promises: each network is a model of its own with its own queue, so that crops of pictures that are looked at at the
same time share the classifier's batches; everything between them runs in a pool; what is no picture fails its own
request only. Called by `python -m examples.detect_classify`, the benches and the tests; alone, it serves on free ports
until its standard input ends.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

import penstock as ps
from examples.detect_classify.detections import Rules, found
from examples.detect_classify.networks import ON_TWO_CORES, Networks, Setting, loaded, networks
from examples.detect_classify.pictures import Floats, Frame, crops, decoded, letterboxed
from penstock.engine import Runtime

NAME = "detect_classify"
DETECTOR, CLASSIFIER = "detector", "classifier"

Answer = dict[str, npt.NDArray[Any]]
Picture = Annotated[npt.NDArray[np.object_], ps.Bytes[1]]


def server_of(
    given: Networks, engines: Path | None = None, setting: Setting = ON_TWO_CORES, **options: Any
) -> ps.Server:
    """A server of the pipeline and its networks, not started.

    engines  a folder; `detector.engine` and `classifier.engine` in it are served in place of the files.
    options  those of `ps.Server`.
    """
    server = ps.Server(**options)
    detector, classifier = (
        loaded(file, None if engines is None else engines / f"{name}.engine", setting)
        for name, file in ((DETECTOR, given.detector), (CLASSIFIER, given.classifier))
    )
    if setting.pictures == 1:
        server.add(one_at_a_time(detector, given.side, setting.instances))
    else:
        server.add(detector, name=DETECTOR, instances=setting.instances)
    server.add(classifier, name=CLASSIFIER, instances=setting.instances)
    server.add(pipeline(given))
    return server


def one_at_a_time(detector: Runtime, side: int, instances: int) -> ps.ModelFunction:
    """The detector as a model that takes no second picture into a batch."""

    @ps.model(
        name=DETECTOR,
        max_batch_size=1,
        instances=instances,
        inputs={"x": ps.F32[3, side, side]},
        outputs={"boxes": ps.F32[-1, 4], "scores": ps.F32[-1]},
    )
    def detect(x: Floats) -> Answer:
        return detector(x=x)

    return detect


def pipeline(given: Networks) -> Any:
    """The networks are looked up by name when they are called."""
    detect, classify = ps.use(DETECTOR), ps.use(CLASSIFIER)

    @ps.pipeline(
        name=NAME,
        outputs={
            "boxes": ps.F32[-1, 4],
            "scores": ps.F32[-1],
            "class_ids": ps.I32[-1],
            "labels": ps.Bytes[-1],
            "class_scores": ps.F32[-1],
        },
    )
    async def detect_classify(image: Picture) -> Answer:
        """BYTES [1], a PNG or JPEG, to the things in it, the surest first.

        boxes         FP32 [n, 4]: left, top, right, bottom in pixels of the picture.
        scores        FP32 [n], 0 to 1: the detector's.
        class_ids     INT32 [n], labels BYTES [n] in UTF-8, class_scores FP32 [n], 0 to 1: the classifier's.
        """
        frame, x = await ps.cpu(opened, image[0], given.side)
        seen = await detect.batch(x=x)
        corners, scores, things = await ps.cpu(cut, frame, seen, given.rules)
        logits = await ps.gather(classify(thing) for thing in things)
        return await ps.cpu(answer, corners, scores, logits, given.labels)

    return detect_classify


def opened(image: bytes, side: int) -> tuple[Frame, Floats]:
    """Decoded, and as the detector takes it. Raises InvalidArgument."""
    return letterboxed(decoded(image), side)


def cut(frame: Frame, seen: Mapping[str, npt.NDArray[Any]], rules: Rules) -> tuple[Floats, Floats, list[Floats]]:
    """Boxes, their scores, and what is in them as the classifier takes it."""
    corners, scores = found(frame, seen["boxes"][0], seen["scores"][0], rules)
    return corners, scores, crops(frame, corners)


def answer(corners: Floats, scores: Floats, logits: Sequence[npt.NDArray[Any]], labels: Sequence[str]) -> Answer:
    """The outputs, from the classifier's logits [classes] of each box."""
    stacked = np.array(logits, np.float64).reshape(len(corners), len(labels))
    best = stacked.argmax(axis=1)
    # The softmax of the largest: one over the sum of the others' distances to it.
    sure = 1 / np.exp(stacked - stacked.max(axis=1, initial=-np.inf, keepdims=True)).sum(axis=1)
    names = np.empty(len(corners), object)
    names[:] = [labels[each].encode() for each in best]
    return {
        "boxes": corners,
        "scores": scores,
        "class_ids": best.astype(np.int32),
        "labels": names,
        "class_scores": sure.astype(np.float32),
    }


def main() -> None:
    """Listens on free ports of 127.0.0.1, prints them as one JSON line, and ends when its standard input does."""
    parser = argparse.ArgumentParser(prog="python -m examples.detect_classify.service")
    add_arguments(parser)
    asked = parser.parse_args()
    with chosen_server(asked, http_port=0, grpc_port=0, metrics_port=None) as server:
        print(json.dumps({"http_port": server.http_port, "grpc_port": server.grpc_port}), flush=True)
        sys.stdin.read()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classifier", type=Path, help="an ONNX file; else EfficientNet-Lite0 from .peers/models")
    parser.add_argument("--yolo", type=Path, help="the detector: an ONNX export of the YOLOv5 kind")
    parser.add_argument("--engines", type=Path, help="a folder with detector.engine and classifier.engine")
    parser.add_argument("--score", type=float, help="from which on a box counts")
    parser.add_argument("--instances", type=int, default=2, help="of each network")
    parser.add_argument("--threads", type=int, default=1, help="of each instance; 0: all cores")
    parser.add_argument("--together", type=int, default=1, help="pictures; 2 and more: as many as the detector takes")


def chosen_server(asked: argparse.Namespace, **options: Any) -> ps.Server:
    given = networks(asked.classifier, asked.yolo)
    if asked.score is not None:
        given = replace(given, rules=replace(given.rules, score=asked.score))
    return server_of(given, asked.engines, Setting(asked.instances, asked.threads or None, asked.together), **options)


if __name__ == "__main__":
    main()
