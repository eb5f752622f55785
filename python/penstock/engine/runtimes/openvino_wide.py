"""Layers of an OpenVINO model that stay in FP32 while the library is asked for a narrower type.

The library leaves a layer as it is whose runtime information forbids a conversion to FP16, and means BF16 by that, too.
Python can't write that entry, but the library reads it from its own file format: so the model goes through a file. What
passes put in place of a marked layer is not marked; of what takes time on CPUs that is every product with constant
weights (MatMul becomes FullyConnected), so that convolutions are what can be kept, in a graph whose norms are folded.

A convolution whose residual sum is in its kernel must be marked with that sum and what follows in the kernel: the
library fails to compile one that reads BF16 and sums in FP32. `quantize.wide` marks all of it. Called by `openvino`.
"""

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

# The library's name for the entry; its reader takes the types as `from:to`.
_ENTRY: Final = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16"}
# A convolution with a bias becomes two layers, and the one that adds has the name.
_WITHOUT_BIAS: Final = "/WithoutBiases"


def marked(core: Any, model: Any, names: Collection[str]) -> Any:
    """The model with these layers to stay in FP32, by the names of the ONNX nodes or of what they compute."""
    import openvino

    with tempfile.TemporaryDirectory(prefix="penstock-") as name:
        graph, weights = Path(name) / "model.xml", Path(name) / "model.bin"
        openvino.serialize(model, str(graph), str(weights))
        tree = ElementTree.parse(graph)  # noqa: S314
        for layer in tree.iterfind("layers/layer"):
            if str(layer.get("name")).removesuffix(_WITHOUT_BIAS) in names and layer.get("type") != "Const":
                _mark(layer)
        tree.write(graph)
        # Its weights are a map of the file, which outlives the file's name.
        return core.read_model(str(graph), str(weights))


def _mark(layer: ElementTree.Element) -> None:
    information = layer.find("rt_info")
    if information is None:
        information = ElementTree.Element("rt_info")
        layer.insert(0 if layer.find("data") is None else 1, information)
    ElementTree.SubElement(information, "attribute", _ENTRY)
