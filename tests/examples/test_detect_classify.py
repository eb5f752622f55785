"""`detect_classify` behind a server: right answers over both protocols, shared batches, and errors that stay alone."""

import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from tritonclient.utils import InferenceServerException

import penstock as ps
from examples.detect_classify.__main__ import alike, main, of_scikit_image
from examples.detect_classify.asking import Client, Protocol, Thing
from examples.detect_classify.detections import Rules
from examples.detect_classify.networks import CLASSIFIER, MODELS, Networks, Setting, networks
from examples.detect_classify.pictures import crops, decoded, letterboxed
from examples.detect_classify.service import NAME, server_of
from tests.examples import small_networks
from tests.examples.test_detect_classify_steps import slow_kept

FEW = Rules(score=0.2, overlap=0.4, most=3)


class Direct:
    """The networks run by ONNX Runtime, one picture and one crop at a time, with the slow suppression."""

    def __init__(self, given: Networks) -> None:
        self.given = given
        self.detect, self.classify = (
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            for path in (given.detector, given.classifier)
        )

    def things(self, image: bytes) -> list[Thing]:
        frame, x = letterboxed(decoded(image), self.given.side)
        (boxes,), (scores,) = self.detect.run(["boxes", "scores"], {"x": x})
        centre, size = boxes[:, :2], boxes[:, 2:]
        corners = frame.in_picture(np.concatenate((centre - size / 2, centre + size / 2), axis=1))
        rules = self.given.rules
        good = np.flatnonzero((scores >= rules.score) & ((corners[:, 2:] - corners[:, :2]).min(axis=1) >= 1))
        chosen = good[slow_kept(corners[good], scores[good], rules.overlap, rules.most)]
        return [self._thing(corners[each], scores[each], frame) for each in chosen]

    def _thing(self, box: np.ndarray, score: np.floating, frame: object) -> Thing:
        (crop,) = crops(frame, box[None])  # type: ignore[arg-type]
        ((logits,),) = self.classify.run(None, {"x": crop[None]})
        chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = int(chances.argmax())
        left, top, right, bottom = box.tolist()
        return Thing((left, top, right, bottom), float(score), best, self.given.labels[best], float(chances[best]))


def png(seed: int, height: int, width: int) -> bytes:
    """Blurred noise, so that something differs from place to place."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    blurred = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 5), None, 0, 255, cv2.NORM_MINMAX)
    return cv2.imencode(".png", blurred)[1].tobytes()


PICTURES = [png(seed, height, width) for seed, (height, width) in enumerate([(240, 320), (500, 300), (33, 200)])]


@pytest.fixture(scope="module", params=["of a classifier", "yolo"])
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Networks:
    folder = tmp_path_factory.mktemp("networks")
    yolo = small_networks.yolo(folder) if request.param == "yolo" else None
    return networks(small_networks.classifier(folder), yolo, folder, FEW)


@pytest.fixture(scope="module")
def server(given: Networks) -> Iterator[ps.Server]:
    with server_of(given, setting=Setting(1, 1), http_port=0, grpc_port=0, metrics_port=None) as found:
        yield found


def client(server: ps.Server, protocol: Protocol) -> Client:
    port = server.http_port if protocol == "http" else server.grpc_port
    return Client(protocol, f"127.0.0.1:{port}", NAME)


def same(some: list[Thing], others: list[Thing]) -> bool:
    return alike(some, others) and all(
        np.allclose(one.corners, other.corners, atol=1e-2) and one.label == other.label
        for one, other in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_answers_are_those_of_the_networks(protocol: Protocol, server: ps.Server, given: Networks) -> None:
    direct, asked = Direct(given), client(server, protocol)
    expected = [direct.things(image) for image in PICTURES]
    assert sum(map(len, expected)) > len(PICTURES)
    for image, things in zip(PICTURES, expected, strict=True):
        assert same(asked.things(image), things)


def test_the_signature_is_the_metadata(server: ps.Server) -> None:
    outputs = {
        "boxes": ("FP32", [-1, 4]), "scores": ("FP32", [-1]), "class_ids": ("INT32", [-1]), "labels": ("BYTES", [-1]),
        "class_scores": ("FP32", [-1]),
    }  # fmt: skip
    said = client(server, "http").metadata()
    assert said["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [1]}]
    assert {each["name"]: (each["datatype"], each["shape"]) for each in said["outputs"]} == outputs
    said = client(server, "grpc").metadata()
    assert {each.name: (each.datatype, list(each.shape)) for each in said.outputs} == outputs


def test_crops_of_different_pictures_share_batches(server: ps.Server, given: Networks) -> None:
    direct = Direct(given)
    expected = [direct.things(image) for image in PICTURES]
    wrong, deadline, before = 0, time.monotonic() + 20, sizes(server)

    def ask(number: int) -> bool:
        asked = client(server, "grpc")
        return all(same(asked.things(PICTURES[at % 3]), expected[at % 3]) for at in range(number, number + 6))

    with ThreadPoolExecutor(12) as pool:
        while time.monotonic() < deadline and max(sizes(server)) <= given.rules.most:
            wrong += sum(not good for good in pool.map(ask, range(12)))
    assert wrong == 0
    # More crops than any picture has were classified at once.
    assert max(sizes(server)) > given.rules.most >= max(before)


def sizes(server: ps.Server) -> list[int]:
    """Of the classifier's batches so far."""
    asked = client(server, "http")
    rows = asked._client.get_inference_statistics("classifier")["model_stats"][0].get("batch_stats", [])
    return [0, *(row["batch_size"] for row in rows)]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("data", [b"", b"no picture"])
def test_what_is_no_picture_fails_alone(data: bytes, protocol: Protocol, server: ps.Server, given: Networks) -> None:
    asked = client(server, protocol)
    with pytest.raises(InferenceServerException, match="are no picture; send a PNG or a JPEG"):
        asked.things(data)
    assert same(asked.things(PICTURES[0]), Direct(given).things(PICTURES[0]))


def test_the_demonstration_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, text, sheet = tmp_path / "a.png", tmp_path / "b.txt", tmp_path / "sheet.png"
    picture.write_bytes(PICTURES[0])
    text.write_text("no picture")
    flags = ["--classifier", str(small_networks.classifier(tmp_path)), "-o", str(sheet), "--score", "0.3"]
    assert main([str(picture), *flags]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| a.png")]
    assert rows
    assert all(any(f"| {name} |" in row for name in (*small_networks.CLASSES, "nothing")) for row in rows)
    assert cv2.imread(str(sheet)).shape[0] > 300
    assert main([str(text), *flags]) == 1
    assert "are no picture" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not (MODELS / CLASSIFIER).is_file(), reason="needs EfficientNet-Lite0: benches.models.export_torch")
def test_real_things_are_found_in_real_pictures(tmp_path: Path) -> None:
    real = networks(made=tmp_path)
    espresso, cats, moped, helmet = {967}, {281, 282, 285}, {665, 670}, {560}
    with server_of(real, http_port=0, grpc_port=0, metrics_port=None) as server:
        asked, direct = client(server, "http"), Direct(real)
        for path, expected in zip(itertools.islice(of_scikit_image(), 4), (espresso, cats, moped, helmet), strict=True):
            things = asked.things(path.read_bytes())
            assert same(things, direct.things(path.read_bytes()))
            assert things[0].class_id in expected
