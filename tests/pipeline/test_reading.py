"""A pipeline is served like any model: over HTTP and gRPC, with metadata from its signature, for many clients."""

import json
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

import penstock as ps
from tests.pipeline.toy import WIDTH, Recogniser, detector, picture, reader, texts
from tests.serve.calls import Array, Client, at_once, infer, serving

IMAGE = picture((1, 2, 3, 4), (5, 6, 7, 8), (9, 9, 9, 9))
X = np.arange(4, dtype=np.float32)


def objects(*elements: bytes) -> Array:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array


# ---- both protocols ----


@pytest.mark.parametrize("binary", [True, False])
def test_a_picture_is_read_over_http(binary: bool) -> None:
    with serving(detector, Recogniser().model, reader()) as server:
        answer = infer(server, "read", image=IMAGE, binary=binary)
        if binary:
            assert answer.arrays["output"].tolist() == texts(IMAGE)
        else:
            (output,) = json.loads(answer.reply.body)["outputs"]
            assert (output["datatype"], output["shape"]) == ("BYTES", [3])
            assert output["data"] == [text.decode() for text in texts(IMAGE)]


def test_a_picture_is_read_over_grpc() -> None:
    with serving(detector, Recogniser().model, reader(), grpc_port=0) as server:
        client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
        given = tritonclient.grpc.InferInput("image", list(IMAGE.shape), "UINT8").set_data_from_numpy(IMAGE)
        answer = client.infer("read", [given], request_id="a name")
        assert answer.as_numpy("output").tolist() == texts(IMAGE)
        assert answer.get_response().id == "a name"
        client.close()


def test_encoded_bytes_come_in_and_documents_go_out() -> None:
    """An image as one BYTES element in; JSON, boxes and a number out."""

    def decode(blob: bytes) -> Array:
        return np.frombuffer(blob, np.uint8).reshape(-1, WIDTH)

    @ps.pipeline(outputs={"document": ps.Bytes[1], "boxes": ps.I32[-1, 2], "count": ps.I64[1]})
    async def describe(image: ps.Bytes[1]) -> dict[str, Any]:
        rows = await ps.cpu(decode, image[0])
        found = await ps.gather(ps.use("recogniser")(row) for row in rows)
        document = json.dumps([text.item().decode() for text in found])
        boxes = np.stack([np.arange(len(rows)), np.full(len(rows), WIDTH)], axis=1).astype(np.int32)
        return {"document": [document], "boxes": boxes, "count": [len(found)]}

    with serving(Recogniser().model, describe) as server:
        arrays = infer(server, "describe", image=objects(IMAGE.tobytes())).arrays
    assert json.loads(arrays["document"][0]) == [text.decode() for text in texts(IMAGE)]
    assert arrays["boxes"].tolist() == [[0, 4], [1, 4], [2, 4]]
    assert arrays["count"].tolist() == [3]


def test_a_picture_without_boxes_gives_an_empty_answer() -> None:
    recogniser = Recogniser()
    with serving(detector, recogniser.model, reader()) as server:
        assert infer(server, "read", image=np.zeros((0, WIDTH), np.uint8)).arrays["output"].shape == (0,)
    assert recogniser.seen == []


def test_every_one_of_64_clients_gets_its_own_answer() -> None:
    rng = np.random.default_rng(20261121)
    images = [rng.integers(0, 255, (1 + number % 7, WIDTH), dtype=np.uint8) for number in range(64)]

    def work(client: Client, number: int) -> None:
        for turn in range(4):
            image = images[(number + turn) % len(images)]
            assert client.infer("read", image=image).arrays["output"].tolist() == texts(image)

    with serving(detector, Recogniser().model, reader(max_concurrency=16)) as server:
        at_once(server, work, 64)
        statistics = server.pipeline_statistics("read")
        assert (statistics.request.count, statistics.request.errors) == (256, 0)
        assert server._event_loop is not None
        assert server._event_loop.exchange.open_calls == 0
        assert server._event_loop.tasks == {}


# ---- metadata ----


def test_metadata_and_configuration_come_from_the_signature() -> None:
    @ps.pipeline(name="two", outputs={"a": ps.F32[2, 2], "b": ps.Bytes[-1]}, max_concurrency=3)
    async def body(x: ps.F32[-1, 3], y: ps.Bytes[1], z: ps.Bool = None) -> None:  # type: ignore[assignment]
        """Never called."""

    with serving(body) as server, Client(server) as client:
        metadata = json.loads(client.get("/v2/models/two").body)
        config = json.loads(client.get("/v2/models/two/config").body)
    assert metadata["platform"] == "penstock_pipeline"
    assert metadata["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "y", "datatype": "BYTES", "shape": [1]},
        {"name": "z", "datatype": "BOOL", "shape": []},
    ]
    assert metadata["outputs"] == [
        {"name": "a", "datatype": "FP32", "shape": [2, 2]},
        {"name": "b", "datatype": "BYTES", "shape": [-1]},
    ]
    assert config["max_batch_size"] == 0
    assert [each["optional"] for each in config["input"]] == [False, False, True]
    assert config["parameters"]["max_concurrency"] == {"string_value": "3"}


def test_a_request_that_does_not_fit_the_signature_never_reaches_the_body() -> None:
    called = []

    @ps.pipeline
    async def body(x: ps.F32[4]) -> ps.F32[4]:
        called.append(x)
        return x

    with serving(body) as server:
        answer = infer(server, "body", x=np.zeros(5, np.float32))
        assert answer.status == 400
        assert "expected FP32 of shape [4]" in answer.error
        assert infer(server, "body", x=X).status == 200
    assert len(called) == 1


# ---- what calls take and give ----


def test_one_row_loses_and_gets_back_its_batch_dimension_and_several_rows_keep_theirs() -> None:
    seen: list[tuple[int, ...]] = []

    @ps.model(name="m", outputs={"sum": ps.F32[1], "same": ps.F32[3]})
    def model(x: ps.F32[3]) -> dict[str, Array]:
        seen.append(x.shape)
        return {"sum": x.sum(axis=1, keepdims=True), "same": x}

    @ps.pipeline(outputs={"one": ps.F32[1], "many": ps.F32[-1, 3]})
    async def body(x: ps.F32[-1, 3]) -> dict[str, Array]:
        one = await ps.use("m")(x=x[0])
        assert one["same"].shape == (3,)
        assert not one["same"].flags.writeable
        many = await ps.use(model, version=1).batch(x)
        return {"one": one["sum"], "many": many["same"]}

    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    with serving(model, body) as server:
        arrays = infer(server, "body", x=rows).arrays
    np.testing.assert_array_equal(arrays["one"], [3])
    np.testing.assert_array_equal(arrays["many"], rows)
    assert seen == [(1, 3), (2, 3)]


def test_models_without_a_batch_dimension_are_called_with_what_they_take() -> None:
    @ps.model(max_batch_size=0)
    def whole(x: ps.F32[-1]) -> ps.F32[-1]:
        return x * 2

    @ps.pipeline
    async def body(x: ps.F32[-1]) -> ps.F32[-1]:
        return await ps.use("whole").batch(await ps.use("whole")(x))

    with serving(whole, body) as server:
        np.testing.assert_array_equal(infer(server, "body", x=X).arrays["output"], X * 4)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        (ps.F32[2], np.array([1, 2], np.float32)),
        (ps.F64[2], [1.0, 2.0]),
        (ps.I64[2], [1, 2]),
        (ps.BF16[2], np.array([1, 2], np.uint16)),
        (ps.F16[2], np.array([1, 2], np.float16)),
        (ps.Bool[2], [True, False]),
        (ps.U8[2, 2], np.arange(8, dtype=np.uint8).reshape(2, 4)[:, ::2]),
        (ps.F32, np.float32(7)),
        (ps.F32[-1], np.zeros(0, np.float32)),
        (ps.Bytes[1], b"zeros\0\0"),
        (ps.Bytes[1], "text"),
        (ps.Bytes, b"one"),
        (ps.Bytes[2], [b"a\0", "b"]),
        (ps.F32[200, 200], np.arange(40_000, dtype=np.float32).reshape(200, 200)),
        (ps.F32[200, 200], np.asfortranarray(np.arange(40_000, dtype=np.float32).reshape(200, 200))),
    ],
    ids=str,
)
def test_values_of_every_kind_reach_a_model_and_come_back(datatype: ps.TensorType, value: Any) -> None:
    """Large and small, contiguous and not, text and scalars; the model's own answer is the body's."""
    came: list[Array] = []
    echo = ps.model(name="echo", inputs={"x": datatype}, outputs={"y": datatype})(lambda x: x)

    @ps.pipeline(outputs={"y": datatype})
    async def body(x: ps.F32[1]) -> Any:
        came.append(await ps.use("echo")(value))
        return came[0]

    with serving(echo, body) as server:
        y = infer(server, "body", x=np.zeros(1, np.float32)).arrays["y"]
    if datatype.datatype == "BYTES":
        elements = value if isinstance(value, list) else [value]
        wanted = [each.encode() if isinstance(each, str) else each for each in elements]
        assert came[0].ravel().tolist() == y.ravel().tolist() == wanted
    else:
        np.testing.assert_array_equal(came[0], np.asarray(value))
        np.testing.assert_array_equal(y, np.asarray(value))


@pytest.mark.parametrize(
    ("datatype", "returned", "wanted"),
    [
        (ps.F32[-1], [], []),
        (ps.F32[-1, 2], [], np.zeros((0, 2))),
        (ps.F32[2, 4], [X, X], [X, X]),
        (ps.I64[2], (1, 2), [1, 2]),
        (ps.Bytes[-1], ["a", b"b"], [b"a", b"b"]),
        (ps.Bytes[1], [b"zeros\0"], [b"zeros\0"]),
    ],
    ids=str,
)
def test_lists_become_arrays_on_the_way_out(datatype: ps.TensorType, returned: Any, wanted: Any) -> None:
    @ps.pipeline(outputs={"y": datatype})
    async def body(x: ps.F32[4]) -> Any:
        return returned

    with serving(body) as server:
        y = infer(server, "body", x=X).arrays["y"]
    assert y.tolist() == np.asarray(wanted, y.dtype).tolist()


# ---- pipelines in pipelines ----


def test_a_pipeline_is_part_of_another_by_function_and_by_name() -> None:
    recogniser, inner = Recogniser(), reader()

    @ps.pipeline
    async def outer(image: ps.U8[-1, WIDTH]) -> ps.Bytes[-1]:
        here = await inner(image=image)
        there = await ps.use("read")(image)
        return [*(text.item() for text in here), *there]

    with serving(detector, recogniser.model, inner, outer) as server:
        assert infer(server, "outer", image=IMAGE).arrays["output"].tolist() == texts(IMAGE) * 2
        assert server.pipeline_statistics("read").request.count == 1
        steps = {step.name: step.count for step in server.pipeline_statistics("outer").steps}
    assert steps == {"crop_rows": 1, "detector": 1, "read": 1, "recogniser": 3}
