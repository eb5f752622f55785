"""`embed` behind a server with the trained network: answers are those of single texts without padding, whatever their
lengths and whoever asks at the same time; what can't be embedded fails alone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.http
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException

import penstock as ps

pytest.importorskip("tokenizers")

from examples.embed import network, pooling, reference
from examples.embed.__main__ import pairs
from examples.embed.client import Answers, Protocol, embedded
from examples.embed.files import lab
from examples.embed.network import NETWORK, Ask
from examples.embed.service import MOST_TEXTS, embedding_server
from examples.embed.texts import TRIPLES, judging, mixed
from examples.embed.tokens import LENGTH, MOST_BYTES, tokens

TRAINED = all((lab() / name).is_file() for name in ("minilm.onnx", "minilm.tokenizer.json"))
needs_weights = pytest.mark.skipif(not TRAINED, reason="the trained network was not exported")
LONG = " ".join(["the harbour was full of boats"] * 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        made = tmp_path_factory.mktemp("embed")
        patch.setattr(network, "FOLDER", made)
        yield made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ps.Server]:
    with embedding_server(http_port=0, grpc_port=0, metrics_port=None) as found:
        yield found


def asked(server: ps.Server, texts: list[str | bytes], protocol: Protocol = "http", in_flight: int = 16) -> Answers:
    port = server.http_port if protocol == "http" else server.grpc_port
    return embedded(protocol, f"127.0.0.1:{port}", texts, in_flight)


def together(server: ps.Server, texts: list[bytes]) -> Answers:
    """All in one request."""
    tensor = tritonclient.http.InferInput("text", [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array(texts, object))
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.http_port}") as client:
        found = client.infer("embed", [tensor])
    return Answers(*(found.as_numpy(name) for name in ("embedding", "tokens", "truncated")))


@needs_weights
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_answers_of_mixed_lengths_are_those_of_single_texts_and_share_batches(
    protocol: Protocol, server: ps.Server
) -> None:
    texts = [*judging(24), *mixed(24)]
    lengths = {len(tokens(text.encode()).ids) for text in texts}
    assert len(lengths) > 8
    before = statistics(server)
    found = asked(server, list(texts), protocol)
    assert reference.cosines(found.embeddings, reference.embeddings(texts)).min() >= 0.9999
    assert np.allclose(np.linalg.norm(found.embeddings, axis=1), 1, atol=1e-5)
    rows, batches = (after - earlier for after, earlier in zip(statistics(server), before, strict=True))
    assert rows == len(texts)
    # Texts of one length would share batches anyway; fewer batches than lengths and sizes allow mean that others do.
    assert batches < len(texts) * 0.7


@needs_weights
def test_texts_of_unlike_length_in_one_request_share_a_batch(server: ps.Server) -> None:
    texts = ["Two boats.", "The harbour was full of small boats and gulls."]
    read = [tokens(text.encode()) for text in texts]
    assert len(read[0].ids) != len(read[1].ids)
    rows = 8
    before = statistics(server)
    found = together(server, [text.encode() for text in texts] * (rows // 2))
    after = statistics(server)
    assert after[0] - before[0] == rows
    assert after[1] - before[1] < rows
    assert reference.cosines(found.embeddings, reference.embeddings(texts * (rows // 2))).min() >= 0.9999
    assert list(found.tokens[:2]) == [len(each.ids) for each in read]


@needs_weights
def test_sentences_that_say_the_same_are_nearer_than_those_that_share_words(server: ps.Server) -> None:
    texts = [text for each in TRIPLES for text in (each.text, each.alike, each.unlike)]
    for alike, unlike in pairs(asked(server, list(texts)).embeddings):
        assert alike > unlike


@needs_weights
def test_an_empty_text_is_a_text(server: ps.Server) -> None:
    found = asked(server, ["", " \n"])
    assert list(found.tokens) == [2, 2]
    assert reference.cosines(found.embeddings, reference.embeddings(["", " \n"])).min() >= 0.9999


@needs_weights
def test_a_long_text_is_cut_and_says_so(server: ps.Server) -> None:
    found = asked(server, [LONG, "A short one."])
    assert list(found.tokens) == [LENGTH, 6]
    assert list(found.truncated) == [True, False]
    assert reference.cosines(found.embeddings, reference.embeddings([LONG, "A short one."])).min() >= 0.9999


@needs_weights
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([b"caf\xe9 au lait"], "byte 3 of 12 is not UTF-8"),
        ([b"a" * (MOST_BYTES + 1)], f"at most {MOST_BYTES}"),
        ([b"fine", b"\xff"], "byte 0 of 1 is not UTF-8"),
        ([b"a"] * (MOST_TEXTS + 1), f"expected 1 to {MOST_TEXTS} texts"),
    ],
)
def test_what_cannot_be_embedded_fails_alone_with_the_reason(
    texts: list[bytes], message: str, server: ps.Server
) -> None:
    with pytest.raises(InferenceServerException, match=message) as refused:
        together(server, texts)
    assert refused.value.status() == "400"
    assert (
        reference.cosines(asked(server, ["Still here."]).embeddings, reference.embeddings(["Still here."]))[0] > 0.9999
    )


@needs_weights
@pytest.mark.slow
def test_an_engine_answers_as_near_as_its_gate_asks(folder: Path) -> None:
    built = network.engine(Ask(budget_seconds=15))
    texts = [*judging(16), LONG, ""]
    with embedding_server(built, http_port=0, grpc_port=0, metrics_port=None) as server:
        found = asked(server, list(texts), "grpc")
    assert reference.cosines(found.embeddings, reference.embeddings(texts)).min() >= 0.999
    assert network.engine(Ask(budget_seconds=15)) == built


def test_pooling_counts_what_the_mask_counts_and_nothing_else(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    table = random.standard_normal((50, pooling.WIDTH)).astype(np.float32)
    session = onnxruntime.InferenceSession(pooling.pooled(lookup(table, tmp_path)).SerializeToString())
    ids = random.integers(0, 50, (3, 7))
    lengths = np.array([7, 4, 1])
    mask = (np.arange(7) < lengths[:, None]).astype(np.int64)
    (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    for row, length in enumerate(lengths):
        mean = table[ids[row, :length]].astype(np.float64).mean(axis=0)
        assert np.allclose(found[row], mean / np.linalg.norm(mean), atol=1e-6)
    (nothing,) = session.run(None, {"input_ids": ids, "attention_mask": np.zeros_like(mask)})
    assert not nothing.any()


def lookup(table: np.ndarray, folder: Path) -> Path:
    """A network that answers a row of a table for each token."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "T"]) for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ["N", "T", table.shape[1]])
    node = helper.make_node("Gather", ["table", "input_ids"], ["tokens"])
    graph = helper.make_graph([node], "lookup", inputs, [output], [numpy_helper.from_array(table, "table")])
    path = folder / "lookup.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def statistics(server: ps.Server) -> tuple[int, int]:
    """Rows and batches of the network so far."""
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.http_port}") as client:
        found = client.get_inference_statistics(NETWORK)["model_stats"][0]
    return int(found["inference_count"]), int(found["execution_count"])
