"""How long `/v2/health/live` takes while something heavy goes on, measured by a process of its own.

In the test's process a client that packs 60 MiB would hold up the measurement, and the server would be blamed.
"""

import contextlib
import http.client
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.servers.process import CHECKOUT, RunningServer

# Between two looks: often enough that a stall of some ten milliseconds is met.
PAUSE_SECONDS = 0.003
PROBE_SECONDS = 30.0


@dataclass
class Latencies:
    """Seconds that the answers took; complete once the context is left."""

    seconds: list[float]

    @property
    def worst(self) -> float:
        return max(self.seconds)

    def quantile(self, share: float) -> float:
        return sorted(self.seconds)[int(share * (len(self.seconds) - 1))]


@contextlib.contextmanager
def probing(server: RunningServer) -> Iterator[Latencies]:
    """Asks again and again, on one kept connection, from entering to leaving the context."""
    command = [sys.executable, "-m", "tests.hostile.probe", str(server.http_port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=CHECKOUT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"probing\n"
        found = Latencies([])
        try:
            yield found
        finally:
            process.stdin.close()
            answer = process.stdout.read()
    assert process.returncode == 0, "/v2/health/live was not answered"
    found.seconds = json.loads(answer)
    assert len(found.seconds) > 3, "too short to have measured anything"


def main() -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=PROBE_SECONDS)
    connection.connect()
    print("probing", flush=True)
    seconds = []
    while not select.select([sys.stdin], [], [], PAUSE_SECONDS)[0]:
        start = time.monotonic()
        connection.request("GET", "/v2/health/live")
        response = connection.getresponse()
        response.read()
        seconds.append(time.monotonic() - start)
        assert response.status == 200
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
