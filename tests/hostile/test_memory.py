"""The measuring of leaks catches a leak: without this control the other tests of memory could pass on anything."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.memory import measure

# Answers each line with a line and keeps the given number of bytes of it.
SERVER = """
import os, sys
kept = []
for line in sys.stdin:
    kept.append(bytearray(os.urandom(int(sys.argv[1]))))
    print("done", flush=True)
"""


@pytest.mark.parametrize(("kept", "leaks"), [(0, False), (2_000, False), (20_000, True), (200_000, True)])
def test_a_server_that_keeps_requests_is_caught(kept: int, leaks: bool) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(kept)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        stdin, stdout = child.stdin, child.stdout

        def work() -> int:
            for _ in range(200):
                stdin.write("request\n")
                stdin.flush()
                assert stdout.readline() == "done\n"
            return 200

        def resident() -> int:
            pages = int(Path(f"/proc/{child.pid}/statm").read_text(encoding="ascii").split()[1])
            return pages * 4096

        growth = measure(resident, work)
        stdin.close()
    assert growth.leaks == leaks, growth
