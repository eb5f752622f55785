"""Client shared memory through Triton's own client library: registered, used for inputs and outputs, given back.

What clients do wrong, or do on purpose, is in `tests/hostile/test_shared_memory.py`. Memory of a GPU needs one:
`tests/gpu/test_shared_memory.py`.
"""

import os
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, serialize_byte_tensor
from tritonclient.utils import shared_memory as shm

import penstock as ps
from tests.conformance.clients import MODULES, Transport, connect
from tests.conformance.inside import serving
from tests.servers.process import RunningServer
from tests.servers.zoo import Array

TRANSPORTS: tuple[Transport, ...] = ("http", "grpc")
EITHER = pytest.mark.parametrize("transport", TRANSPORTS)
# A row far below and one far above what is copied on the thread that serves sockets.
SMALL, LARGE = 16, 1 << 20
SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])


def double() -> ps.ModelFunction:
    made = ps.model(name="double", max_batch_size=8, inputs={"x": ps.F32[-1]}, outputs={"y": ps.F32[-1]})
    return made(lambda x: x * 2)


def both() -> ps.ModelFunction:
    made = ps.model(
        name="both", max_batch_size=8, inputs={"a": ps.F32[4], "b": ps.F32[4]},
        outputs={"sum": ps.F32[4], "difference": ps.F32[4]},
    )  # fmt: skip
    return made(lambda a, b: {"sum": a + b, "difference": a - b})


def louder() -> ps.ModelFunction:
    def function(x: Array) -> Array:
        answer = np.empty(x.shape, object)
        answer[:] = [[each + b"!" for each in row] for row in x]
        return answer

    made = ps.model(name="louder", max_batch_size=8, inputs={"x": ps.Bytes[2]}, outputs={"y": ps.Bytes[2]})
    return made(lambda x: function(x))  # noqa: PLW0108  (the signature is read: one argument x)


@pytest.fixture(scope="module")
def shared() -> Iterator[RunningServer]:
    with serving(double(), both(), louder(), allow_client_shm=True) as server:
        yield server


class Memory:
    """One object of shared memory, made by Triton's library and gone at the end."""

    def __init__(self, size: int, key: str = "") -> None:
        self.key = key or f"/penstock-test-{os.getpid()}-{id(self):x}"
        self.size = size
        self.handle = shm.create_shared_memory_region("whatever", self.key, size)

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *_: object) -> None:
        shm.destroy_shared_memory_region(self.handle)

    def put(self, array: Array, offset: int = 0) -> None:
        shm.set_shared_memory_region(self.handle, [array], offset)

    def get(self, dtype: Any, shape: tuple[int, ...], offset: int = 0) -> Array:
        return np.array(shm.get_contents_as_numpy(self.handle, dtype, shape, offset))


def names(client: Any) -> set[str]:
    """The regions that a client is told of."""
    status = client.get_system_shared_memory_status()
    return {each["name"] for each in status} if isinstance(status, list) else set(status.regions)


@EITHER
@SIZES
@pytest.mark.parametrize("where", ["input", "output", "both"])
def test_tensors_are_read_from_and_written_to_shared_memory(
    where: str, size: int, transport: Transport, shared: RunningServer
) -> None:
    x = np.random.default_rng(size).standard_normal((2, size), np.float32)
    with Memory(2 * x.nbytes) as memory, connect(transport, shared) as client:
        client.register_system_shared_memory("r", memory.key, 2 * x.nbytes)
        given = MODULES[transport].InferInput("x", list(x.shape), "FP32")
        wanted = MODULES[transport].InferRequestedOutput("y")
        if where != "output":
            memory.put(x)
            given.set_shared_memory("r", x.nbytes)
        else:
            given.set_data_from_numpy(x)
        if where != "input":
            wanted.set_shared_memory("r", x.nbytes, offset=x.nbytes)
        result = client.infer("double", [given], outputs=[wanted])
        client.unregister_system_shared_memory("r")
        found = result.as_numpy("y") if where == "input" else memory.get(np.float32, x.shape, x.nbytes)
    np.testing.assert_array_equal(found, x * 2)


@EITHER
def test_an_output_in_shared_memory_is_described_and_not_sent(transport: Transport, shared: RunningServer) -> None:
    x = np.arange(4, dtype=np.float32)[None]
    with Memory(4096) as memory, connect(transport, shared) as client:
        client.register_system_shared_memory("r", memory.key, 4000, offset=96)
        given = MODULES[transport].InferInput("x", [1, 4], "FP32")
        given.set_data_from_numpy(x)
        wanted = MODULES[transport].InferRequestedOutput("y")
        wanted.set_shared_memory("r", 1000, offset=32)
        output = client.infer("double", [given], outputs=[wanted]).get_output("y")
        client.unregister_system_shared_memory("r")
        np.testing.assert_array_equal(memory.get(np.float32, (1, 4), 128), x * 2)
    if transport == "http":
        parameters = {"shared_memory_region": "r", "shared_memory_byte_size": 16, "shared_memory_offset": 32}
        assert output == {"name": "y", "datatype": "FP32", "shape": [1, 4], "parameters": parameters}
    else:
        assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [1, 4])
        assert output.parameters["shared_memory_region"].string_param == "r"
        assert output.parameters["shared_memory_byte_size"].int64_param == 16
        assert output.parameters["shared_memory_offset"].int64_param == 32


@EITHER
@pytest.mark.parametrize("elsewhere", ["a", "b"])
@pytest.mark.parametrize("output", ["sum", "difference"])
def test_tensors_in_the_request_and_in_memory_go_together(
    elsewhere: str, output: str, transport: Transport, shared: RunningServer
) -> None:
    """Contents are by position, and those of a tensor in shared memory are left out, or empty."""
    arrays = {"a": np.arange(4, dtype=np.float32)[None], "b": np.full((1, 4), 10, np.float32)}
    with Memory(4096) as memory, connect(transport, shared) as client:
        client.register_system_shared_memory("r", memory.key, 4096)
        given = []
        for name, array in arrays.items():
            each = MODULES[transport].InferInput(name, [1, 4], "FP32")
            if name == elsewhere:
                memory.put(array)
                each.set_shared_memory("r", 16)
            else:
                each.set_data_from_numpy(array)
            given.append(each)
        wanted = [MODULES[transport].InferRequestedOutput(name) for name in ("sum", "difference")]
        wanted[["sum", "difference"].index(output)].set_shared_memory("r", 16, offset=64)
        result = client.infer("both", given, outputs=wanted)
        client.unregister_system_shared_memory("r")
        found = {
            name: memory.get(np.float32, (1, 4), 64) if name == output else result.as_numpy(name)
            for name in ("sum", "difference")
        }
    np.testing.assert_array_equal(found["sum"], arrays["a"] + arrays["b"])
    np.testing.assert_array_equal(found["difference"], arrays["a"] - arrays["b"])


@EITHER
def test_strings_lie_in_memory_as_on_the_wire(transport: Transport, shared: RunningServer) -> None:
    x = np.array([[b"", b"text \xff"]], object)
    serialized = serialize_byte_tensor(x)
    size = len(serialized.item())
    with Memory(4096) as memory, connect(transport, shared) as client:
        client.register_system_shared_memory("r", memory.key, 4096)
        memory.put(serialized)
        given = MODULES[transport].InferInput("x", [1, 2], "BYTES")
        given.set_shared_memory("r", size)
        wanted = MODULES[transport].InferRequestedOutput("y")
        wanted.set_shared_memory("r", 100, offset=1000)
        client.infer("louder", [given], outputs=[wanted])
        client.unregister_system_shared_memory("r")
        found = memory.get(np.object_, (1, 2), 1000)
    assert found.tolist() == [[b"!", b"text \xff!"]]


@EITHER
def test_regions_are_listed_and_forgotten_one_by_one_and_together(transport: Transport, shared: RunningServer) -> None:
    with Memory(4096) as memory, connect(transport, shared) as client:
        client.register_system_shared_memory("first", memory.key, 1000)
        client.register_system_shared_memory(
            "sec ond/\u00fc" if transport == "grpc" else "sec ond\u00fc", memory.key, 96, 64
        )
        assert len(names(client)) == 2
        one = client.get_system_shared_memory_status("first")
        row = one[0] if transport == "http" else one.regions["first"]
        told = (
            row
            if transport == "http"
            else {each: getattr(row, each) for each in ("name", "key", "offset", "byte_size")}
        )
        assert told == {"name": "first", "key": memory.key, "offset": 0, "byte_size": 1000}
        # In a name space of both kinds, each kind sees and forgets its own.
        client.unregister_cuda_shared_memory()
        client.unregister_cuda_shared_memory("first")
        assert len(names(client)) == 2
        client.unregister_system_shared_memory("first")
        client.unregister_system_shared_memory("first")
        assert "first" not in names(client)
        with pytest.raises(InferenceServerException, match="Unable to find system shared memory region: 'first'"):
            client.get_system_shared_memory_status("first")
        client.unregister_system_shared_memory()
        assert names(client) == set()


@EITHER
def test_a_batch_gathers_rows_from_memory_and_from_requests(transport: Transport, shared: RunningServer) -> None:
    count = 16
    x = np.random.default_rng(3).standard_normal((count, SMALL), np.float32)
    with Memory(x.nbytes) as memory, connect(transport, shared) as client:
        memory.put(x)
        client.register_system_shared_memory("r", memory.key, x.nbytes)
        for number in range(count):
            given = MODULES[transport].InferInput("x", [1, SMALL], "FP32")
            if number % 2:
                given.set_shared_memory("r", x[0].nbytes, offset=number * x[0].nbytes)
            else:
                given.set_data_from_numpy(x[number : number + 1])
            np.testing.assert_array_equal(client.infer("double", [given]).as_numpy("y")[0], x[number] * 2)
        client.unregister_system_shared_memory()


def test_a_stream_takes_tensors_from_memory(shared: RunningServer) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    x = np.arange(8, dtype=np.float32)[None]
    with Memory(4096) as memory, connect("grpc", shared) as client:
        memory.put(x)
        client.register_system_shared_memory("r", memory.key, 4096)
        client.start_stream(lambda result, error: answers.put(error or result))
        given = tritonclient.grpc.InferInput("x", [1, 8], "FP32")
        given.set_shared_memory("r", 32)
        wanted = tritonclient.grpc.InferRequestedOutput("y")
        wanted.set_shared_memory("r", 32, offset=32)
        client.async_stream_infer("double", [given], outputs=[wanted])
        answer = answers.get(timeout=20)
        client.stop_stream()
        client.unregister_system_shared_memory()
        assert not isinstance(answer, Exception)
        np.testing.assert_array_equal(memory.get(np.float32, (1, 8), 32), x * 2)


@pytest.mark.parametrize("allowed", [True, False])
def test_the_extension_is_listed_where_it_works(allowed: bool) -> None:
    with serving(double(), allow_client_shm=allowed) as server, connect("http", server) as client:
        listed = "system_shared_memory" in client.get_server_metadata()["extensions"]
        assert listed == allowed
        if not allowed:
            with pytest.raises(InferenceServerException, match="--allow-client-shm") as raised:
                client.register_system_shared_memory("r", "/r", 16)
            assert raised.value.status() == "501"


@EITHER
def test_cuda_memory_can_be_asked_about_and_forgotten_without_a_gpu(
    transport: Transport, shared: RunningServer
) -> None:
    with connect(transport, shared) as client:
        status = client.get_cuda_shared_memory_status()
        assert len(status if transport == "http" else status.regions) == 0
        client.unregister_cuda_shared_memory()
        client.unregister_cuda_shared_memory("r")


def test_the_guide_s_example_answers_as_it_says(capsys: pytest.CaptureFixture[str], shared: RunningServer) -> None:
    guide = (Path(__file__).parents[2] / "docs/serving.md").read_text()
    example = guide.partition("## Shared memory")[2].partition("```python\n")[2].partition("```")[0]
    exec(compile(example.replace("localhost:8000", shared.http_address), "serving.md", "exec"), {})
    assert capsys.readouterr().out == "[[2. 4. 6. 9.]]\n"
