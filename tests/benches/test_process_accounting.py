"""CPU of a server is that of its whole family, whatever its processes are called or do; and none outlives the bench."""

import os
import select
import sys
from pathlib import Path

import pytest

from harness.processes import ProcessStat, Session, members, parse_busy, parse_stat

# Both programs say that they got there by writing to a named pipe: reading it is the event to wait for.
PARENT_OF_A_REAPED_CHILD = """
import signal, subprocess, sys
burn = "import time\\nwhile time.process_time() < 0.3: pass"
subprocess.run([sys.executable, "-c", burn], check=True)
with open(sys.argv[1], "w") as pipe:
    pipe.write("reaped")
signal.pause()
"""

# A worker in a session of its own that ignores SIGTERM: the kind that outlives a careless bench.
PARENT_OF_A_STUBBORN_CHILD = """
import os, signal, subprocess, sys
if sys.argv[2:] == ["child"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(sys.argv[1], "w") as pipe:
        pipe.write(str(os.getpid()))
    signal.pause()
subprocess.Popen([sys.executable, __file__, sys.argv[1], "child"], start_new_session=True).wait()
"""


def start(program: str, folder: Path) -> tuple[Session, str]:
    """The session and what its program said."""
    file, pipe = folder / "program.py", folder / "said"
    file.write_text(program)
    os.mkfifo(pipe)
    session = Session([sys.executable, str(file), str(pipe)], {}, folder, folder / "log")
    return session, pipe.read_text()


def process(pid: int, parent: int, session: int) -> ProcessStat:
    return ProcessStat(pid, parent, session, 0)


@pytest.mark.parametrize("name", ["tritonserver", "tokio worker) R 1", "a (b) c"])
def test_a_stat_line_is_read_whatever_the_command_is_called(name: str) -> None:
    line = f"321 ({name}) S 300 321 322 0 -1 4194304 5 0 0 0 70 20 3 4 20 0 9 0 1000\n"
    assert parse_stat(line) == ProcessStat(pid=321, parent=300, session=322, ticks=97)


def test_members_are_the_session_and_all_descendants() -> None:
    server, worker = process(10, 1, 10), process(11, 10, 10)
    orphan_of_session = process(12, 1, 10)
    escaped, its_child = process(13, 11, 13), process(14, 13, 13)
    stranger = process(20, 1, 20)
    found = members(10, [its_child, stranger, escaped, orphan_of_session, worker, server])
    assert {one.pid for one in found} == {10, 11, 12, 13, 14}


def test_busy_time_leaves_idle_and_disk_waits_out() -> None:
    assert parse_busy("cpu  1 20 300 4000 50000 600000 7000000 80000000 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n") == 87_600_321


def test_cpu_of_a_reaped_child_stays_counted(tmp_path: Path) -> None:
    session, said = start(PARENT_OF_A_REAPED_CHILD, tmp_path)
    try:
        assert said == "reaped"
        assert session.cpu_seconds() >= 0.28
    finally:
        session.stop()
    assert session.ended


def test_stop_ends_a_child_that_left_the_session_and_ignores_the_signal(tmp_path: Path) -> None:
    session, said = start(PARENT_OF_A_STUBBORN_CHILD, tmp_path)
    child = os.pidfd_open(int(said))
    try:
        session.stop()
        ended, _, _ = select.select([child], [], [], 10)
        assert ended == [child]
    finally:
        os.close(child)
