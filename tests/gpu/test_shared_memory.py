"""Clients' CUDA shared memory: another process's memory on the GPU, named by its IPC handle, read and written.

The client allocates and asks for the handle through the driver, as `tritonclient.utils.cuda_shared_memory` does through
CUDA's runtime: a handle is the same from both. It is sent as that library sends it, base64 over HTTP, bytes over gRPC.
"""

import base64
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import penstock as ps
from penstock.engine.shared_device_memory import SharedDeviceMemory, available
from penstock.errors import InvalidArgument

pytestmark = pytest.mark.gpu

ROWS, COLUMNS = 4, 1000
BYTES = ROWS * COLUMNS * 4
SIZE = 4 * BYTES

# One line in, one line out: fill OFFSET HEX, read OFFSET BYTES; the first line is the handle.
OWNER = """
import base64, ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    status = getattr(cuda, name)(*arguments)
    if status:
        raise SystemExit(f"{name}: {status}")
context, address = ctypes.c_void_p(), ctypes.c_uint64()
handle = (ctypes.c_char * 64)()
call("cuInit", 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
call("cuCtxSetCurrent", context)
call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(int(sys.argv[1])))
call("cuIpcGetMemHandle", ctypes.byref(handle), address)
print(base64.b64encode(bytes(handle)).decode(), flush=True)
for line in sys.stdin:
    verb, offset, rest = line.split()
    at = ctypes.c_uint64(address.value + int(offset))
    if verb == "fill":
        data = bytes.fromhex(rest)
        call("cuMemcpyHtoD_v2", at, data, ctypes.c_size_t(len(data)))
        call("cuStreamSynchronize", None)  # from pageable memory the copy may still be under way
        print("done", flush=True)
    else:
        data = ctypes.create_string_buffer(int(rest))
        call("cuMemcpyDtoH_v2", data, at, ctypes.c_size_t(int(rest)))
        print(data.raw.hex(), flush=True)
"""


class Owner:
    """A process with memory on the GPU."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", OWNER, str(SIZE)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.handle = self._line()
        assert len(base64.b64decode(self.handle)) == 64

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the process that owns the memory has ended"
        return line

    def _ask(self, text: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        return self._line()

    def fill(self, array: np.ndarray, offset: int = 0) -> None:
        assert self._ask(f"fill {offset} {array.tobytes().hex()}") == "done"

    def read(self, count: int, offset: int = 0) -> np.ndarray:
        return np.frombuffer(bytes.fromhex(self._ask(f"read {offset} {count * 4}")), np.float32)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)


@pytest.fixture(scope="module")
def server() -> Iterator[ps.Server]:
    made = ps.model(name="double", max_batch_size=64, inputs={"x": ps.F32[-1]}, outputs={"y": ps.F32[-1]})
    server = ps.Server(http_port=0, grpc_port=0, metrics_port=None, allow_client_shm=True)
    server.add(made(lambda x: x * 2))
    with server:
        yield server


@pytest.fixture
def owner(server: ps.Server) -> Iterator[Owner]:
    found = Owner()
    yield found
    assert ask(server, "POST", "cudasharedmemory/unregister")[0] == 200
    found.close()


def ask(server: ps.Server, method: str, path: str, document: Any = None) -> tuple[int, Any]:
    data = None if document is None else json.dumps(document).encode()
    url = f"http://127.0.0.1:{server.http_port}/v2/{path}"
    request = urllib.request.Request(url, data if method == "POST" else None, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            body = reply.read()
            return reply.status, json.loads(body) if body else None
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def register(server: ps.Server, handle: str, size: int = SIZE, device: int = 0, name: str = "r") -> tuple[int, Any]:
    document = {"raw_handle": {"b64": handle}, "device_id": device, "byte_size": size}
    return ask(server, "POST", f"cudasharedmemory/region/{name}/register", document)


def place(offset: int) -> dict[str, Any]:
    return {"shared_memory_region": "r", "shared_memory_byte_size": BYTES, "shared_memory_offset": offset}


def test_tensors_are_read_from_and_written_to_the_gpu(server: ps.Server, owner: Owner) -> None:
    assert register(server, owner.handle) == (200, None)
    expected = [{"name": "r", "device_id": 0, "byte_size": SIZE}]
    assert ask(server, "GET", "cudasharedmemory/status") == (200, expected)
    assert ask(server, "GET", "systemsharedmemory/status") == (200, [])
    for seed in range(3):
        x = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS), np.float32)
        owner.fill(x, BYTES)
        x_there = {"name": "x", "shape": [ROWS, COLUMNS], "datatype": "FP32", "parameters": place(BYTES)}
        document = {"inputs": [x_there], "outputs": [{"name": "y", "parameters": place(2 * BYTES)}]}
        status, answer = ask(server, "POST", "models/double/infer", document)
        assert status == 200, answer
        assert answer["outputs"] == [
            {"name": "y", "datatype": "FP32", "shape": [ROWS, COLUMNS], "parameters": place(2 * BYTES)}
        ]
        np.testing.assert_array_equal(owner.read(ROWS * COLUMNS, 2 * BYTES).reshape(x.shape), x * 2)


def test_a_handle_may_be_registered_twice_and_forgotten_once(server: ps.Server, owner: Owner) -> None:
    assert register(server, owner.handle)[0] == 200
    assert register(server, owner.handle)[0] == 400, "the name is taken"
    assert register(server, owner.handle, name="again")[0] == 200
    assert ask(server, "POST", "cudasharedmemory/region/again/unregister")[0] == 200
    test_what_is_there_is_read(server, owner)


def test_what_is_there_is_read(server: ps.Server, owner: Owner) -> None:
    register(server, owner.handle)
    x = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)
    owner.fill(x)
    there = {"name": "x", "shape": [ROWS, COLUMNS], "datatype": "FP32", "parameters": place(0)}
    status, answer = ask(server, "POST", "models/double/infer", {"inputs": [there]})
    assert status == 200, answer
    np.testing.assert_array_equal(np.asarray(answer["outputs"][0]["data"], np.float32), (x * 2).ravel())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"handle": base64.b64encode(bytes(64)).decode()}, "handle"),
        ({"handle": base64.b64encode(b"short").decode()}, "64 bytes"),
        ({"device": 99}, "device_id"),
        ({"device": 2**63 - 1}, "device_id"),
        ({"size": 1 << 40}, "expected memory of"),
        ({"size": 0}, "byte_size"),
    ],
)
def test_what_names_no_memory_is_refused(change: dict[str, Any], words: str, server: ps.Server, owner: Owner) -> None:
    status, answer = register(server, **({"handle": owner.handle} | change))
    assert status == 400, answer
    assert words in answer["error"]
    test_what_is_there_is_read(server, owner)


def test_memory_of_a_process_that_has_ended_does_not_end_the_server(server: ps.Server) -> None:
    gone = Owner()
    assert register(server, gone.handle)[0] == 200
    gone.close()
    there = {"name": "x", "shape": [ROWS, COLUMNS], "datatype": "FP32", "parameters": place(0)}
    status, _ = ask(server, "POST", "models/double/infer", {"inputs": [there]})
    assert status in (200, 400, 500)
    assert ask(server, "POST", "cudasharedmemory/unregister")[0] == 200
    alive = Owner()
    test_what_is_there_is_read(server, alive)
    assert ask(server, "POST", "cudasharedmemory/unregister")[0] == 200
    alive.close()


def test_memory_is_given_back(owner: Owner) -> None:
    """The same handle opens again after the last close; what is not open is not closed twice."""
    assert available()
    devices = SharedDeviceMemory()
    raw = base64.b64decode(owner.handle)
    for _ in range(3):
        number = devices.open("r", raw, 0, SIZE)
        devices.close(number)
        with pytest.raises(KeyError):
            devices.close(number)
    with pytest.raises(InvalidArgument):
        devices.open("r", bytes(64), 0, SIZE)


def test_the_client_library_is_served(server: ps.Server) -> None:
    """In a process of its own: a handle can't be opened where it was made."""
    pytest.importorskip("tritonclient.grpc", reason="the client library (tritonclient[all]) is not installed")
    pytest.importorskip("tritonclient.utils.cuda_shared_memory", exc_type=RuntimeError)
    code = """
import sys
import numpy as np, tritonclient.grpc, tritonclient.http
import tritonclient.utils.cuda_shared_memory as shm
x = np.arange(4000, dtype=np.float32).reshape(4, 1000)
for module, port in ((tritonclient.http, sys.argv[1]), (tritonclient.grpc, sys.argv[2])):
    with module.InferenceServerClient("127.0.0.1:" + port) as client:
        given, found = (shm.create_shared_memory_region(name, x.nbytes, 0) for name in ("given", "found"))
        shm.set_shared_memory_region(given, [x])
        for name, region in (("given", given), ("found", found)):
            client.register_cuda_shared_memory(name, shm.get_raw_handle(region), 0, x.nbytes)
        tensor, wanted = module.InferInput("x", [4, 1000], "FP32"), module.InferRequestedOutput("y")
        tensor.set_shared_memory("given", x.nbytes)
        wanted.set_shared_memory("found", x.nbytes)
        client.infer("double", [tensor], outputs=[wanted])
        np.testing.assert_array_equal(shm.get_contents_as_numpy(found, np.float32, [4, 1000]), x * 2)
        client.unregister_cuda_shared_memory()
"""
    ports = [str(server.http_port), str(server.grpc_port)]
    subprocess.run([sys.executable, "-c", code, *ports], check=True, timeout=120)
