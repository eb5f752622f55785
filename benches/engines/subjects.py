"""Which models the bench of engines runs, at which shapes, and where their files are.

Real ones come from an installed package or were exported by `benches/models/export_torch.py`; the others are made by
script (`benches.models.zoo`). Inputs are those that `benches.inputs` has under the same name. Called by `engine_cpu`.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benches.models import zoo

PACKAGE = "rapidocr"


@dataclass(frozen=True)
class Subject:
    """A model at one size of input. Its batch is free."""

    name: str
    shape: tuple[int, ...]
    """Of one sample, for each input."""
    source: Literal["package", "export", "made"]
    file: str = ""
    """In the package's folder."""
    inputs: tuple[str, ...] = ("x",)
    batches: tuple[int, ...] = (1, 8)
    samples: int = 16
    """Held-out inputs that every contender's answers are compared on; a multiple of the batches."""
    metric: str = ""
    """What judges in place of the cosine, where a task is at hand: `module:function`, and what its score may drop."""
    drop: float = 0.0

    def path(self, folder: Path) -> Path | None:
        """The ONNX file; None where it is not installed. Models made by script are made into `folder` now."""
        if self.source == "made":
            return zoo.make(self.name, folder)
        if self.source == "export":
            path = folder / f"{self.name}.onnx"
            return path if path.is_file() else None
        found = importlib.util.find_spec(PACKAGE)
        roots = list(found.submodule_search_locations or ()) if found else []
        path = Path(roots[0]) / "models" / self.file if roots else Path(self.file)
        return path if path.is_file() else None


# A line's characters: a probability of 0.6 in place of 0.9 changes a cosine and no letter.
_LINES = "examples.ocr.metrics:short_line_accuracy"
# A trained classifier's logits may turn far without another class winning: BF16's least cosine here is 0.98.
_TOP1 = "benches.engines.top1:efficientnet_lite0"

_ALL = (
    Subject("ocr_det", (3, 736, 736), "package", "PP-OCRv6_det_small.onnx", samples=8),
    Subject("ocr_rec", (3, 48, 320), "package", "PP-OCRv6_rec_small.onnx", metric=_LINES, drop=0.005),
    Subject("ocr_cls", (3, 48, 192), "package", "ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
    Subject("efficientnet_lite0", (3, 224, 224), "export", metric=_TOP1, drop=0.04),
    Subject("minilm", (128,), "export", inputs=("input_ids", "attention_mask")),
    Subject("resnet34", (3, 224, 224), "made"),
    Subject("resnet50", (3, 224, 224), "made"),
    Subject("mobilenetv2", (3, 224, 224), "made"),
    Subject("vit_b32", (3, 224, 224), "made"),
    Subject("crnn", (1, 32, 100), "made"),
    Subject("crnn_bilstm", (1, 32, 100), "made"),
    Subject("yolo", (3, 640, 640), "made", samples=8),
)
SUBJECTS: Mapping[str, Subject] = {subject.name: subject for subject in _ALL}
