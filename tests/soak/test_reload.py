"""A model is reloaded again and again under load: no request fails, none gets an answer of a mixture of versions.

PENSTOCK_SOAK_RELOADS sets how often; 50 by default. A reload that fails keeps the old model serving.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.servers import onnx_files
from tests.servers.process import RunningServer
from tests.servers.raw import ask
from tests.soak.load import Clients, Target

RELOADS = int(os.environ.get("PENSTOCK_SOAK_RELOADS", "50"))
CLIENTS = 4
TARGET = Target("first", 4, 2.0, 2)
LOAD = "/v2/repository/models/first/load"
# A session of the runtime is some hundred KiB; 50 of them kept would be seen.
ALLOWED_GROWTH_PER_RELOAD = 200 << 10


@pytest.mark.penstock_only
def test_reloads_fail_no_request(
    explicit_server: RunningServer, explicit_repository: Path, rng: np.random.Generator
) -> None:
    server, file = explicit_server, explicit_repository / "first/1/model.onnx"
    assert ask(server, "POST", LOAD, b"{}").status == 200
    with Clients(server, TARGET, CLIENTS, int(rng.integers(2**32))) as clients:
        for number in range(RELOADS):
            if number == RELOADS // 5:
                held = server.resident_bytes()
            # Another file each time, so that nothing can decide that there is nothing to do.
            onnx_files.write_scale(file.with_suffix(".new"), 2.0, name=f"scale{number}")
            file.with_suffix(".new").replace(file)
            reply = ask(server, "POST", LOAD, b"{}")
            assert reply.status == 200, reply.body
    tally = clients.tally
    assert not tally.problems, tally.problems[:10]
    assert tally.right == tally.sent > RELOADS
    growth = (server.resident_bytes() - held) / max(1, RELOADS - RELOADS // 5)
    assert growth < ALLOWED_GROWTH_PER_RELOAD, f"{growth / 1024:.0f} KiB for each reload"


@pytest.mark.penstock_only
def test_a_reload_that_fails_keeps_the_old_model(
    explicit_server: RunningServer, explicit_repository: Path, rng: np.random.Generator
) -> None:
    server, file = explicit_server, explicit_repository / "first/1/model.onnx"
    onnx_files.write_scale(file, 2.0)
    assert ask(server, "POST", LOAD, b"{}").status == 200
    with Clients(server, TARGET, CLIENTS, int(rng.integers(2**32))) as clients:
        for _ in range(5):
            file.write_bytes(b"this is no ONNX file")
            assert ask(server, "POST", LOAD, b"{}").status == 400
            assert ask(server, "GET", "/v2/models/first/ready").status == 200
        onnx_files.write_scale(file, 2.0)
        assert ask(server, "POST", LOAD, b"{}").status == 200
    assert not clients.tally.problems, clients.tally.problems[:10]
    assert clients.tally.right == clients.tally.sent > 0
