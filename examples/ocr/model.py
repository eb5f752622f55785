"""The model `read_line`: encoded pictures of text lines in, their text and how sure the reader is out.

Promises: one row is one picture (PNG or JPEG) of any size, so lines of any length share a batch; answers are a few
bytes a line, never the 3 MB of class scores behind them; a picture that cannot be used fails its own request only.
Added to a server by `serve`.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import onnx

import penstock as ps
from examples.ocr.reader import Floats, Recognise, read

PACKAGE, FILE = "rapidocr", "models/PP-OCRv6_rec_small.onnx"

# Two instances of one thread each beat one of two by a quarter on two cores: decoding and reading off, which use one
# thread, run beside the other instance's model. README.md has the figures, and those behind the batch size.
INSTANCES, THREADS, MAX_BATCH = 2, 1, 8


Pictures = Annotated[npt.NDArray[np.object_], ps.Bytes[1]]


def recogniser_path() -> Path:
    """The trained recogniser inside the installed package, found without importing the package."""
    found = importlib.util.find_spec(PACKAGE)
    roots = list(found.submodule_search_locations or ()) if found else []
    path = Path(roots[0]) / FILE if roots else None
    if path is None or not path.is_file():
        raise RuntimeError(f"the recogniser {Path(FILE).name} is not installed; fix: pip install 'rapidocr>=3.10,<4'")
    return path


def alphabet_of(path: Path) -> list[str]:
    """Class -> character: the CTC blank, the dictionary kept in the model's metadata, and the space last."""
    properties = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    if "character" not in properties:
        raise RuntimeError(f"{path.name} has no 'character' in its metadata: it is not a PP-OCR recogniser")
    return ["", *properties["character"].split("\n"), " "]


@lru_cache(maxsize=1)
def recogniser() -> tuple[Recognise, list[str]]:
    """The loaded recogniser, shared by all instances, and its alphabet."""
    path = recogniser_path()
    runtime = ps.load(path, runtime="onnxruntime", threads=THREADS, instances=INSTANCES)

    def recognise(pictures: Floats) -> Floats:
        (scores,) = runtime(x=pictures).values()
        return np.asarray(scores, dtype=np.float32)

    return recognise, alphabet_of(path)


@ps.model(
    name="read_line",
    max_batch_size=MAX_BATCH,
    instances=INSTANCES,
    outputs={"text": ps.Bytes[1], "score": ps.F32[1]},
)
def read_line(image: Pictures) -> dict[str, npt.NDArray[np.object_] | Floats]:
    """BYTES [n, 1] -> BYTES [n, 1] in UTF-8 and FP32 [n, 1]; raises UnreadableImageError for a bad picture."""
    readings = read(image[:, 0].tolist(), *recogniser())
    text = np.array([[reading.text.encode()] for reading in readings], dtype=object)
    score = np.array([[reading.score] for reading in readings], dtype=np.float32)
    return {"text": text, "score": score}
