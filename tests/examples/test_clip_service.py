"""The image tower behind a server: with 50 requests at once every answer is its own picture's, over both protocols."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from tritonclient.utils import InferenceServerException

import penstock as ps
from examples.clip import asking
from examples.clip.judging import Reference, judged
from examples.clip.making import pictures
from examples.clip.pictures import encoded_pictures
from examples.clip.service import PIPELINE, TOWER, clip_server, image_embedder
from tests.examples.clip_towers import NUMBERS, small_tower

PICTURES, AT_ONCE, REQUESTS = 24, 50, 200


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tower(tmp_path_factory.mktemp("clip") / "tower.onnx")


@pytest.fixture(scope="module")
def server(tower: Path) -> Iterator[ps.Server]:
    with clip_server(tower, instances=2, http_port=0, grpc_port=0, metrics_port=None) as found:
        yield found


@pytest.fixture(scope="module")
def reference(tower: Path) -> Reference:
    (embeddings,) = ps.load(tower)(x=pictures(PICTURES)).values()
    return Reference(embeddings)


def target(server: ps.Server, wire: asking.Wire, model: str = PIPELINE) -> asking.Target:
    port = server.http_port if wire == "http" else server.grpc_port
    return asking.Target(wire, f"127.0.0.1:{port}", model)


@pytest.mark.parametrize("at_once", [50, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_all_at_once_get_their_own_embeddings_of_length_one_and_share_batches(
    server: ps.Server, reference: Reference, wire: asking.Wire, at_once: int
) -> None:
    requests = max(REQUESTS, at_once)
    tensors = [asking.encoded_picture(each) for each in encoded_pictures(PICTURES)]
    before = statistics(server)
    run = asking.asked(target(server, wire), tensors, asking.Turns(PICTURES, requests=requests), at_once)
    after = statistics(server)
    tally = judged(reference, run.answers, run.asked, run.seconds)
    assert tally.good, tally
    assert tally.right == requests
    lengths = [np.linalg.norm(each.embedding) for each in run.answers if each.embedding is not None]
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    rows, batches = (now - then for now, then in zip(after, before, strict=True))
    assert rows == requests
    assert batches < rows


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_the_bare_tower_answers_prepared_pictures(server: ps.Server, reference: Reference, wire: asking.Wire) -> None:
    tensors = [asking.prepared_picture(each) for each in pictures(PICTURES)]
    run = asking.asked(target(server, wire, TOWER), tensors, asking.Turns(PICTURES, requests=PICTURES), 5)
    tally = judged(reference, run.answers, run.asked, run.seconds)
    assert tally.good, tally


def test_answers_that_are_swapped_within_a_batch_are_found(reference: Reference, tower: Path) -> None:
    runtime = ps.load(tower)

    @ps.model(
        name=TOWER, max_batch_size=16, instances=1, inputs={"x": ps.F32[3, 224, 224]}, outputs={"y": ps.F32[NUMBERS]}
    )
    def swapping(x):  # type: ignore[no-untyped-def]
        (found,) = runtime(x=x).values()
        return found[::-1]

    with ps.Server(http_port=0, grpc_port=None, metrics_port=None) as server:
        server.add(swapping)
        server.add(image_embedder(NUMBERS))
        tensors = [asking.encoded_picture(each) for each in encoded_pictures(PICTURES)]
        run = asking.asked(target(server, "http"), tensors, asking.Turns(PICTURES, requests=100), AT_ONCE)
    tally = judged(reference, run.answers, run.asked, run.seconds)
    assert tally.wrong > 0
    assert not tally.good


def test_bad_pictures_fail_alone(server: ps.Server, reference: Reference) -> None:
    tensors = [asking.encoded_picture(each) for each in encoded_pictures(PICTURES)]
    tensors[5] = asking.encoded_picture(b"no picture")
    run = asking.asked(target(server, "http"), tensors, asking.Turns(PICTURES, requests=PICTURES), AT_ONCE)
    tally = judged(reference, run.answers, run.asked, run.seconds)
    assert (tally.right, tally.failed, tally.wrong, tally.missing) == (PICTURES - 1, 1, 0, 0)
    assert "10 bytes are no PNG, JPEG or WebP" in tally.reasons[0]


def test_a_client_that_nobody_answers_counts_as_missing() -> None:
    nobody = asking.Target("http", "127.0.0.1:9", PIPELINE)
    run = asking.asked(nobody, [asking.encoded_picture(b"")], asking.Turns(1, requests=3), 2)
    assert [each.trouble for each in run.answers] == ["missing"] * 3


@pytest.mark.parametrize(
    ("encoded", "said"),
    [
        (b"", "0 bytes are no PNG, JPEG or WebP"),
        (b"GIF89a", "6 bytes are no PNG, JPEG or WebP"),
        (encoded_pictures(1)[0][:3000], "its data is damaged"),
    ],
)
def test_what_is_no_picture_is_a_clear_error(encoded: bytes, said: str, server: ps.Server) -> None:
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.http_port}")
    tensor = tritonclient.http.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([encoded], object))
    with pytest.raises(InferenceServerException, match=said) as caught:
        client.infer(PIPELINE, [tensor])
    assert caught.value.status() == "400"


def test_long_and_narrow_pictures_are_refused_over_grpc(server: ps.Server) -> None:
    written = io.BytesIO()
    Image.new("RGB", (4000, 4)).save(written, "PNG")
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    tensor = tritonclient.grpc.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([written.getvalue()], object))
    with pytest.raises(InferenceServerException, match="4000x4 is over 20 times as long as wide"):
        client.infer(PIPELINE, [tensor])


def statistics(server: ps.Server) -> tuple[int, int]:
    """Rows and batches of the tower so far."""
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.http_port}")
    (found,) = client.get_inference_statistics(TOWER)["model_stats"]
    return found["inference_count"], found["execution_count"]
