"""What `replicas` asks servers, and whether they answer as the networks do in FP32. Called by `replicas`."""

import http.client
import json
from collections.abc import Sequence
from typing import Any, Final

import cv2
import numpy as np

from benches.stories.replica_results import PEER, Arrangement
from benches.stories.replica_servers import Copy
from examples.detect_classify.__main__ import of_scikit_image
from examples.detect_classify.service import NAME
from examples.detect_classify.suppression import overlaps
from penstock.bench.load import Request

_LONGEST: Final = 640  # pixels of a picture's longer side, as cameras of such services send
_QUALITY: Final = 90  # of the JPEGs
_LEAST_OVERLAP: Final = 0.5  # of two boxes that are the same thing

Thing = tuple[tuple[float, ...], int]
"""Corners and class."""


def pictures() -> tuple[bytes, ...]:
    """JPEGs of photographs."""
    found = []
    for path in of_scikit_image():
        pixels = cv2.imread(str(path))
        if pixels is None:
            raise RuntimeError(f"{path.name} can't be read")
        scale = _LONGEST / max(pixels.shape[:2])
        size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
        encoded = cv2.imencode(".jpg", cv2.resize(pixels, size), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
        found.append(encoded.tobytes())
    return tuple(found)


def path_of(arrangement: Arrangement) -> str:
    return "/detect_classify" if arrangement.kind == PEER else f"/v2/models/{NAME}/infer"


def request(image: bytes, arrangement: Arrangement) -> Request:
    """The picture itself to the peer; to a v2 server as a binary tensor, which wants an answer in JSON."""
    if arrangement.kind == PEER:
        return Request(image)
    body = len(image).to_bytes(4, "little") + image
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(body)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return Request(head + body, len(head))


def asked(copy: Copy, arrangement: Arrangement, image: bytes) -> list[Thing]:
    """Raises RuntimeError for an answer that is none."""
    sent = request(image, arrangement)
    headers = {"Content-Type": "application/octet-stream"}
    if sent.json_bytes is not None:
        headers["Inference-Header-Content-Length"] = str(sent.json_bytes)
    connection = http.client.HTTPConnection("127.0.0.1", copy.port, timeout=60)
    try:
        connection.request("POST", path_of(arrangement), sent.body, headers)
        reply = connection.getresponse()
        content = reply.read()
    finally:
        connection.close()
    if reply.status != 200:
        raise RuntimeError(f"{arrangement.name} answers {reply.status}: {content[:200]!r}")
    return things(json.loads(content))


def things(document: dict[str, Any]) -> list[Thing]:
    """Of the peer's JSON or a v2 server's."""
    if "outputs" in document:
        document = {each["name"]: each["data"] for each in document["outputs"]}
    corners = np.array(document["boxes"], np.float64).reshape(-1, 4).tolist()
    return [(tuple(box), int(number)) for box, number in zip(corners, document["class_ids"], strict=True)]


def agreement(expected: Sequence[Sequence[Thing]], found: Sequence[Sequence[Thing]]) -> float:
    """Share of the expected things that are found in the same picture: of the same class, boxes half the same."""
    total = sum(map(len, expected))
    same = sum(
        any(number == other and overlap(box, other_box) >= _LEAST_OVERLAP for other_box, other in there)
        for here, there in zip(expected, found, strict=True)
        for box, number in here
    )
    return same / total if total else 1.0


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    return float(overlaps(np.array(one, np.float32), np.array([other], np.float32))[0])
