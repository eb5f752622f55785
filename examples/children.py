"""Child processes that live for as long as somebody here wants them.

Promises: a child's standard input and output are pipes, and what it says otherwise is seen; it is told to end by the
end of its input, so it ends when this process dies as well, and is killed when it takes longer than a server may drain.
Needs the standard library alone. Called by the examples' demonstrations and by the stories of the benches.
"""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).resolve().parents[1]
_STOP_SECONDS: Final = 35.0  # a server drains for at most 30


@contextmanager
def child(command: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """In the checkout's folder. `env`: in place of this process's."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT, env=env)
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Waits for a process that was told to end, kills it if it doesn't, and closes its output."""
    assert process.stdout is not None
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
