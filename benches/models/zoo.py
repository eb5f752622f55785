"""The models that scripts make, by name: `make("resnet50", folder)` answers the path of its ONNX file.

Promises: full-size architectures, free batch, the same bytes for the same makers, libraries and machine; a file that
the current makers made is not made again. Weights are seeded and not trained: such models say how fast a network runs
in a precision. They don't say what that precision costs a trained one (`layers`). Called by the benches, by tests,
and by hand: `python -m benches.models resnet50 -o DIR`.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from benches.models.detector import yolo
from benches.models.residual import mobilenetv2, resnet34, resnet50
from benches.models.text_recogniser import crnn, crnn_bilstm
from benches.models.vision_transformer import vit_b32

MAKERS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "resnet34": resnet34,
    "resnet50": resnet50,
    "mobilenetv2": mobilenetv2,
    "vit_b32": vit_b32,
    "crnn": crnn,
    "crnn_bilstm": crnn_bilstm,
    "yolo": yolo,
}


def make(name: str, folder: Path) -> Path:
    """`folder`/`name`.onnx, made unless these makers have made it before. Raises ValueError for an unknown name."""
    maker = MAKERS.get(name)
    if maker is None:
        raise ValueError(f"unknown model {name!r}, expected one of {', '.join(MAKERS)}")
    path, stamp = folder / f"{name}.onnx", folder / f"{name}.made-by.txt"
    if path.is_file() and stamp.is_file() and stamp.read_text() == recipe():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    model = maker()
    onnx.checker.check_model(model)
    # Renamed into place: another process that looks sees the whole file or none.
    partial = path.with_suffix(".partial")
    partial.write_bytes(model.SerializeToString())
    stamp.unlink(missing_ok=True)
    partial.replace(path)
    stamp.write_text(recipe())
    return path


def recipe() -> str:
    """Digest of the makers' sources: another one means other models."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest() + "\n"
