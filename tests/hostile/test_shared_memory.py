"""Client shared memory used wrongly or with malice: every case is refused with its reason, and the server lives.

Off, it is refused as a whole: `model_cases.py`.
"""

import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock as ps
from penstock import limits
from tests.conformance.inside import Gate, serving
from tests.servers.cases import assert_clean_error
from tests.servers.process import RunningServer
from tests.servers.raw import Reply, ask, dumps

SYSTEM = "/v2/systemsharedmemory"
FOLDER = Path("/dev/shm")
SIZE = 4096
LARGE = 1 << 27
X = np.arange(4, dtype=np.float32)[None]


@pytest.fixture(scope="module")
def shared() -> Iterator[RunningServer]:
    made = ps.model(name="double", max_batch_size=8, inputs={"x": ps.F32[4]}, outputs={"y": ps.F32[4]})
    wide = ps.model(name="wide", max_batch_size=8, inputs={"x": ps.U8[-1]}, outputs={"y": ps.U8[-1]})
    with serving(made(lambda x: x * 2), wide(lambda x: x), allow_client_shm=True) as server:
        yield server


@pytest.fixture(autouse=True)
def well(shared: RunningServer) -> Iterator[None]:
    """Afterwards nothing is registered, and a good request is answered."""
    yield
    assert ask(shared, "POST", f"{SYSTEM}/unregister").status == 200
    body = dumps(inputs=[{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}])
    assert ask(shared, "POST", "/v2/models/double/infer", body).json()["outputs"][0]["data"] == [2, 4, 6, 8]


@contextlib.contextmanager
def memory(size: int = SIZE) -> Iterator[shared_memory.SharedMemory]:
    made = shared_memory.SharedMemory(create=True, size=size)
    try:
        yield made
    finally:
        made.close()
        made.unlink()


def register(server: RunningServer, name: str = "r", **document: Any) -> Reply:
    return ask(server, "POST", f"{SYSTEM}/region/{name}/register", dumps(**document))


def from_memory(region: str = "r", size: Any = 16, offset: Any = None, **more: Any) -> dict[str, Any]:
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": size}
    parameters |= {} if offset is None else {"shared_memory_offset": offset}
    return {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": parameters, **more}


def infer(server: RunningServer, *, model: str = "double", **document: Any) -> Reply:
    return ask(server, "POST", f"/v2/models/{model}/infer", dumps(**document))


def refused(reply: Reply, status: int, *words: str) -> None:
    assert reply.status == status, reply.body[:500]
    assert_clean_error(reply, words)


@pytest.mark.parametrize(
    "key",
    [
        "", "/", ".", "/..", "../etc/passwd", "/../../etc/passwd", "/a/b", "/a/", "/a\0b", "/a\nb", "x" * 256,
        "/sem.lock", "/penstock_worker", "/triton_python_backend_shm_region_1",
    ],
)  # fmt: skip
def test_keys_that_are_paths_or_not_for_clients_are_refused(key: str, shared: RunningServer) -> None:
    refused(register(shared, key=key, offset=0, byte_size=16), 400, "'r'", "is not allowed")


def test_what_is_no_shared_memory_is_refused(shared: RunningServer, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * SIZE)
    name = f"odd-{os.getpid()}"
    path = FOLDER / name
    makers = {
        "link": lambda: path.symlink_to(secret),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }
    for make in makers.values():
        make()
        try:
            refused(register(shared, key=f"/{name}", offset=0, byte_size=16), 400, "'r'")
        finally:
            (path.rmdir if path.is_dir() and not path.is_symlink() else path.unlink)()
    refused(register(shared, key=f"/{name}", offset=0, byte_size=16), 400, "there is no such object")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"byte_size": SIZE + 1}, ("hold 4097 bytes", "4096")),
        ({"byte_size": SIZE, "offset": 1}, ("offset 1",)),
        ({"byte_size": 2**64 - 1, "offset": 2**64 - 1}, ("2^64",)),
        ({"byte_size": 1, "offset": 2**64 - 1}, ("2^64",)),
        ({"byte_size": 2**63, "offset": 0}, ("4096",)),
        ({"byte_size": 0}, ("byte_size",)),
        ({"byte_size": -1}, ("byte_size",)),
        ({"byte_size": 1.5}, ("byte_size",)),
        ({"byte_size": 2**64}, ("byte_size",)),
        ({"byte_size": "16"}, ("byte_size",)),
        ({}, ("byte_size",)),
        ({"byte_size": 16, "offset": -1}, ("offset",)),
        ({"byte_size": 16, "key": 1}, ("key",)),
    ],
)  # fmt: skip
def test_ranges_beyond_the_memory_are_not_registered(
    document: dict[str, Any], words: tuple[str, ...], shared: RunningServer
) -> None:
    with memory() as made:
        refused(register(shared, **{"key": f"/{made.name}", "offset": 0, **document}), 400, *words)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("..%2f..%2fetc", 200),
        ("%2e%2e", 200),
        ("a%0ab", 400),
        ("a%00b", 400),
        ("%ff", 400),
        ("%zz", 400),
        ("x" * 256, 400),
    ],
)
def test_names_are_only_names(name: str, status: int, shared: RunningServer) -> None:
    """Nothing is opened by the name of a region, so one that looks like a path is a name like any other."""
    with memory() as made:
        reply = register(shared, name, key=f"/{made.name}", offset=0, byte_size=16)
        assert reply.status == status, reply.body


@pytest.mark.parametrize("path", ["region/../../etc/register", "region/a/b/register", "region//register", "register"])
def test_paths_in_place_of_names_are_refused(path: str, shared: RunningServer) -> None:
    reply = ask(shared, "POST", f"{SYSTEM}/{path}", dumps(key="/a", offset=0, byte_size=16))
    assert reply.status in (400, 404)
    assert_clean_error(reply)


def test_a_name_is_registered_once(shared: RunningServer) -> None:
    with memory() as made, memory() as other:
        assert register(shared, key=f"/{made.name}", offset=0, byte_size=16).status == 200
        for each in (made, other):
            refused(register(shared, key=f"/{each.name}", offset=0, byte_size=16), 400, "'r'", "already")


@pytest.mark.parametrize(
    ("tensor", "status", "words"),
    [
        (from_memory("absent"), 404, ("Unable to find shared memory region: 'absent'",)),
        (from_memory(size=17), 400, ("'r'", "16 bytes")),
        (from_memory(offset=1), 400, ("'r'", "offset 1")),
        (from_memory(offset=2**64 - 16), 400, ("2^64",)),
        (from_memory(offset=2**63), 400, ("'r'",)),
        (from_memory(size=2**64 - 1, offset=2), 400, ("2^64",)),
        (from_memory(size=12), 400, ("'x'", "3 elements")),
        (from_memory(size=0), 400, ("'x'",)),
        (from_memory(size=-16), 400, ("shared_memory_byte_size", "-16")),
        (from_memory(size="16"), 400, ("shared_memory_byte_size",)),
        (from_memory(offset=-1), 400, ("shared_memory_offset",)),
        (from_memory(region=5), 400, ("shared_memory_region",)),
        (from_memory(data=[1, 2, 3, 4]), 400, ("both",)),
        (from_memory(shape=[1, 5]), 400, ("'x'",)),
        (from_memory(shape=[2**40, 4]), 400, ("'x'",)),
        ({**from_memory(), "parameters": {"shared_memory_region": "r"}}, 400, ("shared_memory_byte_size",)),
        ({**from_memory(), "parameters": {"shared_memory_byte_size": 16}}, 400, ("shared_memory_region",)),
    ],
    ids=str,
)
def test_inputs_beyond_their_region_are_refused(
    tensor: dict[str, Any], status: int, words: tuple[str, ...], shared: RunningServer
) -> None:
    with memory() as made:
        assert register(shared, key=f"/{made.name}", offset=SIZE - 16, byte_size=16).status == 200
        refused(infer(shared, inputs=[tensor]), status, *words)


@pytest.mark.parametrize(
    ("parameters", "status", "words"),
    [
        ({"shared_memory_region": "absent", "shared_memory_byte_size": 16}, 404, ("'absent'",)),
        ({"shared_memory_region": "r", "shared_memory_byte_size": 17}, 400, ("'r'",)),
        ({"shared_memory_region": "r", "shared_memory_byte_size": 8}, 400, ("'y'", "at least 16")),
        ({"shared_memory_region": "r"}, 400, ("shared_memory_byte_size",)),
    ],
)
def test_outputs_beyond_their_region_are_refused_and_nothing_is_written(
    parameters: dict[str, Any], status: int, words: tuple[str, ...], shared: RunningServer
) -> None:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    with memory() as made:
        assert register(shared, key=f"/{made.name}", offset=SIZE - 16, byte_size=16).status == 200
        refused(infer(shared, inputs=[tensor], outputs=[{"name": "y", "parameters": parameters}]), status, *words)
        assert not any(made.buf)


def test_memory_that_was_cut_after_registration_is_an_error_and_no_fault(shared: RunningServer) -> None:
    """A server that had mapped it would end with SIGBUS."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    to_memory = {"name": "y", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 16}}
    with memory() as made:
        assert register(shared, key=f"/{made.name}", offset=SIZE - 16, byte_size=16).status == 200
        os.truncate(FOLDER / made.name, SIZE - 8)
        refused(infer(shared, inputs=[from_memory()]), 400, "'r'", "no longer")
        refused(infer(shared, inputs=[tensor], outputs=[to_memory]), 400, "'r'", "no longer")
        os.truncate(FOLDER / made.name, 0)
        refused(infer(shared, inputs=[from_memory()]), 400, "'r'", "no longer")
        refused(infer(shared, inputs=[tensor], outputs=[to_memory]), 400, "'r'", "no longer")
        assert (FOLDER / made.name).stat().st_size == 0, "writing must not make it grow again"


def test_memory_that_is_cut_and_grown_all_the_time_never_ends_the_server(shared: RunningServer) -> None:
    size = 8 << 20
    both = {
        "inputs": [
            {
                "name": "x", "shape": [1, size], "datatype": "UINT8",
                "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": size},
            }
        ],
        "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": size}}],
    }  # fmt: skip
    done = threading.Event()
    with memory(size) as made:
        assert register(shared, key=f"/{made.name}", offset=0, byte_size=size).status == 200

        def cut() -> None:
            while not done.is_set():
                os.truncate(FOLDER / made.name, 0)
                os.truncate(FOLDER / made.name, size)

        with ThreadPoolExecutor(1) as pool:
            cutting = pool.submit(cut)
            try:
                statuses = [infer(shared, model="wide", **both).status for _ in range(50)]
            finally:
                done.set()
            cutting.result()
    assert set(statuses) <= {200, 400}, statuses


def test_a_request_takes_no_more_memory_than_its_limit(shared: RunningServer) -> None:
    """A sparse object may be of any size and cost its maker nothing; what is read from it costs the server."""
    size = limits.SHARED_MEMORY_REQUEST_BYTES + 1
    tensor = from_memory(size=size, shape=[1, size], datatype="UINT8")
    name = f"sparse-{os.getpid()}"
    try:
        (FOLDER / name).touch()
        os.truncate(FOLDER / name, size)
        assert register(shared, key=f"/{name}", offset=0, byte_size=size).status == 200
        refused(infer(shared, model="wide", inputs=[tensor]), 413, str(limits.SHARED_MEMORY_REQUEST_BYTES))
    finally:
        (FOLDER / name).unlink()


@pytest.mark.parametrize("shape", [[1, 4], [1, LARGE // 4]], ids=str)
def test_what_the_shape_refuses_is_not_read(shape: list[int], shared: RunningServer) -> None:
    tensor = from_memory(size=LARGE, shape=shape)
    name = f"sparse-{os.getpid()}"
    try:
        (FOLDER / name).touch()
        os.truncate(FOLDER / name, LARGE)
        assert register(shared, key=f"/{name}", offset=0, byte_size=LARGE).status == 200
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
        before = resident("VmHWM")
        refused(infer(shared, inputs=[tensor]), 400, "'x'")
        assert resident("VmHWM") - before < LARGE // 4
    finally:
        (FOLDER / name).unlink()


def resident(what: str) -> int:
    """Bytes of this process, which is the server's."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(what))
    return 1024 * int(line.split()[1])


def test_a_region_unregistered_in_flight_is_still_written() -> None:
    with Gate() as gate, serving(gate.model(), allow_client_shm=True) as server, memory() as made:
        made.buf[:16] = X.tobytes()
        assert register(server, key=f"/{made.name}", offset=0, byte_size=32).status == 200
        to_memory = {
            "name": "y",
            "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 16, "shared_memory_offset": 16},
        }
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(lambda: infer(server, model="gate", inputs=[from_memory()], outputs=[to_memory]))
            assert gate.entered.acquire(timeout=20)
            assert ask(server, "POST", f"{SYSTEM}/region/r/unregister").status == 200
            assert ask(server, "GET", f"{SYSTEM}/status").json() == []
            gate.open()
            assert answer.result(timeout=20).status == 200
        assert bytes(made.buf[16:32]) == X.tobytes()
        refused(infer(server, model="gate", inputs=[from_memory()]), 404, "'r'")


def test_thousands_of_regions_are_bounded_and_cost_one_descriptor_an_object(shared: RunningServer) -> None:
    descriptors = Path("/proc/self/fd")
    with memory() as made:
        before = len(list(descriptors.iterdir()))
        for number in range(int(limits.SHARED_MEMORY_REGIONS)):
            reply = register(shared, f"r{number}", key=f"/{made.name}", offset=number % SIZE, byte_size=1)
            assert reply.status == 200, reply.body
        refused(register(shared, "more", key=f"/{made.name}", offset=0, byte_size=1), 503, "4096")
        assert len(list(descriptors.iterdir())) <= before + 8
        assert len(ask(shared, "GET", f"{SYSTEM}/status").json()) == limits.SHARED_MEMORY_REGIONS
        assert ask(shared, "POST", f"{SYSTEM}/unregister").status == 200
        assert register(shared, "more", key=f"/{made.name}", offset=0, byte_size=1).status == 200


def test_objects_are_bounded_and_given_back(shared: RunningServer) -> None:
    most = int(limits.SHARED_MEMORY_OBJECTS)
    gc.collect()
    descriptors = Path("/proc/self/fd")
    with contextlib.ExitStack() as stack:
        objects = [stack.enter_context(memory(16)) for _ in range(most + 1)]
        before = len(list(descriptors.iterdir()))
        for number, each in enumerate(objects):
            reply = register(shared, f"r{number}", key=f"/{each.name}", offset=0, byte_size=16)
            assert reply.status == (200 if number < most else 503), reply.body
        assert ask(shared, "POST", f"{SYSTEM}/unregister").status == 200
        assert len(list(descriptors.iterdir())) <= before + 8
        assert register(shared, key=f"/{objects[-1].name}", offset=0, byte_size=16).status == 200


def test_cuda_memory_is_refused_without_a_gpu(shared: RunningServer) -> None:
    from penstock.engine.shared_device_memory import available

    if available():
        pytest.skip("there is a GPU: tests/gpu/test_shared_memory.py")
    path = "/v2/cudasharedmemory/region/r/register"
    document = dumps(raw_handle={"b64": "A" * 88}, device_id=0, byte_size=16)
    refused(ask(shared, "POST", path, document), 501, "'r'", "GPU")
    for document in (dumps(device_id=0, byte_size=16), dumps(raw_handle={"b64": "???"}, device_id=0, byte_size=16)):
        refused(ask(shared, "POST", path, document), 400, "raw_handle")
