"""INT8 files by the libraries' own tools, made once and kept: ONNX Runtime's `quantize_static` and OpenVINO's NNCF.

Both at their defaults for a CPU, per channel where the operators can, from the calibration samples that Penstock
gets. Each runs in a process of its own with a limit, NNCF in an environment of its own; what fails is absent, with the
reason on standard error. Called by `engine_cpu`; `python -m benches.engines.quantizing MODEL OUT NAME` is the one
process, `quantize_nncf.py` the other.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benches.engines.child import ROOT
from benches.inputs import ALL, Arrays

LIMIT_SECONDS = 900
_TRANSFORMERS = ("minilm", "vit_b32")
REQUIREMENTS = Path(__file__).with_name("nncf-requirements.txt")


def by_onnxruntime(name: str, model: Path, folder: Path) -> Path | None:
    out = folder / "int8" / f"{name}.ort.onnx"
    command = [sys.executable, "-m", "benches.engines.quantizing", str(model), str(out), name]
    return _kept(out, model, command)


def by_nncf(name: str, model: Path, folder: Path, lab: Path) -> Path | None:
    out = folder / "int8" / f"{name}.nncf.xml"
    if _fresh(out, model):
        return out
    python = _environment(lab)
    if python is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        samples = list(ALL[name].samples())
        kind = ["transformer"] if name in _TRANSFORMERS else []
        data = Path(scratch) / "samples.npz"
        joined: dict[str, Any] = {key: np.concatenate([each[key] for each in samples]) for key in samples[0]}
        np.savez(data, **joined)
        script = Path(__file__).with_name("quantize_nncf.py")
        return _kept(out, model, [str(python), str(script), str(model), str(data), str(out), *kind])


def _fresh(out: Path, model: Path) -> bool:
    return out.is_file() and out.stat().st_mtime >= model.stat().st_mtime


def _kept(out: Path, model: Path, command: list[str]) -> Path | None:
    if _fresh(out, model):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    return out if _done(f"quantizing to {out.name}", command) and out.is_file() else None


def _environment(lab: Path) -> Path | None:
    """The Python of a venv that has NNCF; installed when it isn't there."""
    folder = lab / "venvs" / "nncf"
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if python.exists() and stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text():
        return python
    made = _done("making the environment of NNCF", [sys.executable, "-m", "venv", "--clear", str(folder)])
    install = [str(python), "-m", "pip", "install", "-q", "-r", str(REQUIREMENTS)]
    if not made or not _done("installing NNCF", install):
        return None
    stamp.write_text(REQUIREMENTS.read_text())
    return python


def _done(what: str, command: list[str]) -> bool:
    print(f"{what} ...", file=sys.stderr, flush=True)
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"{what}: {error}", file=sys.stderr)
        return False
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"{what}: exit {ended.returncode}: {last[:300]}", file=sys.stderr)
    return ended.returncode == 0


class _Reader:
    """What ONNX Runtime's calibration asks for: the next sample, or None."""

    def __init__(self, samples: Iterator[Arrays]) -> None:
        self._samples = samples

    def get_next(self) -> Arrays | None:
        return next(self._samples, None)


def quantize_by_onnxruntime(model: Path, out: Path, name: str) -> None:
    """Pre-processing, then Q/DQ: what the library's guide tells to do for a CPU."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # Scales by channel need an axis, which Q/DQ operators have since opset 13: older models get one scale a tensor.
    opset = next(each.version for each in onnx.load(model, load_external_data=False).opset_import if not each.domain)
    with tempfile.TemporaryDirectory() as scratch:
        prepared, partial = Path(scratch) / "prepared.onnx", Path(scratch) / "int8.onnx"
        # The symbolic inference needs another package and fails on computed shapes; it serves transformers on GPUs.
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        reader: Any = _Reader(ALL[name].samples())
        quantization.quantize_static(
            str(prepared),
            str(partial),
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=opset >= 13,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        out.write_bytes(partial.read_bytes())


if __name__ == "__main__":
    _, _model, _out, _name = sys.argv
    quantize_by_onnxruntime(Path(_model), Path(_out), _name)
