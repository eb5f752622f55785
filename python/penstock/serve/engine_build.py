"""One `penstock build` as a child process: started low in priority, waited for, and gone when nobody wants it any more.

The builder's libraries never enter the server's process, and a build that crashes or hangs is a reason in a log. The
child ends with this process whatever happens to it, and its own children with it; everything it writes lies in a folder
of its own. Called by `accelerator`, which lets one run at a time.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from penstock.errors import Unavailable

log = logging.getLogger("penstock")

# What the console script runs, after binding the child's life to its parent's (prctl(2): 1 is PR_SET_PDEATHSIG) and
# stepping behind the server for the cores. The child checks that the parent was still there when it was bound.
_PROGRAM: Final = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)})
if os.getppid() != int(sys.argv.pop(1)): sys.exit(1)
os.nice(10)
from penstock.cli import main
main()
"""
_CLEAN_SECONDS: Final = 2.0
_SAYS: Final = "penstock: "  # how the command's own errors begin
_KEPT_CHARS: Final = 500  # of the child's last line


class EngineBuild:
    """Run once, in one thread; `cancel` may be called from any."""

    def __init__(self, model: Path, flags: Sequence[str], folder: Path, *, limit_seconds: float) -> None:
        """`folder` is this build's own: `clean` removes it."""
        self.engine = folder / f"{model.stem}.engine"
        self._model = model
        self._flags = list(flags)
        self._folder = folder
        self._limit_seconds = limit_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._cancelled = False

    def run(self) -> str:
        """Build; the reason when there is no engine, else empty. Raises Unavailable when it was cancelled."""
        temporary = self._folder / "temporary"
        temporary.mkdir()
        said = self._folder / "stderr"
        with said.open("wb") as errors:
            with self._lock:
                if self._cancelled:
                    raise Unavailable("the build is not wanted any more")
                # -P: neither the working directory nor a script's folder may put modules in front of the libraries'.
                self._process = subprocess.Popen(  # noqa: S603  (our own interpreter and program)
                    [
                        *(sys.executable, "-P", "-c", _PROGRAM, str(os.getpid())),
                        *("build", str(self._model), f"--output={self.engine}", *self._flags),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    env={**os.environ, "TMPDIR": str(temporary)},
                    start_new_session=True,  # a Ctrl-C at the terminal is the server's affair
                )
            reason = self._wait(self._process)
        if self._cancelled:
            raise Unavailable("the build is not wanted any more")
        return reason if not reason or reason.startswith("it ") else self._last_line(said) or reason

    def _wait(self, process: subprocess.Popen[bytes]) -> str:
        try:
            code = process.wait(self._limit_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"it did not end within {self._limit_seconds:.0f} s"
        if code == 0 and self.engine.is_file():
            return ""
        return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def _last_line(self, said: Path) -> str:
        """What the child said for its end, if it came to say so; a traceback is none of the clients' business."""
        lines = said.read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else ""
        if not last.startswith(_SAYS):
            log.error("penstock build of %s failed unexpectedly: %s", self._model.name, last)
            return ""
        last = last.removeprefix(_SAYS)
        for folder in (self._model.parent, self._folder):
            last = last.replace(f"{folder}{os.sep}", "")
        return last[:_KEPT_CHARS]

    def cancel(self) -> None:
        """End the child now."""
        with self._lock:
            self._cancelled = True
            if self._process is not None:
                self._process.kill()

    def clean(self) -> None:
        """Remove the folder and everything in it."""
        deadline = time.monotonic() + _CLEAN_SECONDS
        while self._folder.exists() and time.monotonic() < deadline:
            # The child's own children are killed with it, and may write for one moment more.
            shutil.rmtree(self._folder, ignore_errors=True)
