"""The readers of whole pages that are compared: ours around any runtime, and RapidOCR with its own pipeline.

Promises: each is called with the same pixels and answers lines in its own order; each has its best settings for one
page at a time on all cores. Called by `compare_pages` and the tests.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from examples.ocr.model import NETWORKS, alphabet_of, network, recogniser_path
from examples.ocr.page.crops import FEW_WIDTHS
from examples.ocr.page.reading import read_page
from examples.ocr.page.words import Line
from examples.ocr.reader import ANY_WIDTH
from penstock.engine import cores

Pixels = npt.NDArray[np.uint8]
# OpenVINO prepares kernels for every new shape: `reader.Calls` and README.md have the reasons and figures.
CALLS = {"onnxruntime": ANY_WIDTH, "openvino": FEW_WIDTHS}


@dataclass(slots=True)
class Steps:
    """How long each step took on each page, in seconds."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def watch(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - begin)


class PageReader:
    """The networks as `penstock.load` has them; `engines`, by the names in `NETWORKS`, in place of some of them."""

    def __init__(self, runtime: str, engines: Mapping[str, Path] | None = None) -> None:
        self.steps = Steps()
        self._alphabet = alphabet_of(recogniser_path())
        self._calls = CALLS[runtime]
        self._detect, self._classify, self._recognise = (
            network(file, (engines or {}).get(name), runtime=runtime) for name, file in NETWORKS.items()
        )

    def __call__(self, pixels: Pixels) -> tuple[Line, ...]:
        return read_page(
            pixels,
            self._detect,
            self._classify,
            self._recognise,
            self._alphabet,
            calls=self._calls,
            watch=self.steps.watch,
        )


@dataclass(frozen=True, slots=True)
class PeerLine:
    text: str
    score: float
    corners: npt.NDArray[np.float32]


class RapidReader:
    """RapidOCR as it comes, on ONNX Runtime or OpenVINO.

    threads  of each network; None: all cores that this process may use. They are always asked for by number: left to
             itself ONNX Runtime takes every core of the machine, those too that its process is kept from.
    """

    def __init__(self, runtime: str, threads: int | None = None) -> None:
        from rapidocr import EngineType, RapidOCR  # a second and a half, and of no use to who reads with ours

        engine = {"onnxruntime": EngineType.ONNXRUNTIME, "openvino": EngineType.OPENVINO}[runtime]
        settings: dict[str, Any] = {f"{part}.engine_type": engine for part in ("Det", "Cls", "Rec")}
        asked = {"onnxruntime": "intra_op_num_threads", "openvino": "inference_num_threads"}[runtime]
        settings[f"EngineConfig.{runtime}.{asked}"] = threads or cores.available()
        if threads:  # else OpenVINO ties the threads of every reader to the same first cores
            settings["EngineConfig.openvino.enable_cpu_pinning"] = False
        # Critical: an empty page is no reason to write to the terminal.
        self._read = RapidOCR(params={"Global.log_level": "critical", **settings})

    def __call__(self, pixels: Pixels) -> tuple[PeerLine, ...]:
        return self._lines(pixels, turning=True)

    def without_turning(self, pixels: Pixels) -> tuple[PeerLine, ...]:
        """No line is turned: without its direction classifier."""
        return self._lines(pixels, turning=False)

    def _lines(self, pixels: Pixels, *, turning: bool) -> tuple[PeerLine, ...]:
        answer: Any = self._read(pixels, use_cls=turning)  # its type depends on what it was asked for
        if answer.boxes is None or answer.txts is None:
            return ()
        rows = zip(answer.txts, answer.scores, answer.boxes, strict=True)
        return tuple(PeerLine(text, float(score), np.asarray(corners, np.float32)) for text, score, corners in rows)
