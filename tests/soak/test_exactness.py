"""64 clients and 2 instances for a while: every request gets its own right answer, once, and memory stays flat.

PENSTOCK_SOAK_SECONDS sets how long; ten seconds by default, 60 in the full run.
"""

import os
import time

import numpy as np

from tests.conformance.clients import method
from tests.servers.process import RunningServer
from tests.soak.load import Clients, Target

SECONDS = float(os.environ.get("PENSTOCK_SOAK_SECONDS", "10"))
CLIENTS = 64
TARGET = Target("pair", 16, 2.0, 3)
ALLOWED_GROWTH = 8 << 20


def counted(server: RunningServer) -> int:
    return int(
        method("http", server, "get_inference_statistics", "pair")["model_stats"][0]["inference_stats"]["success"][
            "count"
        ]
    )


def test_every_request_gets_its_own_answer_once(server: RunningServer, rng: np.random.Generator) -> None:
    seed = int(rng.integers(2**32))
    with Clients(server, TARGET, CLIENTS, seed) as warm:
        time.sleep(min(2.0, SECONDS / 4))
    before, held = counted(server), server.resident_bytes()
    with Clients(server, TARGET, CLIENTS, seed + 1) as clients:
        time.sleep(SECONDS)
    tally = clients.tally
    problems = warm.tally.problems + tally.problems
    assert not problems, problems[:10]
    assert tally.right == tally.sent > CLIENTS
    # What the server says it answered is what the clients got: nothing lost, nothing run twice.
    deadline = time.monotonic() + 5
    while counted(server) - before < tally.sent and time.monotonic() < deadline:
        pass
    assert counted(server) - before == tally.sent
    growth = server.resident_bytes() - held
    assert growth < ALLOWED_GROWTH, f"{growth / (1 << 20):.1f} MiB after {tally.sent} requests"
