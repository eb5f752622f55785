"""The mean error that quantizing gives an output channel is taken out of its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, with the
mean measured on calibration data. Every layer's error is its own, on float inputs, so that none is corrected twice. The
changed model is for quantizing only. Called by recipe.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from penstock.graph.editing import Edit, constant, input_of, number
from penstock.quantize.branches import Branches
from penstock.quantize.data import Calibration
from penstock.quantize.observe import runner
from penstock.quantize.place import NEAREST, Narrow
from penstock.quantize.probes import by_channel, reduced
from penstock.quantize.scheme import Range, Scheme

Vector = NDArray[np.float64]

_SAMPLES: Final = 16


def bias_errors(
    model: ir.Model,
    ranges: Mapping[str, Range],
    data: Calibration,
    *,
    scheme: Scheme,
    weights: Mapping[str, Narrow] = NEAREST,
    samples: int = _SAMPLES,
) -> dict[str, Vector]:
    """Mean of (quantized - float) by output channel, for every layer that has a range."""
    graph = Branches(model, ranges, scheme, weights)
    probes: dict[str, str] = {}
    for name, branch in graph.branches.items():
        weight = constant(branch.layer.weight)
        if weight is None:  # Branches takes no others
            continue
        axis = 1 if branch.layer.node.op_type == "Conv" else -1
        rows = by_channel(graph.edit, branch.difference, axis, weight.ndim, weight.shape[branch.layer.axis])
        probes[name] = reduced(graph.edit, "ReduceMean", rows, 0).name or ""
    if not probes:
        return {}
    used = data.samples[:samples]
    sums: dict[str, Vector] = {}
    with runner(graph.finish(), probes.values()) as run:
        for sample in used:
            found = run(sample)
            for name, output in probes.items():
                sums[name] = sums.get(name, np.zeros(())) + found[output].astype(np.float64)
    return {name: total / len(used) for name, total in sums.items()}


def correct_bias(model: ir.Model, errors: Mapping[str, Vector]) -> ir.Model | None:
    """Subtract the errors from the biases of convolutions and Gemms, which get one where they have none.

    A MatMul has no bias, and the Add behind it may be anything, so it is left alone. A changed copy; None where nothing
    changed.
    """
    copy = model.clone()
    edit = Edit(copy)
    for node in edit.nodes("Conv", "Gemm"):
        error = errors.get(node.name or "")
        if error is None or not np.isfinite(error).all() or not error.any():
            continue
        given = input_of(node, 2)
        bias = constant(given) if given is not None else np.zeros(len(error), np.float32)
        if bias is None or bias.dtype != np.float32 or bias.shape not in (error.shape, ()):
            continue
        if number(node, "beta", 1.0) == 1.0:
            corrected = (bias - error).astype(np.float32)
            edit.set_input(node, 2, edit.constant(f"{node.name}_bias_corrected", corrected))
    return copy if edit.changed else None
