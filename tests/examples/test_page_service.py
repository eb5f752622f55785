"""`read_page` behind a server: what it reads is what the steps read in place; crops of several pages share batches."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

import penstock as ps
from examples.ocr.documents import rendered_documents
from examples.ocr.page.service import page_server
from examples.ocr.readers import PageReader

pytestmark = pytest.mark.slow

PAGES = 2


@pytest.fixture(scope="module")
def server() -> Iterator[ps.Server]:
    with page_server(http_port=0, grpc_port=0, metrics_port=None) as found:
        yield found


@pytest.fixture(scope="module")
def pages() -> list[np.ndarray]:
    return [np.asarray(each.pixels) for each in rendered_documents(PAGES, first=30)]


def asked(module: object, png: bytes) -> object:
    tensor = module.InferInput("image", [1], "BYTES")  # type: ignore[attr-defined]
    tensor.set_data_from_numpy(np.array([png], object))
    return tensor


def png(page: np.ndarray) -> bytes:
    return cv2.imencode(".png", page)[1].tobytes()


def test_pages_are_read_as_in_place_over_both_protocols_and_share_batches(
    server: ps.Server, pages: list[np.ndarray]
) -> None:
    http = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.http_port}", network_timeout=120)
    grpc = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    reader = PageReader("openvino")
    expected = [[line.text for line in reader(page)] for page in pages]
    assert all(len(lines) > 5 for lines in expected)

    def over_grpc(page: int) -> list[str]:
        answer = grpc.infer("read_page", [asked(tritonclient.grpc, png(pages[page]))])
        assert answer.as_numpy("corners").shape == (len(expected[page]), 4, 2)
        assert answer.as_numpy("score").min() >= 0.5
        return [text.decode() for text in answer.as_numpy("text")]

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(over_grpc, [0, 1, 0, 1])):
            assert found == expected[number % PAGES]
    answer = http.infer("read_page", [asked(tritonclient.http, png(pages[0]))])
    assert [text.decode() for text in answer.as_numpy("text")] == expected[0]

    statistics = http.get_inference_statistics("recogniser")["model_stats"][0]
    assert statistics["inference_count"] > statistics["execution_count"]
    steps = server.pipeline_statistics("read_page").steps
    assert {"opened", "cut", "detector", "classifier", "recogniser", "words"} <= {step.name for step in steps}


def test_an_empty_page_has_no_lines(server: ps.Server) -> None:
    http = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.http_port}")
    answer = http.infer("read_page", [asked(tritonclient.http, png(np.full((64, 80, 3), 255, np.uint8)))])
    assert answer.as_numpy("text").shape == (0,)
    assert answer.as_numpy("corners").shape == (0, 4, 2)


@pytest.mark.parametrize("data", [b"", b"no picture"])
def test_what_is_no_picture_is_a_clear_error(data: bytes, server: ps.Server) -> None:
    http = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.http_port}")
    with pytest.raises(InferenceServerException, match="are no PNG or JPEG"):
        http.infer("read_page", [asked(tritonclient.http, data)])
