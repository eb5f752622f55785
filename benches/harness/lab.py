"""The lab: a folder with what the comparison needs and the product does not, installed once and kept.

It promises to install from the ordinary registries alone, into its own folder (Debian's packages apart), pinned by the
requirement files in `peers/`, and to raise LabError with the reason when it can't: what is missing is reported, never
replaced. Called by `dataplane.py` before anything is measured.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BENCHES = Path(__file__).parent.parent
REPOSITORY = BENCHES.parent
DEBIAN_PYTHON = Path("/usr/bin/python3.11")
INSTALL_SECONDS = 900

ONNX_PACKAGE = "rapidocr==3.10.0"
ONNX_FILE = "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"
"""A trained model of 0.6 MB (text-line direction) that a package carries."""


class LabError(Exception):
    """Something could not be installed; the message says what and why."""


@dataclass(frozen=True)
class Triton:
    """Where the real core of the wheel lies."""

    scripts: Path
    packages: Path
    backends: Path
    binary: Path


@dataclass(frozen=True)
class DebianPackage:
    name: str
    present: tuple[str, ...]
    """Any of these files (patterns below /) shows that it is there."""


DEBIAN_PACKAGES = (
    DebianPackage("wrk", ("usr/bin/wrk", "usr/local/bin/wrk")),
    DebianPackage("nghttp2-client", ("usr/bin/h2load",)),
    DebianPackage("python3.11-venv", ("usr/lib/python3.11/ensurepip", "usr/share/python-wheels/pip-*.whl")),
    DebianPackage("libpython3.11", ("usr/lib/*/libpython3.11.so.1.0",)),
    DebianPackage("libb64-0d", ("usr/lib/*/libb64.so.0d",)),
)


def missing_packages(root: Path = Path("/")) -> list[str]:
    return [
        package.name for package in DEBIAN_PACKAGES if not any(any(root.glob(pattern)) for pattern in package.present)
    ]


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.logs = self.folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)

    def tools(self) -> None:
        """wrk, h2load and Debian's Python from Debian; raises only when a generator is missing afterwards."""
        missing = missing_packages()
        if missing:
            self._debian(missing)
        for tool in ("wrk", "h2load", "nghttp"):
            if shutil.which(tool) is None:
                raise LabError(f"{tool} is missing and could not be installed; see logs/debian.log in the lab")

    def _debian(self, packages: list[str]) -> None:
        if shutil.which("apt-get") is None:
            return
        apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y"]
        if os.geteuid() != 0:
            apt = ["sudo", "-n", *apt]
        try:
            self._run("debian", [*apt, "update"])
            # One by one: a package that this Debian lacks must not keep the others out.
            for package in packages:
                self._run("debian", [*apt, "install", "--no-install-recommends", package])
        except LabError as error:
            print(f"lab: {error}", file=sys.stderr)

    def floor(self) -> Path:
        target = self.folder / "floor"
        manifest = BENCHES / "floor" / "Cargo.toml"
        command = ["cargo", "build", "--release", "--locked", "--quiet"]
        self._run("floor", [*command, "--manifest-path", str(manifest), "--target-dir", str(target)])
        return target / "release" / "floor"

    def mosec(self) -> Path:
        """The Python that has Mosec."""
        return self._venv("mosec", Path(sys.executable))

    def python(self, name: str) -> Path | None:
        """The Python of a venv that has what `peers/NAME/requirements.txt` pins; None where it is not installed."""
        own, stamp = self.folder / "venvs" / name / "bin" / "python", self.folder / "venvs" / name / "installed.txt"
        wanted = (BENCHES / "peers" / name / "requirements.txt").read_text()
        return own if own.exists() and stamp.exists() and stamp.read_text() == wanted else None

    def web(self) -> Path:
        """The Python that has FastAPI, LitServe and ONNX Runtime."""
        return self._venv("ocr_web", Path(sys.executable))

    def triton(self, name: str = "triton") -> Triton:
        """`name`: of the folder in `peers/` whose requirements it is installed by."""
        if not DEBIAN_PYTHON.exists():
            raise LabError(f"triton: its python backend needs Debian's {DEBIAN_PYTHON.name}, which is not here")
        python = self._venv(name, DEBIAN_PYTHON)
        packages = python.parent.parent / "lib" / "python3.11" / "site-packages"
        core = packages / "pytriton" / "tritonserver"
        backends = self.folder / "triton" / "backends"
        stubs = sorted((core / "python_backend_stubs" / "3.11").glob("*"))
        if not stubs:
            raise LabError("triton: the wheel has no python backend stub for 3.11")
        # The core looks for the stub beside the backend; the wheel keeps one per Python elsewhere.
        shutil.copytree(core / "backends" / "python", backends / "python", dirs_exist_ok=True)
        shutil.copy2(stubs[0], backends / "python" / stubs[0].name)
        return Triton(python.parent, packages, backends, core / "bin" / "tritonserver")

    def onnx(self) -> Path:
        """A small real ONNX model: the product's own environment's, else one installed here."""
        for environment in (REPOSITORY / ".venv", self.folder / "venvs" / "onnx"):
            found = sorted(environment.glob(f"lib/python3*/site-packages/{ONNX_FILE}"))
            if found:
                return found[0]
        python = self._create("onnx", Path(sys.executable))
        self._run("onnx", [str(python), "-m", "pip", "install", "-q", "--no-deps", ONNX_PACKAGE])
        found = sorted((self.folder / "venvs" / "onnx").glob(f"lib/python3*/site-packages/{ONNX_FILE}"))
        if not found:
            raise LabError(f"onnx: {ONNX_PACKAGE} carries no {Path(ONNX_FILE).name}")
        return found[0]

    def _venv(self, name: str, python: Path) -> Path:
        """The Python of a venv with what `peers/NAME/requirements.txt` pins; nothing to do when it is as it was."""
        requirements = BENCHES / "peers" / name / "requirements.txt"
        if (there := self.python(name)) is not None:
            return there
        own = self._create(name, python)
        self._run(name, [str(own), "-m", "pip", "install", "-q", "-r", str(requirements)])
        (self.folder / "venvs" / name / "installed.txt").write_text(requirements.read_text())
        return own

    def _create(self, name: str, python: Path) -> Path:
        folder = self.folder / "venvs" / name
        self._run(name, [str(python), "-m", "venv", "--clear", str(folder)])
        return folder / "bin" / "python"

    def _run(self, name: str, command: Sequence[str]) -> None:
        log = self.logs / f"{name}.log"
        with log.open("ab") as output:
            output.write(f"$ {' '.join(command)}\n".encode())
            output.flush()
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=INSTALL_SECONDS,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise LabError(f"{name}: {error}") from error
        if done.returncode != 0:
            last = log.read_text(errors="replace").strip().splitlines()[-1]
            raise LabError(f"{name}: {Path(command[0]).name} exited {done.returncode}: {last[:300]}")
