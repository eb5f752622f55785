"""Load requests that would leave the repository: refused with 400, and nothing is written anywhere."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from tests.conformance.clients import method
from tests.hostile.model_cases import ESCAPES
from tests.servers import onnx_files
from tests.servers.cases import assert_clean_error
from tests.servers.process import RunningServer
from tests.servers.raw import ask, dumps

pytestmark = pytest.mark.penstock_only

CONFIG = '{"max_batch_size": 4}'
LOAD = "/v2/repository/models/first/load"


def tree(folder: Path) -> Mapping[str, int]:
    """Every file below the folder's parent, with its size: what escapes would most likely land there."""
    return {str(path): path.stat().st_size for path in sorted(folder.parent.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("operation", ["load", "unload"])
@pytest.mark.parametrize("name", ESCAPES)
def test_a_name_that_leaves_the_repository_is_refused(
    explicit_server: RunningServer, explicit_repository: Path, name: str, operation: str
) -> None:
    before = tree(explicit_repository)
    reply = ask(explicit_server, "POST", f"/v2/repository/models/{ESCAPES[name]}/{operation}", b"{}")
    assert reply.status == 400, reply.body
    assert_clean_error(reply)
    assert tree(explicit_repository) == before
    assert ask(explicit_server, "GET", "/v2/health/live").status == 200


@pytest.mark.parametrize("name", ["..", "../etc", "a/../b", " ..", "/etc", "first\0", "first\n", "", "a" * 256])
def test_a_name_over_grpc_is_refused_alike(explicit_server: RunningServer, name: str) -> None:
    with pytest.raises(InferenceServerException) as raised:
        method("grpc", explicit_server, "load_model", name)
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"


CONTENT = base64.b64encode(b"anything").decode()


def warming(**input_data: Any) -> bytes:
    """A load whose configuration asks for a warm-up of the model's input with this data."""
    x = {"data_type": "TYPE_FP32", "dims": [4], **input_data}
    sample = {"name": "s", "batch_size": 4, "inputs": {"x": x}}
    return dumps(parameters={"config": dumps(max_batch_size=4, model_warmup=[sample]).decode()})


BODIES: Mapping[str, bytes] = {
    **{
        f"warm-up from {name[:20]!r}": warming(input_data_file=name)
        for name in (
            "../config.pbtxt",
            "../../second/1/model.onnx",
            "/etc/passwd",
            "..",
            "",
            "a//b",
            "absent",
            "x\0y",
            "a" * 256,
        )
    },
    "warm-up of 2^62 elements": warming(dims=[2**62], zero_data=True),
    "warm-up of a negative size": warming(dims=[-(2**62)], zero_data=True),
    "warm-up of 10,000 dimensions": warming(dims=[1] * 10_000, zero_data=True),
    "warm-up without data": warming(),
    "warm-up of another type": warming(data_type="TYPE_STRING", zero_data=True),
    **{
        f"file {name[:20]!r}": dumps(parameters={"config": CONFIG, f"file:{name}": CONTENT})
        for name in (
            "../../x",
            "../x",
            "1/../../x",
            "/absolute/x",
            "1/..",
            "..",
            ".",
            "",
            "1/",
            "1//x",
            "1/x\0y",
            "1\\..\\x",
            "1/" + "a" * 256,
            "a" * 256 + "/x",
            "config.pbtxt/../../x",
        )
    },
    "bad base64": dumps(parameters={"config": CONFIG, "file:1/model.onnx": "%%%%"}),
    "file is a number": dumps(parameters={"config": CONFIG, "file:1/model.onnx": 5}),
    "file without config": dumps(parameters={"file:1/model.onnx": CONTENT}),
    "file that is no model": dumps(parameters={"config": CONFIG, "file:1/model.onnx": CONTENT}),
    "config is no JSON": dumps(parameters={"config": "{"}),
    "config is a list": dumps(parameters={"config": "[]"}),
    "config is an object": dumps(parameters={"config": {"max_batch_size": 4}}),
    "config with another name": dumps(parameters={"config": '{"name": "second"}'}),
    "config with a wrong type": dumps(parameters={"config": '{"max_batch_size": "many"}'}),
    "config with a negative batch": dumps(parameters={"config": '{"max_batch_size": -1}'}),
    "config nested deeply": dumps(parameters={"config": "[" * 100_000}),
    "no JSON": b"{",
    "a list": b"[]",
    "nested deeply": b"[" * 100_000,
    "parameters is a list": dumps(parameters=[]),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_load_with_bad_contents_is_refused(
    explicit_server: RunningServer, explicit_repository: Path, name: str
) -> None:
    before = tree(explicit_repository)
    reply = ask(explicit_server, "POST", LOAD, BODIES[name])
    assert reply.status == 400, reply.body
    assert_clean_error(reply)
    assert tree(explicit_repository) == before
    # The model itself is as good as before.
    assert ask(explicit_server, "POST", LOAD, b"{}").status == 200
    assert ask(explicit_server, "GET", "/v2/models/first/ready").status == 200


def test_a_load_may_bring_its_own_files(
    explicit_server: RunningServer, explicit_repository: Path, tmp_path: Path
) -> None:
    """The other side: a good file is served, and the repository on disk stays as it was."""
    before = tree(explicit_repository)
    onnx_files.write_scale(tmp_path / "model.onnx", 5)
    content = base64.b64encode((tmp_path / "model.onnx").read_bytes()).decode()
    body = dumps(parameters={"config": CONFIG, "file:1/model.onnx": content})
    assert ask(explicit_server, "POST", LOAD, body).status == 200
    x: dict[str, Any] = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    answer = ask(explicit_server, "POST", "/v2/models/first/infer", dumps(inputs=[x])).json()
    assert answer["outputs"][0]["data"] == [5, 10, 15, 20]
    assert tree(explicit_repository) == before
