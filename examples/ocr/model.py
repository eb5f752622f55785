"""The model `read_line`: encoded pictures of text lines in, their text and how sure the reader is out.

Promises: one row is one picture (PNG or JPEG) of any size, so lines of any length share a batch; answers are a few
bytes a line, never the 3 MB of class scores behind them; a picture that cannot be used fails its own request only. The
same with the plain recogniser and with an engine built of it. Added to a server by `serve`.
"""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import onnx

import penstock as ps
from examples.ocr.reader import ANY_WIDTH, FEW_SHAPES, HEIGHT, Calls, Classes, Floats, Recognise, best_classes, read
from penstock.engine import Runtime
from penstock.errors import NotFound

PACKAGE = "rapidocr"
RECOGNISER = "PP-OCRv6_rec_small.onnx"
DETECTOR = "PP-OCRv6_det_small.onnx"
CLASSIFIER = "ch_ppocr_mobile_v2.0_cls_mobile.onnx"
# What reads pages, in the order in which they look at one.
NETWORKS = {"detector": DETECTOR, "classifier": CLASSIFIER, "recogniser": RECOGNISER}


@dataclass(frozen=True, slots=True)
class Setting:
    """How a recogniser is served. README.md has the figures behind both of them."""

    instances: int
    threads: int
    max_batch: int
    calls: Calls


# Two instances of one thread each beat one of two by a quarter on two cores: decoding and reading off, which use one
# thread, run beside the other instance's model.
PLAIN = Setting(instances=2, threads=1, max_batch=8, calls=ANY_WIDTH)
# So with an engine. Its library makes kernels for each shape that it meets, in each instance, and keeps them: 13 MB a
# shape. A line a call means few shapes, and costs no more than a batch does; widths in steps of 32 in place of 64 were
# no faster and took 160 MB more.
ENGINE = Setting(instances=2, threads=1, max_batch=8, calls=FEW_SHAPES)

# Lines up to here are prepared for when a model is loaded; wider ones are read as well, the first of a width slower.
COMMON_WIDTH = 1088

Pictures = Annotated[npt.NDArray[np.object_], ps.Bytes[1]]
Texts = dict[str, npt.NDArray[np.object_] | Floats]


def recogniser_path() -> Path:
    """The trained recogniser."""
    return model_path(RECOGNISER)


def model_path(name: str) -> Path:
    """A trained model inside the installed package, found without importing the package."""
    found = importlib.util.find_spec(PACKAGE)
    roots = list(found.submodule_search_locations or ()) if found else []
    path = Path(roots[0]) / "models" / name if roots else None
    if path is None or not path.is_file():
        raise RuntimeError(f"the model {name} is not installed; fix: pip install 'rapidocr>=3.10,<4'")
    return path


def network(file: str, engine: Path | None, *, runtime: str, threads: int | None = None, instances: int = 1) -> Runtime:
    """An engine, or without one the model that it is built of, on `runtime`."""
    if engine is not None:
        return ps.load(engine, threads=threads, instances=instances)
    return ps.load(model_path(file), runtime=runtime, threads=threads, instances=instances)


def engines_in(folder: Path | None) -> dict[str, Path]:
    """By the names in `NETWORKS`, the engines that are there: PP-OCRv6_det_small.engine for PP-OCRv6_det_small.onnx.

    Raises NotFound where the folder has none of them, so that nobody measures plain networks for engines.
    """
    if folder is None:
        return {}
    paths = {name: folder / Path(file).with_suffix(".engine").name for name, file in NETWORKS.items()}
    found = {name: path for name, path in paths.items() if path.is_file()}
    if not found:
        names = ", ".join(path.name for path in paths.values())
        raise NotFound(f"{str(folder)!r} has no engine of the networks; expected at least one of {names}")
    return found


def alphabet_of(path: Path) -> list[str]:
    """Class -> character: the CTC blank, the dictionary kept in the model's metadata, and the space last."""
    properties = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    if "character" not in properties:
        raise RuntimeError(f"{path.name} has no 'character' in its metadata: it is not a PP-OCR recogniser")
    return ["", *properties["character"].split("\n"), " "]


@lru_cache(maxsize=2)
def recogniser(engine: Path | None = None) -> tuple[Recognise, list[str]]:
    """The loaded recogniser, shared by all instances, and its alphabet. `engine`: one built of it; None: as it is."""
    path = recogniser_path()
    if engine is None:
        runtime = ps.load(path, runtime="onnxruntime", threads=PLAIN.threads, instances=PLAIN.instances)
    else:
        runtime = ps.load(engine, threads=ENGINE.threads, instances=ENGINE.instances)

    def recognise(pictures: Floats) -> tuple[Classes, Floats]:
        return best_classes(runtime(x=pictures))

    return recognise, alphabet_of(path)


def line_reader(engine: Path | None = None) -> ps.ModelFunction:
    """The model to serve, its recogniser loaded."""
    recognise, alphabet = recogniser(engine)
    setting = ENGINE if engine else PLAIN
    _prepare(recognise, setting)

    @ps.model(
        name="read_line",
        max_batch_size=setting.max_batch,
        instances=setting.instances,
        outputs={"text": ps.Bytes[1], "score": ps.F32[1]},
    )
    def read_line(image: Pictures) -> Texts:
        """BYTES [n, 1] -> BYTES [n, 1] in UTF-8 and FP32 [n, 1]; raises UnreadableImageError for a bad picture."""
        readings = read(image[:, 0].tolist(), recognise, alphabet, setting.calls)
        text = np.array([[reading.text.encode()] for reading in readings], dtype=object)
        score = np.array([[reading.score] for reading in readings], dtype=np.float32)
        return {"text": text, "score": score}

    return read_line


def _prepare(recognise: Recognise, setting: Setting) -> None:
    """Meets every common width once in each instance: libraries make kernels for a shape when they first see it."""
    if setting.calls == ANY_WIDTH:
        return  # nothing is kept by width
    widths = sorted({setting.calls.width(width) for width in range(1, COMMON_WIDTH + 1)})
    blank = [np.zeros((1, 3, HEIGHT, width), np.float32) for width in widths]
    with ThreadPoolExecutor(setting.instances) as pool:
        for _ in pool.map(lambda _: [recognise(picture) for picture in blank], range(setting.instances)):
            pass
