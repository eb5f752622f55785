"""Start a server in a session of its own, count the CPU of everything in it, end it.

It promises that every process of the session and every descendant of its first process counts, reaped children
included, from the kernel's own accounts (/proc), and that nothing outlives `stop`. Called by the rounds.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

# Positions behind the command's closing parenthesis in /proc/PID/stat (man 5 proc).
STATE, PARENT, SESSION, FIRST_TIME, TIMES = 0, 1, 3, 11, 4  # utime, stime, cutime, cstime

RESUME_SECONDS = 1.0
STOP_SECONDS = 20
"""Triton takes some seconds to unload; past this the session is killed."""


@dataclass(frozen=True)
class ProcessStat:
    pid: int
    parent: int
    session: int
    ticks: int
    stopped: bool = False


def parse_stat(text: str) -> ProcessStat:
    """One line of /proc/PID/stat; the command's name may hold spaces and parentheses."""
    head, _, tail = text.rpartition(")")
    words = tail.split()
    ticks = sum(int(word) for word in words[FIRST_TIME : FIRST_TIME + TIMES])
    return ProcessStat(int(head.split(" ", 1)[0]), int(words[PARENT]), int(words[SESSION]), ticks, words[STATE] == "T")


def all_processes() -> list[ProcessStat]:
    processes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                processes.append(parse_stat((entry / "stat").read_text()))
            except OSError:
                continue  # ended between the listing and the reading
    return processes


def members(leader: int, processes: Sequence[ProcessStat]) -> list[ProcessStat]:
    """The processes of the leader's session, and its descendants in whatever session."""
    chosen = {process.pid: process for process in processes if process.session == leader or process.pid == leader}
    grown = True
    while grown:
        grown = False
        for process in processes:
            if process.pid not in chosen and process.parent in chosen:
                chosen[process.pid] = process
                grown = True
    return list(chosen.values())


def parse_busy(text: str) -> int:
    """Busy ticks of the whole machine from /proc/stat: all but idle and waiting for disks; guests are in user."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, text.split("\n", 1)[0].split()[1:9])
    return user + nice + system + irq + softirq + steal


def machine_busy_seconds() -> float:
    return parse_busy(Path("/proc/stat").read_text()) / TICKS_PER_SECOND


class Session:
    """A running server."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], folder: Path, log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **env},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def cpu_seconds(self) -> float:
        """User and system time so far of all members. Whoever leaves the session unreaped takes its time along."""
        return sum(process.ticks for process in members(self._process.pid, all_processes())) / TICKS_PER_SECOND

    def pause(self) -> None:
        """Nobody in it computes until `resume`: a server that polls while it waits costs the others nothing."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Returns when all run again: a signal that comes before may be given to a thread that never looks at it."""
        self._send(signal.SIGCONT)
        end = time.monotonic() + RESUME_SECONDS
        while any(each.stopped for each in members(self._process.pid, all_processes())) and time.monotonic() < end:
            time.sleep(0.005)

    def _send(self, number: signal.Signals) -> None:
        for process in members(self._process.pid, all_processes()):
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def last_lines(self, count: int = 5) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " | ".join(line.strip() for line in lines[-count:])[-600:] or "nothing said"

    def stop(self) -> None:
        """SIGTERM to the first process, who knows how to end the others; SIGKILL for whoever is left."""
        leader = self._process.pid
        family = members(leader, all_processes())
        self.resume()
        if not self.ended:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        # A number may have been given anew meanwhile: whoever bears it must be of the same session, too.
        known = {(process.pid, process.session) for process in family}
        for process in all_processes():
            if process.session == leader or (process.pid, process.session) in known:
                try:
                    os.kill(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


def wait_until(deadline_seconds: float, session: Session, ready: Callable[[], bool]) -> str | None:
    """None once ready; else why not. Polls, since foreign servers tell by nothing but their port."""
    end = time.monotonic() + deadline_seconds
    while time.monotonic() < end:
        if session.ended:
            return f"exited {session.exit_status} at start: {session.last_lines()}"
        if ready():
            return None
        time.sleep(0.05)
    return f"not ready within {deadline_seconds:.0f} s: {session.last_lines()}"
